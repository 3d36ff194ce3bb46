"""The place of an artifact: its folder and its archive come together or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lisiere.errors import Rejected
from lisiere.models import open_package
from lisiere.models.manifest import Detection, SsdRawHead
from lisiere_compile.artifact import archive_of, declared, pack, placed, write_meaning
from lisiere_compile.source import open_source
from support.detectors import detector


def place(final: Path, text: str) -> None:
    with placed(final) as folder:
        (folder / "manifest.yaml").write_text(text)
        pack(folder)


def test_a_failure_half_way_puts_the_old_folder_and_archive_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "model-target"
    place(final, "old")
    archive = archive_of(final).read_bytes()
    rename = Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        if self.name == "new.tar.gz":
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place(final, "new")
    assert (final / "manifest.yaml").read_text() == "old"
    assert archive_of(final).read_bytes() == archive
    assert sorted(tmp_path.iterdir()) == [final, archive_of(final)]
    # Without old ones nothing stays.
    with pytest.raises(KeyboardInterrupt):
        place(tmp_path / "other-target", "new")
    assert len(list(tmp_path.iterdir())) == 2


def test_no_archive_ever_lies_beside_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power failure leaves between any two steps."""
    final = tmp_path / "model-target"
    place(final, "old")
    states: list[tuple[str | None, bool]] = []
    rename = Path.rename

    def watched(self: Path, to: Path) -> Path:
        done = rename(self, to)
        manifest = final / "manifest.yaml"
        states.append((manifest.read_text() if manifest.exists() else None, archive_of(final).exists()))
        return done

    monkeypatch.setattr(Path, "rename", watched)
    place(final, "new")
    assert states == [("old", False), (None, False), ("new", False), ("new", True)]


def test_what_is_no_archive_is_not_replaced(tmp_path: Path) -> None:
    final = tmp_path / "model-target"
    archive_of(final).mkdir()
    with pytest.raises(Rejected, match="is not a file"):
        place(final, "new")
    assert not final.exists()


def test_priors_go_along_under_a_name_that_libdlr_leaves_alone(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "anchors.json").write_text("0.25,0.5,0.5,0.5\n")
    head = SsdRawHead(boxes="boxes", scores="scores", priors="anchors.json")
    outputs = {"boxes": np.zeros((1, 1, 4), np.float32), "scores": np.zeros((1, 1, 4), np.float32)}
    package = open_package(detector(tmp_path / "package", head, outputs))
    source = open_source(package.path, tmp_path / "work")
    (tmp_path / "artifact").mkdir()
    declares = declared(source, package.manifest.inputs, package.manifest.outputs)
    write_meaning(tmp_path / "artifact", source, declares, package.path / "model.onnx")
    found = open_package(tmp_path / "artifact")
    assert isinstance(found.manifest.task, Detection)
    assert isinstance(found.manifest.task.head, SsdRawHead)
    assert found.manifest.task.head.priors == "priors.csv"
    assert found.file("priors.csv").read_text() == "0.25,0.5,0.5,0.5\n"
    assert {file.name for file in found.path.iterdir()} == {"manifest.yaml", "labels.txt", "model.onnx", "priors.csv"}
