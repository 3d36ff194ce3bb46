"""Opening a model folder: everything that can be checked is checked before anything is loaded.

A model is code (its shared object runs in this process), so a folder that is not exactly what its manifest says
is refused whole.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml

from lisiere.documents import read_yaml
from lisiere.errors import Rejected
from lisiere.models.heads import check_head, classes_of
from lisiere.models.manifest import (
    Anomaly,
    Classification,
    Detection,
    FileEntry,
    Forecasting,
    ImageInput,
    Manifest,
    WindowInput,
)

MANIFEST_NAMES = ("manifest.yaml", "model.yaml")
GRAPH_MAX_BYTES = 64 << 20
NEO_SUFFIXES = frozenset({".so", ".dylib", ".dll", ".json", ".params", ".ro"})


@dataclass(frozen=True, slots=True)
class Package:
    """A verified model folder.

    Attributes:
        path: the folder.
        manifest: what it says of itself.
        digest: `sha256:…` of the manifest, which holds the digest of every other file.
    """

    path: Path
    manifest: Manifest
    digest: str

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest names."""
        return self.path / name

    def labels(self) -> tuple[str, ...]:
        """Return the class labels in the order of the model's output; empty for other tasks."""
        if not isinstance(self.manifest.task, Classification | Detection):
            return ()
        text = self.file(self.manifest.task.labels).read_text(encoding="utf-8-sig")
        return tuple(line.strip() for line in text.splitlines() if line.strip())


def find_manifest(path: Path) -> Path:
    """Return the manifest file of a model folder.

    Raises:
        Rejected: the folder has none, or is not a folder.
    """
    if not path.is_dir():
        raise Rejected(f"There is no model folder at {path}.")
    for name in MANIFEST_NAMES:
        if (path / name).is_file():
            return path / name
    raise Rejected(f"{path} holds neither manifest.yaml nor model.yaml, so it is not a model folder.")


def read_manifest(file: Path) -> Manifest:
    """Parse and validate a manifest's text; no other file is looked at.

    Raises:
        Rejected: not YAML, or not the schema. The message names the place, such as `$.inputs[0].shape`.
    """
    return _convert(read_yaml(file), file)


def read_draft(file: Path) -> Manifest:
    """Parse a manifest as an author writes it, whose `files` may be absent; `write_manifest` then fills them in.

    Raises:
        Rejected: as `read_manifest`.
    """
    document = read_yaml(file)
    if isinstance(document, dict):
        document = {**document, "files": {"draft": {"sha256": "0" * 64, "bytes": 0}}}
    return _convert(document, file)


def write_manifest(manifest: Manifest, file: Path) -> Manifest:
    """Write a manifest beside the files it refers to, with their sizes and digests filled in; return it.

    Raises:
        Rejected: a file it refers to is not in the folder, or its parts do not agree.
    """
    names = sorted(set(manifest.roles().values()))
    absent = [name for name in names if not (file.parent / name).is_file()]
    if absent:
        raise Rejected(f"{file.parent} lacks {', '.join(absent)}, which the manifest refers to.")
    entries = {
        name: FileEntry(sha256=_sha256(file.parent / name), bytes=(file.parent / name).stat().st_size) for name in names
    }
    sealed = msgspec.structs.replace(manifest, files=entries)
    _check_meaning(sealed, file)
    document = msgspec.to_builtins(sealed)
    file.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110), encoding="utf-8")
    return sealed


def _convert(document: object, file: Path) -> Manifest:
    try:
        return msgspec.convert(document, Manifest)
    except (msgspec.ValidationError, RecursionError) as error:
        raise Rejected(f"{file} is not a manifest: {error}") from error


