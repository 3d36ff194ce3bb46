"""The artifact folder: its files, and how it comes into place whole or not at all.

libdlr takes the one `.json`, `.params` and `.so` that it finds by their endings, so there is exactly one of each.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Rejected
from lisiere.models import Manifest, TensorSpec, write_manifest
from lisiere.models.manifest import SCHEMA, Build, Classification, Detection, NeoFiles, SsdRawHead, Verified
from lisiere_compile.link import compiler_version, find_compiler, read_needs
from lisiere_compile.source import Source
from lisiere_compile.target import Target

GRAPH, PARAMS, LIBRARY, META = "compiled.json", "compiled.params", "compiled.so", "compiled.meta"
BARE_VERSION = "0.0.0"  # of a model without a model.yaml
# What the runtime loads: of a graph of tensors, and of an ensemble of trees.
GRAPH_FILES = NeoFiles(graph=GRAPH, params=PARAMS, library=LIBRARY, meta=META)
TREE_FILES = NeoFiles(library=LIBRARY, meta=META)
GRAPH_TOOLS = ("lisiere", "apache-tvm", "apache-tvm-ffi", "onnx", "onnxruntime", "numpy")
MANIFEST, LABELS, GOLDEN, ONNX = "manifest.yaml", "labels.txt", "golden.npz", "model.onnx"
# `.json` and `.params` are for the files that libdlr takes by their endings.
CALIBRATION, PRIORS = "calibration.scores", "priors.csv"


def archive_of(folder: Path) -> Path:
    """Return where the archive of an artifact's folder lies: beside it."""
    return folder.with_name(f"{folder.name}.tar.gz")


@contextmanager
def placed(final: Path) -> Iterator[Path]:
    """Give a hidden folder beside `final`; put it and the archive that the body packs in place when the body ends well.

    The old archive goes first and the new one comes last, so that whenever this is cut short, even by a power failure,
    no archive lies beside a folder that it was not made from. A failure that can be caught puts the old ones back.

    Raises:
        Rejected: something other than an artifact is in the way.
    """
    archive = archive_of(final)
    if final.exists() and not (final / MANIFEST).is_file():
        raise Rejected(f"{final} exists and is not an artifact, so it is not replaced. Move it out of the way.")
    if archive.exists() and not archive.is_file():
        raise Rejected(f"{archive} exists and is not a file, so it is not replaced. Move it out of the way.")
    made = not final.parent.exists()
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    except OSError as error:
        raise Rejected(f"Nothing can be written to {final.parent}: {error.strerror}.") from error
    new = temporary / "new"
    try:
        new.mkdir()
        yield new
        _swap([(new, final, temporary / "old"), (archive_of(new), archive, temporary / "old.tar.gz")])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if made and not any(final.parent.iterdir()):
            final.parent.rmdir()


def _swap(moves: list[tuple[Path, Path, Path]]) -> None:
    """Put each `new` in its `place`, whose content goes to `old`: all of them or none."""
    try:
        for _, place, old in reversed(moves):
            if place.exists():
                place.rename(old)
        for new, place, _ in moves:
            new.rename(place)
    except BaseException:
        for new, place, old in moves:
            if not new.exists() and place.exists():
                place.rename(new)
            if old.exists():
                old.rename(place)
        raise


def pack(folder: Path) -> Path:
    """Write an artifact's files as a `.tar.gz` beside its folder."""
    return write_archive(archive_of(folder), {file.name: file for file in folder.iterdir()})


