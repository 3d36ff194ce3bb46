"""docs/subscribing.md: its programs run as they stand there, and print what stands below them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import REPOSITORY
from support.brokers import running_mosquitto
from support.publisher import Device

PAGE = (REPOSITORY / "docs" / "subscribing.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
WAIT_S = 30
# So that the test knows when a program can hear it.
PRELUDE = """
from lisiere.subscriber import Subscriber
def announce(self, open=Subscriber.open):
    open(self)
    print("subscribed")
Subscriber.open = announce
"""


def test_every_program_on_the_page_is_tried() -> None:
    assert len(EXAMPLES) == PAGE.count("```python") >= 4


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_a_program_prints_what_the_page_says(number: int, tmp_path: Path) -> None:
    program, expected = EXAMPLES[number]
    with running_mosquitto() as port:
        assert '"broker.example"' in program
        program = PRELUDE + program.replace('"broker.example"', f'"127.0.0.1", {port}')
        device = Device(("127.0.0.1", port))
        child = subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "subscribed\n"
            device.results(1, 2)
            device.results(2)  # at least once
            device.send("gap", device.make.gap(45, [(3, 44)], {"dock": 42}))
            device.results(46)
            for line in expected.splitlines():
                assert child.stdout.readline().rstrip("\n") == line
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
            device.close()
