from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from lisiere.errors import Rejected
from lisiere_compile import source
from lisiere_compile.source import open_source, unpack

from .conftest import dense, write_package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package", dense())


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as stream:
        for info, data in members:
            info.size = len(data)
            stream.addfile(info, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_folder_and_its_onnx_file_are_the_same_package(package: Path, tmp_path: Path) -> None:
    one = open_source(package, tmp_path / "w1")
    two = open_source(package / "m.onnx", tmp_path / "w2")
    assert one.manifest == two.manifest
    assert one.manifest is not None
    assert set(one.manifest.files) == {"m.onnx"}


@pytest.mark.parametrize("prefix", ["", "small/"])
def test_an_archive_is_unpacked(package: Path, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "model.tar.gz"
    with tarfile.open(path, "w:gz") as stream:
        for file in package.iterdir():
            stream.add(file, prefix + file.name)
    assert open_source(path, tmp_path / "work").name == "small"


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (member("../evil"), "outside"),
        (member("a/../../evil"), "outside"),
        (member("/evil"), "outside"),
        (member("a\\..\\evil"), "outside"),
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (member("link", tarfile.LNKTYPE, "m.onnx"), "link"),
        (member("fifo", tarfile.FIFOTYPE), "device"),
    ],
)
def test_a_hostile_member_is_refused(tmp_path: Path, info: tarfile.TarInfo, words: str) -> None:
    path = archive(tmp_path / "model.tar.gz", (info, b""))
    with pytest.raises(Rejected, match=words):
        unpack(path, tmp_path / "inner" / "to")
    assert not (tmp_path / "inner" / "evil").exists()
    assert not (tmp_path / "evil").exists()


def test_a_member_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "model.tar.gz", (member("a"), b"1"), (member("a"), b"2"))
    with pytest.raises(Rejected, match="twice"):
        unpack(path, tmp_path / "to")


def test_bounds_are_counted_on_what_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "model.tar.gz", (member("a"), bytes(60_000)), (member("b"), bytes(60_000)))
    monkeypatch.setattr(source, "ARCHIVE_MAX_BYTES", 100_000)
    with pytest.raises(Rejected, match="100000 bytes"):
        unpack(path, tmp_path / "to")
    monkeypatch.setattr(source, "ARCHIVE_MAX_FILES", 1)
    with pytest.raises(Rejected, match="more than 1 files"):
        unpack(path, tmp_path / "to2")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = archive(tmp_path / "model.tar.gz", (member("a", kind), bytes(3 << 20)), (member("b"), b"b"))
    with pytest.raises(Rejected, match="header of 3145728 bytes"):
        unpack(path, tmp_path / "to")


@pytest.mark.parametrize("keep", [0, 5, 40, -30])
def test_a_broken_archive_is_refused(package: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.tar.gz"
    with tarfile.open(path, "w:gz") as stream:
        stream.add(package / "m.onnx", "m.onnx")
    path.write_bytes(path.read_bytes()[:keep])  # by thirty from the end only padding is lost, and the checksum
    with pytest.raises(Rejected, match=r"not a whole|holds neither"):
        open_source(path, tmp_path / "work")


def test_a_model_without_a_model_yaml_is_tensors_alone(package: Path, tmp_path: Path) -> None:
    (package / "model.yaml").unlink()
    for path in (package / "m.onnx", package):
        found = open_source(path, tmp_path / "work")
        assert (found.file, found.framework, found.name, found.manifest) == (package / "m.onnx", "ONNX", "m", None)


def test_a_model_yaml_about_another_file_says_nothing_of_this_one(package: Path, tmp_path: Path) -> None:
    other = package / "other net (2).onnx"
    other.write_bytes((package / "m.onnx").read_bytes())
    found = open_source(other, tmp_path / "work")
    assert (found.file, found.name, found.manifest) == (other, "other-net-2", None)


@pytest.mark.parametrize(
    ("file", "framework", "said"),
    [
        ("net.tflite", None, "TFLITE"),
        ("net.PT2", None, "PYTORCH"),
        ("trees.ubj", None, "XGBOOST"),
        ("xgboost-model", "XGBOOST", "XGBOOST"),
    ],
)
def test_an_archive_with_one_model_of_any_framework(
    tmp_path: Path, file: str, framework: str | None, said: str
) -> None:
    path = archive(tmp_path / "model.tar.gz", (member(file), b"bytes"))
    found = open_source(path, tmp_path / "work", framework)
    assert (found.file.name, found.framework, found.manifest) == (file, said, None)


def test_a_model_yaml_without_onnx_is_about_the_model_of_another_framework(package: Path, tmp_path: Path) -> None:
    document = json.loads((package / "model.yaml").read_text())
    del document["onnx"]
    (package / "model.yaml").write_text(json.dumps(document))
    (package / "m.onnx").rename(package / "net.tflite")
    for path in (package, package / "net.tflite"):
        found = open_source(path, tmp_path / "work")
        assert (found.file.name, found.framework, found.name) == ("net.tflite", "TFLITE", "small")
    document["files"] = {}
    (package / "model.yaml").write_text(json.dumps(document))
    with pytest.raises(Rejected, match="lists `files` but no `onnx`"):
        open_source(package, tmp_path / "work")


def test_several_models_are_named(package: Path, tmp_path: Path) -> None:
    (package / "model.yaml").unlink()
    (package / "n.onnx").write_bytes(b"")
    with pytest.raises(Rejected, match=r"several models.*m\.onnx, n\.onnx"):
        open_source(package, tmp_path / "work")


def test_digests_that_are_given_are_checked(package: Path, tmp_path: Path) -> None:
    document = json.loads((package / "model.yaml").read_text())
    document["files"] = {"m.onnx": {"sha256": "0" * 64, "bytes": (package / "m.onnx").stat().st_size}}
    (package / "model.yaml").write_text(json.dumps(document))
    with pytest.raises(Rejected, match="SHA-256"):
        open_source(package, tmp_path / "work")


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "not YAML"), ("[]", "not a manifest"), ('{"schema": "lisiere.model/1"}', "not a manifest")],
)
def test_a_bad_model_yaml_is_refused(package: Path, tmp_path: Path, text: str, words: str) -> None:
    (package / "model.yaml").write_text(text)
    with pytest.raises(Rejected, match=words):
        open_source(package, tmp_path / "work")


def package_with_two(folder: Path) -> Path:
    (folder / "y.doc").write_text("y")
    return folder


def test_other_things_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="There is nothing at"):
        open_source(tmp_path / "none", tmp_path / "work")
    (tmp_path / "x.doc").write_text("x")
    with pytest.raises(Rejected, match="does not say of which framework"):
        open_source(tmp_path / "x.doc", tmp_path / "work")
    with pytest.raises(Rejected, match=r"neither a model\.yaml nor a model"):
        open_source(tmp_path, tmp_path / "work")
    with pytest.raises(Rejected, match="nor a TFLITE model"):
        open_source(package_with_two(tmp_path), tmp_path, "TFLITE")
