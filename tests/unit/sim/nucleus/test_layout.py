"""The nucleus's root."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lisiere.ipc import Environment
from lisiere_sim.nucleus.flavour import CLASSIC, FLAVOURS, LITE, Flavour
from lisiere_sim.nucleus.layout import Layout


@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS.keys())
def test_a_component_can_tell_the_nuclei_apart_by_their_socket(tmp_path: Path, flavour: Flavour) -> None:
    assert Environment(str(Layout(tmp_path, flavour).socket), "token").is_lite == (flavour is LITE)


KILLED = """
import os, pathlib, sys
from lisiere_sim.nucleus.flavour import LITE
from lisiere_sim.nucleus.layout import Layout
layout = Layout(pathlib.Path(sys.argv[1]), LITE)
layout.make()
layout.lock()
for file in (layout.socket, layout.control):
    file.touch()
    print(file)
sys.stdout.flush()
os._exit(9)
"""


def test_a_killed_nucleus_leaves_no_socket_to_the_next_of_the_other_flavour(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 20)  # so that the sockets are in a folder of their own
    done = subprocess.run([sys.executable, "-c", KILLED, str(deep)], capture_output=True, text=True, check=False)
    left = [Path(line) for line in done.stdout.split()]
    assert done.returncode == 9
    assert all(file.exists() for file in left)
    after = Layout(deep, CLASSIC)
    after.lock()
    after.unlock()
    assert not left[0].parent.exists()


def test_components_do_not_read_each_others_configuration_and_logs(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "root")
    layout.make()
    assert {oct(folder.stat().st_mode & 0o777) for folder in (layout.config, layout.logs)} == {"0o700"}