def write_archive(archive: Path, members: Mapping[str, Path]) -> Path:
    """Write files as a `.tar.gz`: the same files give the same bytes, whoever packs them when.

    Args:
        archive: a file that is not there yet.
        members: name in the archive -> file.
    """
    with (
        archive.open("xb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as stream,
    ):
        for name, member in sorted(members.items()):
            info = tarfile.TarInfo(name)  # time, owner and group stay zero
            info.size, info.mode = member.stat().st_size, 0o644
            with member.open("rb") as data:
                stream.addfile(info, data)
    return archive


def write_graph(folder: Path, graph: dict[str, Any], params: bytes, library: Path) -> None:
    """Write the three files that the graph executor loads."""
    (folder / GRAPH).write_text(json.dumps(graph, indent=1) + "\n", encoding="utf-8")
    (folder / PARAMS).write_bytes(params)
    shutil.copyfile(library, folder / LIBRARY)


def write_meta(folder: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], arch: str) -> None:
    """Write Neo's metadata, from which DLR takes the names of the outputs.

    `TargetDeviceType` is the one requirement that libdlr compares with the device it is asked to run on.
    """

    def entries(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs]

    document = {
        "Model": {"Inputs": entries(inputs), "Outputs": entries(outputs)},
        "Requirements": {"TargetDeviceType": "cpu", "TargetArch": arch},
    }
    (folder / META).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def write_golden(file: Path, inputs: dict[str, NDArray[Any]], outputs: dict[str, NDArray[Any]]) -> None:
    """Write golden vectors: name -> [cases, *shape] for inputs and outputs."""
    arrays = {f"inputs/{name}": array for name, array in inputs.items()}
    arrays |= {f"outputs/{name}": array for name, array in outputs.items()}
    with file.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def declared(source: Source, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Manifest:
    """Return the manifest of a source's artifact: what its author says, or a bare one, over these tensors."""
    if source.manifest is not None:
        return msgspec.structs.replace(source.manifest, name=source.name, inputs=inputs, outputs=outputs)
    return Manifest(schema=SCHEMA, name=source.name, version=BARE_VERSION, inputs=inputs, outputs=outputs, files={})


def write_meaning(folder: Path, source: Source, manifest: Manifest, onnx: Path | None) -> Manifest:
    """Write the manifest and what the author's says of the model, under the artifact's names.

    Args:
        folder: holds the files that the runtime loads, and golden vectors where the author gives none.
        source: where the author's files are.
        manifest: as `declared`, with the build and what the runtime loads.
        onnx: goes along as the model for the onnx backend, where given.
    """
    task, golden = manifest.task, source.manifest.golden if source.manifest else None
    if isinstance(task, Classification | Detection):
        _copy(source, task.labels, folder / LABELS)
        task = msgspec.structs.replace(task, labels=LABELS)
    if isinstance(task, Classification) and task.calibration is not None:
        _copy(source, task.calibration, folder / CALIBRATION)
        task = msgspec.structs.replace(task, calibration=CALIBRATION)
    if isinstance(task, Detection) and isinstance(task.head, SsdRawHead):
        _copy(source, task.head.priors, folder / PRIORS)
        task = msgspec.structs.replace(task, head=msgspec.structs.replace(task.head, priors=PRIORS))
    if golden is not None:
        _copy(source, golden.file, folder / GOLDEN)
        manifest = msgspec.structs.replace(manifest, golden=msgspec.structs.replace(golden, file=GOLDEN))
    if onnx is not None:
        shutil.copyfile(onnx, folder / ONNX)
    manifest = msgspec.structs.replace(manifest, task=task, onnx=ONNX if onnx else None)
    return write_manifest(manifest, folder / MANIFEST)


def _copy(source: Source, name: str, to: Path) -> None:
    if not (source.folder / name).is_file():
        raise Rejected(f"{source.folder} lacks {name}, which the model.yaml refers to.")
    shutil.copyfile(source.folder / name, to)


def write_verified(folder: Path, manifest: Manifest, verified: Verified) -> Manifest:
    """Record in the manifest how the artifact was checked, which is known only after the rest of it is written."""
    if manifest.build is None:
        raise ValueError("Only an artifact, which has a record of its build, can be verified.")
    build = msgspec.structs.replace(manifest.build, verified=verified)
    return write_manifest(msgspec.structs.replace(manifest, build=build), folder / MANIFEST)


def build_record(
    source: Source, target: Target, library: Path, tools: tuple[str, ...], peak_activation_bytes: int | None = None
) -> Build:
    """Return how an artifact was made; `tools` are the distributions that had a hand in it."""
    return Build(
        target=target.name,
        triple=target.triple,
        arch=target.arch,
        cpu=target.cpu,
        features=target.features,
        min_glibc=read_needs(library).glibc,
        source_sha256=hashlib.sha256(source.file.read_bytes()).hexdigest(),
        tools=tool_versions(compiler_version(find_compiler(target)), tools),
        threads=target.threads,
        peak_activation_bytes=peak_activation_bytes,
    )


def tool_versions(compiler: str, names: tuple[str, ...] = GRAPH_TOOLS) -> dict[str, str]:
    """Return what made the artifact, by name."""
    found = {"cc": compiler}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_agreement(manifest: Manifest, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Check that a package declares the inputs and outputs that the compiled model has.

    Raises:
        Rejected: it does not; the message shows both.
    """
    for kind, declared, compiled in (("input", manifest.inputs, inputs), ("output", manifest.outputs, outputs)):
        said, found = ", ".join(map(_show, declared)), ", ".join(map(_show, compiled))
        if said != found:
            raise Rejected(
                f"The manifest of {manifest.name} declares the {kind}s {said}, but the compiled model has {found}. "
                "Mend the manifest, or the shapes in the job's DataInputConfig."
            )


def _show(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} {list(spec.shape)}"