def open_package(path: Path) -> Package:
    """Open a model folder and verify it whole: names, sizes, digests, shapes.

    Raises:
        Rejected: anything is not as the manifest says. Nothing has been loaded then.
    """
    file = find_manifest(path)
    manifest = read_manifest(file)
    _check_meaning(manifest, file)
    _check_files(manifest, file)
    package = Package(path, manifest, f"sha256:{_sha256(file)}")
    if isinstance(manifest.task, Classification | Detection):
        try:
            labels, classes = len(package.labels()), classes_of(manifest)
        except UnicodeDecodeError as error:
            raise Rejected(f"{manifest.task.labels} in {path} is not text in UTF-8: {error}.") from error
        if labels != (classes or max(labels, 1)):
            raise Rejected(
                f"{manifest.task.labels} in {path} has {labels} labels, but the model's output has "
                f"{classes or 'some'} classes."
            )
    if manifest.neo is not None:
        _check_strays(package)
        if manifest.neo.graph is not None:
            _check_graph(package, package.file(manifest.neo.graph))
    return package


def _check_meaning(manifest: Manifest, file: Path) -> None:
    """The parts of a manifest must agree with each other."""
    _check_task(manifest, file)
    missing = sorted({name for name in manifest.roles().values() if name not in manifest.files})
    if missing:
        raise Rejected(f"{file} refers to {', '.join(missing)} without listing its digest under `files`.")
    if manifest.onnx is None and manifest.neo is None:
        raise Rejected(f"{file} names neither an `onnx` file nor the `neo` files, so there is nothing to run.")
    if manifest.neo is not None and (manifest.neo.graph is None) != (manifest.neo.params is None):
        raise Rejected(f"{file}: `neo.graph` and `neo.params` go together; trees have neither.")


def _check_task(manifest: Manifest, file: Path) -> None:
    """What goes in and what comes out must fit the tensors; a model without a task is tensors alone."""
    if (manifest.input is None) != (manifest.task is None):
        raise Rejected(f"{file}: `input` and `task` go together; a model without a task has neither.")
    if manifest.input is None or manifest.task is None:
        return
    spec, how, task = manifest.inputs[0], manifest.input, manifest.task
    covariates = how.covariates if isinstance(how, WindowInput) else None
    if len(manifest.inputs) != 1 + (covariates is not None):
        raise Rejected(
            f"{file} declares {len(manifest.inputs)} inputs; tasks take models with one input, and a second one for "
            "`input.covariates` alone."
        )
    if isinstance(how, ImageInput):
        if len(spec.shape) != 4 or spec.shape[0] != 1:
            raise Rejected(f"{file}: an image input has the shape [1, …] with four numbers, not {list(spec.shape)}.")
        channels = spec.shape[1] if how.layout == "NCHW" else spec.shape[3]
        expected = 1 if how.colour == "gray" else 3
        if channels != expected:
            raise Rejected(
                f"{file}: `{how.colour}` has {expected} channels, but the input {list(spec.shape)} in "
                f"{how.layout} has {channels}."
            )
        for key in ("mean", "scale"):
            numbers = getattr(how, key)
            if len(numbers) not in (1, expected) or not all(map(math.isfinite, numbers)):
                raise Rejected(f"{file}: `input.{key}` must hold 1 or {expected} numbers.")
    elif not math.isfinite(how.step_s) or how.max_gap >= how.length:
        raise Rejected(f"{file}: `input.step_s` must be a number, and `input.max_gap` less than `input.length`.")
    elif spec.size != how.length * len(how.channels):
        raise Rejected(
            f"{file}: a window of {how.length} rows and {len(how.channels)} channels does not fill the input "
            f"{list(spec.shape)}."
        )
    if isinstance(how, ImageInput) != isinstance(task, Classification | Detection):
        raise Rejected(f"{file}: images go with classification or detection, windows with forecasting or anomaly.")
    if isinstance(how, WindowInput):
        _check_encoding(manifest, how, file)
    _check_output(manifest, file)


