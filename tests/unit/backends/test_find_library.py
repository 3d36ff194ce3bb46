"""Where libdlr is looked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lisiere.backends.dlr import ENVIRONMENT, find_library

NAME = "libdlr.dylib" if sys.platform == "darwin" else "libdlr.so"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages with the wheel of dlr in it, as pip leaves it, and nothing else to find one in."""
    site = tmp_path / "lib" / "site-packages"
    record = site / "dlr-1.6.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: dlr\nVersion: 1.6.0\n")
    (record / "RECORD").write_text(f"dlr/__init__.py,,\n../../dlr/{NAME},,\ndlr-1.6.0.dist-info/METADATA,,\n")
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(sys, "path", [str(site)])
    return site


def test_the_wheels_record_says_where_it_is_whatever_the_interpreters_prefix(site: Path, tmp_path: Path) -> None:
    library = tmp_path / "dlr" / NAME
    library.parent.mkdir()
    library.touch()
    assert find_library() == library


def test_a_library_that_is_recorded_but_gone_is_not_found(site: Path) -> None:
    assert find_library() is None


def test_without_the_wheel_there_is_none(site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_library() is None


def test_the_environment_comes_first(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "/opt/libdlr.so")
    assert find_library() == Path("/opt/libdlr.so")
