"""The source of a job: an ONNX file, a model package or an archive of one -> a verified package folder.

An archive comes from outside, so nothing in it may reach beyond the folder that it is unpacked into.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from lisiere.documents import read_yaml
from lisiere.errors import Rejected
from lisiere.models import Package, open_package, write_manifest
from lisiere.models.package import read_draft

ARCHIVE_MAX_BYTES = 4 << 30
ARCHIVE_MAX_FILES = 1000
_SUFFIXES = (".tar.gz", ".tgz")


def open_source(path: Path, work: Path) -> Package:
    """Return the verified package that a job's input stands for.

    Args:
        path: an `.onnx` file with its `model.yaml` beside it, a package folder, or a `.tar.gz` of one of these.
        work: an empty folder for what has to be unpacked or completed.

    Raises:
        Rejected: it is none of these, or not whole, or holds no ONNX file.
    """
    if path.is_file() and path.name.endswith(_SUFFIXES):
        unpack(path, work / "unpacked")
        path = _only_model(work / "unpacked", path)
    if path.is_file() and path.suffix == ".onnx":
        folder, onnx = path.parent, path.name
        if not (folder / "model.yaml").is_file():
            raise Rejected(
                f"{path} alone does not say what its input and output mean. Put a model.yaml beside it (schema "
                "lisiere.model/1: name, version, inputs, outputs, input, task, onnx); `files` may be left out."
            )
    elif path.is_dir():
        folder, onnx = path, None
    elif path.exists():
        raise Rejected(f"{path} is neither an .onnx file, nor a model folder, nor a .tar.gz of one.")
    else:
        raise Rejected(f"There is nothing at {path}.")
    package = open_package(_completed(folder, work / "completed"))
    if package.manifest.onnx is None:
        raise Rejected(f"{folder} holds no ONNX file, so there is nothing to compile.")
    if onnx is not None and package.manifest.onnx != onnx:
        raise Rejected(f"{folder / 'model.yaml'} is about {package.manifest.onnx}, not about {onnx}.")
    return package


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


def _only_model(folder: Path, archive: Path) -> Path:
    """Find the model in an unpacked archive: at its top, or in the one folder that it holds."""
    for place in (folder, *sorted(child for child in folder.iterdir() if child.is_dir())):
        if (place / "manifest.yaml").is_file() or (place / "model.yaml").is_file():
            return place
    models = sorted(folder.rglob("*.onnx"))
    if len(models) == 1:
        return models[0]
    raise Rejected(f"{archive} holds neither a model.yaml nor exactly one .onnx file.")


def unpack(archive: Path, to: Path) -> None:
    """Unpack a `.tar.gz`: plain files and folders only, inside `to`, within the bounds.

    Sizes are counted as bytes come out, so that neither a header nor a compression ratio can lie.

    Raises:
        Rejected: a member is a link, a device or outside; there is too much; or it is no such archive.
    """
    to.mkdir(parents=True)
    try:
        with gzip.open(archive) as data:
            with tarfile.open(fileobj=data, mode="r:") as stream:
                _extract(stream, to, archive)
            # To the very end, where gzip's checksum stands: a tar may end long before a cut does.
            rest = 0
            while chunk := data.read(1 << 20):
                rest += len(chunk)
                _check_size(rest, ARCHIVE_MAX_BYTES, archive)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise Rejected(f"{archive} is not a whole .tar.gz: {error}.") from error


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