def _check_encoding(manifest: Manifest, how: WindowInput, file: Path) -> None:
    """Normalisation has a number for each channel, and covariates fill the second input."""
    for key in ("level", "scale") if how.normalise else ():
        numbers = getattr(how.normalise, key)
        if isinstance(numbers, str):
            continue
        if len(numbers) not in (1, len(how.channels)) or not all(map(math.isfinite, numbers)):
            raise Rejected(f"{file}: `input.normalise.{key}` must hold 1 or {len(how.channels)} numbers.")
        if key == "scale" and min(numbers) <= 0:
            raise Rejected(f"{file}: `input.normalise.scale` must be above zero.")
    if how.covariates is None:
        return
    for part in how.covariates.calendar:
        if part.columns == 0:
            raise Rejected(f"{file}: `{part.part}` has no classes, so it cannot be `{part.encoding}`.")
    horizon = manifest.task.horizon if isinstance(manifest.task, Forecasting) else 0
    expected = [1, how.length + horizon, how.covariates.columns]
    if list(manifest.inputs[1].shape) != expected:
        raise Rejected(
            f"{file}: the covariates have the shape {expected}, but the second input is "
            f"{list(manifest.inputs[1].shape)}."
        )


def _check_output(manifest: Manifest, file: Path) -> None:
    output, task = manifest.outputs[0], manifest.task
    if isinstance(task, Detection):
        check_head(manifest, task, file)
    elif isinstance(task, Forecasting):
        _check_forecast(manifest, task, file)
    elif isinstance(task, Anomaly):
        if not math.isfinite(task.threshold):
            raise Rejected(f"{file}: `task.threshold` must be a number.")
        expected = 1 if task.output == "score" else manifest.inputs[0].size
        if task.output == "residual":
            _check_residual(manifest, file)
        elif output.size != expected:
            raise Rejected(
                f"{file}: an anomaly output of kind `{task.output}` has {expected} numbers, but {list(output.shape)} "
                f"has {output.size}."
            )


def _check_forecast(manifest: Manifest, task: Forecasting, file: Path) -> None:
    output = manifest.outputs[0]
    if (task.channel is None) == (not task.channels):
        raise Rejected(f"{file}: a forecast has either a `task.channel` or `task.channels`.")
    sizes = (task.horizon, len(task.names), len(task.quantiles))
    if output.size != math.prod(sizes):
        of = f" of {sizes[1]} channels" if task.channels else ""
        raise Rejected(
            f"{file}: {sizes[0]} steps{of} of {sizes[2]} quantiles do not fill the output {list(output.shape)}."
        )
    # The numbers would fill another order of the axes as well, and mean something else.
    axes = [size for size in output.shape if size > 1]
    if task.channels and axes != [size for size in sizes if size > 1]:
        raise Rejected(f"{file}: the output's axes are [1, horizon, channels, quantiles], not {list(output.shape)}.")
    if list(task.quantiles) != sorted(set(task.quantiles)):
        raise Rejected(f"{file}: `task.quantiles` must rise.")
    if len(set(task.names)) != len(task.names):
        raise Rejected(f"{file}: `task.channels` names one twice.")
    for name in task.names:
        if isinstance(manifest.input, WindowInput) and name not in manifest.input.channels:
            key = "channels" if task.channels else "channel"
            raise Rejected(f"{file}: `task.{key}` {name!r} is none of the window's channels.")


def _check_residual(manifest: Manifest, file: Path) -> None:
    """A forecast has whole rows, and no more of them than the window that they will be found in."""
    how, output = manifest.input, manifest.outputs[0]
    assert isinstance(how, WindowInput)  # noqa: S101 - _check_task looked
    if output.size % len(how.channels) or output.size > how.length * len(how.channels):
        raise Rejected(
            f"{file}: an anomaly output of kind `residual` is 1 to {how.length} rows of {len(how.channels)} channels, "
            f"but {list(output.shape)} has {output.size} numbers."
        )


def _check_files(manifest: Manifest, file: Path) -> None:
    for name, entry in manifest.files.items():
        target = file.parent / name
        if target.is_symlink() or not target.is_file():
            raise Rejected(f"{file} lists {name}, but the folder has no such file. Copy the model again, whole.")
        size = target.stat().st_size
        if size != entry.bytes:
            raise Rejected(f"{target} has {size} bytes, but {file.name} says {entry.bytes}. Copy the model again.")
        if _sha256(target) != entry.sha256:
            raise Rejected(f"The SHA-256 of {target} is not what {file.name} says. Copy the model again.")


