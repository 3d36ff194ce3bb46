"""The source of a job: a model file, a model package or an archive of one -> the model and what its author says of it.

An archive comes from outside, so nothing in it may reach beyond the folder that it is unpacked into.
"""

from __future__ import annotations

import gzip
import re
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from lisiere.documents import read_yaml
from lisiere.errors import Rejected
from lisiere.models import Manifest, open_package, write_manifest
from lisiere.models.package import MANIFEST_NAMES, read_draft

ARCHIVE_MAX_BYTES = 4 << 30
ARCHIVE_MAX_FILES = 1000
_READ_MAX_BYTES = 2 << 20
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")
# How the files of a framework end; the first that fits says the framework of a model that comes without a job.
_SUFFIXES = {
    "ONNX": (".onnx",),
    "TFLITE": (".tflite",),
    "PYTORCH": (".pt2", ".pt", ".pth"),
    "XGBOOST": (".ubj", ".json", ".xgb", ".model"),
    "LIGHTGBM": (".txt", ".lgb"),
    "SKLEARN": (".skops", ".pkl", ".joblib"),
    "KERAS": (".h5", ".keras"),
    "TENSORFLOW": (".pb",),
    "MXNET": (".params",),
    "DARKNET": (".weights", ".cfg"),
}


@dataclass(frozen=True)
class Source:
    """A model to compile.

    Attributes:
        file: the model, in the format of its framework.
        framework: as in a job, such as `ONNX`.
        manifest: what a model.yaml says of it, as the author wrote it; None for a bare model.
        folder: where the files that the manifest names lie, such as labels and golden vectors.
        given_name: in place of what manifest and file say.
    """

    file: Path
    framework: str
    manifest: Manifest | None
    folder: Path
    given_name: str | None = None

    @property
    def name(self) -> str:
        """The name that was given, else the manifest's, else one made from the file's; fit for a manifest."""
        return self.given_name or (self.manifest.name if self.manifest else plain_name(self.file.stem))


def open_source(path: Path, work: Path, framework: str | None = None) -> Source:
    """Return the model that a job's input stands for.

    Args:
        path: a model file, with or without a `model.yaml` beside it that is about it; a folder with a `model.yaml`, or
            with one model; or a `.tar.gz` of one of these.
        work: an empty folder for what has to be unpacked or completed.
        framework: as in a job; None takes it from the file.

    Raises:
        Rejected: it is none of these, or not whole.
    """
    if not path.exists():
        raise Rejected(f"There is nothing at {path}.")
    if path.is_file() and path.name.endswith(ARCHIVE_SUFFIXES):
        unpack(path, work / "unpacked")
        folder, file = _inner_folder(work / "unpacked"), None
    else:
        folder, file = (path, None) if path.is_dir() else (path.parent, path)
    written = next((folder / name for name in MANIFEST_NAMES if (folder / name).is_file()), None)
    document = read_yaml(written) if written else None
    # Whatever else is wrong with a manifest, reading it as one says.
    about = document.get("onnx") or document.get("neo") if isinstance(document, dict) else None
    if file is None and (written is None or (about is None and isinstance(document, dict))):
        file = _only_model(folder, framework, path)
    framework = framework or (framework_of(file) if file else "ONNX")
    if framework == "ONNX" and written and (file is None or about == file.name):
        package = open_package(_completed(folder, work / "completed"))
        if package.manifest.onnx is None:
            raise Rejected(f"{folder} holds no ONNX file, so there is nothing to compile.")
        return Source(package.file(package.manifest.onnx), framework, package.manifest, package.path)
    file = file or _only_model(folder, framework, path)
    if written is None or about is not None:
        return Source(file, framework, None, folder)  # a manifest about another file says nothing of this one
    if isinstance(document, dict) and "files" in document:
        raise Rejected(f"{written} lists `files` but no `onnx`. Leave both out for a model of {framework}.")
    return Source(file, framework, read_draft(written), folder)


