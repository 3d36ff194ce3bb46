"""The Greengrass component built in two clones, models and all."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import cross_tools
from support.components import clone, digests, finish, start


@pytest.mark.soak
def test_two_clones_compile_and_build_the_same_bytes(tmp_path: Path) -> None:
    cross_tools("aarch64")
    cross_tools("armv7l")
    trees = [clone(tmp_path / "one", 0, 0o644), clone(tmp_path / "another-one", 1e7, 0o600)]
    for process in [start(tree) for tree in trees]:
        finish(process)
    one, other = (digests(tree / "greengrass-build") for tree in trees)
    assert len(one) == 2
    assert one == other