def _check_strays(package: Package) -> None:
    """Nothing that libdlr would pick up may lie unlisted beside a Neo artifact: it goes by the names' endings.

    Of `libdlr.so` neither it nor this runtime loads anything.
    """
    for file in sorted(package.path.iterdir()):
        if (
            file.suffix in NEO_SUFFIXES
            and file.name not in package.manifest.files
            and file.name not in ("libdlr.so", "libdlr.dylib")
        ):
            raise Rejected(f"{file} is not in the manifest, but a runtime may load it. Take it away.")


def _check_graph(package: Package, file: Path) -> None:
    """The graph's tensors must be those of the manifest: else a runtime would read or write out of bounds."""
    if file.stat().st_size > GRAPH_MAX_BYTES:
        raise Rejected(f"{file} is larger than {GRAPH_MAX_BYTES} bytes, which no graph needs.")
    try:
        graph = msgspec.json.decode(file.read_bytes(), type=Graph)
        _check_indices(graph)
        names = [node.name for node in graph.nodes]
        shapes, dtypes, rows = graph.attrs.shape[1], graph.attrs.dltype[1], graph.node_row_ptr
        inputs = [rows[names.index(spec.name)] for spec in package.manifest.inputs]
        heads = [rows[node] + output for node, output, *_ in graph.heads]
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Rejected(f"{file} is not the graph of this manifest: {error}") from error
    for spec, entry in zip(package.manifest.inputs, inputs, strict=True):
        if (list(spec.shape), spec.dtype) != (shapes[entry], dtypes[entry]):
            raise Rejected(
                f"The input {spec.name!r} of {file} is {dtypes[entry]} {shapes[entry]}, but the manifest says "
                f"{spec.dtype} {list(spec.shape)}."
            )
    declared = [(spec.size, spec.dtype) for spec in package.manifest.outputs]
    if [(math.prod(shapes[entry]), dtypes[entry]) for entry in heads] != declared:
        found = ", ".join(f"{dtypes[entry]} {shapes[entry]}" for entry in heads)
        raise Rejected(f"The outputs of {file} are {found}, which is not what the manifest says.")


def _check_indices(graph: Graph) -> None:
    """Every index in a graph must point into it.

    Raises:
        ValueError: one does not, or the lists that go together differ in length.
    """
    nodes, rows, entries = len(graph.nodes), graph.node_row_ptr, len(graph.attrs.shape[1])
    if {len(graph.attrs.dltype[1]), len(graph.attrs.storage_id[1])} != {entries}:
        raise ValueError("its attributes differ in length")
    if len(rows) != nodes + 1 or rows != sorted(rows) or rows[0] != 0 or rows[-1] != entries:
        raise ValueError("`node_row_ptr` does not fit the nodes")
    if any(size < 0 for shape in graph.attrs.shape[1] for size in shape):
        raise ValueError("a shape is negative")
    if not all(0 <= index < nodes and graph.nodes[index].op == "null" for index in graph.arg_nodes):
        raise ValueError("`arg_nodes` names what is no input")
    for index, node in enumerate(graph.nodes):
        if not all(
            0 <= source < index and 0 <= output < rows[source + 1] - rows[source] for source, output, *_ in node.inputs
        ):
            raise ValueError(f"the node {node.name!r} reads what comes later, or nothing")
    for source, output, *_ in graph.heads:
        if not (0 <= source < nodes and 0 <= output < rows[source + 1] - rows[source]):
            raise ValueError("`heads` names what is no output")


class Node(msgspec.Struct):
    """One node of a graph-executor graph: an input, a parameter or a kernel call."""

    op: str
    name: str
    inputs: list[list[int]] = []
    attrs: dict[str, str] = {}


class GraphAttrs(msgspec.Struct):
    """Per node output: dtype, shape and the storage it lives in."""

    dltype: tuple[str, list[str]]
    shape: tuple[str, list[list[int]]]
    storage_id: tuple[str, list[int]]


class Graph(msgspec.Struct):
    """The `.json` of a Neo artifact. Source: TVM's graph executor, as facts on the artifact have it."""

    nodes: list[Node]
    arg_nodes: list[int]
    heads: list[list[int]]
    attrs: GraphAttrs
    node_row_ptr: list[int]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