def framework_of(file: Path) -> str:
    """Return the framework whose files end as this one does, or begin so where the ending says nothing.

    Raises:
        Rejected: there is none.
    """
    from lisiere_compile.trees.load import sniff

    for framework, suffixes in _SUFFIXES.items():
        if file.name.lower().endswith(suffixes):
            return framework
    if found := sniff(file):
        return found
    known = ", ".join(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
    raise Rejected(
        f"{file.name} does not say of which framework it is: its name ends in none of {known}. Say it with "
        "`--framework`."
    )


def plain_name(text: str) -> str:
    """Return a name that a manifest may have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._")[:64] or "model"


def _completed(folder: Path, to: Path) -> Path:
    """Return the folder, or a copy with digests when its model.yaml is one as an author writes it, without `files`."""
    file = folder / "model.yaml"
    if (folder / "manifest.yaml").is_file() or not file.is_file():
        return folder
    document = read_yaml(file)
    if not isinstance(document, dict) or "files" in document:
        return folder  # whatever is wrong with it, open_package says
    manifest = read_draft(file)
    to.mkdir(parents=True)
    for name in set(manifest.roles().values()):
        if (folder / name).is_file():  # write_manifest names what is absent
            shutil.copyfile(folder / name, to / name)
    write_manifest(manifest, to / "model.yaml")
    return to


def _inner_folder(folder: Path) -> Path:
    """Return the folder that an archive is about: its top, or the one folder that it holds."""
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _only_model(folder: Path, framework: str | None, where: Path) -> Path:
    """Find the one model in a folder: by the endings of its framework, or of each framework in turn."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for suffixes in [_SUFFIXES.get(framework, ())] if framework else _SUFFIXES.values():
        models = [file for file in files if file.name.lower().endswith(suffixes)]
        if len(models) == 1:
            return models[0]
        if models:
            names = ", ".join(str(file.relative_to(folder)) for file in models)
            raise Rejected(f"{where} holds several models and no model.yaml that says which is meant: {names}.")
    if framework and len(files) == 1:
        return files[0]  # some, such as SageMaker's `xgboost-model`, have no ending
    kind = f"{framework} model" if framework else "model"
    raise Rejected(f"{where} holds neither a model.yaml nor a {kind}.")


def unpack(archive: Path, to: Path) -> None:
    """Unpack a `.tar.gz`: plain files and folders only, inside `to`, within the bounds.

    Sizes are counted as bytes come out, so that neither a header nor a compression ratio can lie.

    Raises:
        Rejected: a member is a link, a device or outside; there is too much; or it is no such archive.
    """
    to.mkdir(parents=True)
    try:
        with gzip.open(archive) as data:
            with tarfile.open(fileobj=cast(IO[bytes], _Careful(data, archive)), mode="r:") as stream:
                _extract(stream, to, archive)
            # To the very end, where gzip's checksum stands: a tar may end long before a cut does.
            rest = 0
            while chunk := data.read(1 << 20):
                rest += len(chunk)
                _check_size(rest, ARCHIVE_MAX_BYTES, archive)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise Rejected(f"{archive} is not a whole .tar.gz: {error}.") from error


class _Careful:
    """A stream whose single reads are bounded: tarfile reads a long name or an extended header whole, however long."""

    def __init__(self, stream: gzip.GzipFile, archive: Path) -> None:
        self._stream, self._archive = stream, archive
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _READ_MAX_BYTES:
            raise Rejected(f"{self._archive} has a header of {size} bytes, which no model needs.")
        return self._stream.read(size)


def _extract(stream: tarfile.TarFile, to: Path, archive: Path) -> None:
    total = 0
    for count, member in enumerate(stream, 1):
        if count > ARCHIVE_MAX_FILES:
            raise Rejected(f"{archive} holds more than {ARCHIVE_MAX_FILES} files.")
        target = to / _safe_name(member, archive)
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        data = stream.extractfile(member)
        if data is None or target.exists():
            raise Rejected(f"{archive} holds {member.name!r} twice, or as something that cannot be read.")
        target.parent.mkdir(parents=True, exist_ok=True)
        total += _write(data, target, ARCHIVE_MAX_BYTES - total, archive)


def _safe_name(member: tarfile.TarInfo, archive: Path) -> Path:
    name = PurePosixPath(member.name)
    if not (member.isfile() or member.isdir()):
        raise Rejected(f"{archive} holds {member.name!r}, which is a link or a device; only plain files are taken.")
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or "\0" in member.name:
        raise Rejected(f"{archive} holds {member.name!r}, which would be written outside of its folder.")
    return Path(*name.parts)


def _write(data: IO[bytes], target: Path, most: int, archive: Path) -> int:
    written = 0
    with target.open("xb") as file:
        while chunk := data.read(1 << 20):
            written += len(chunk)
            _check_size(written, most, archive)
            file.write(chunk)
    return written


def _check_size(size: int, most: int, archive: Path) -> None:
    if size > most:
        raise Rejected(f"{archive} unpacks to more than {ARCHIVE_MAX_BYTES} bytes.")
