"""The page on cameras: every configuration on it is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lisiere.config import parse_config
from support import REPOSITORY

PAGE = (REPOSITORY / "docs" / "inputs.md").read_text(encoding="utf-8")
IN_TABLE = [found for found in re.findall(r"`(\{type: [^`]*\})`", PAGE) if "…" not in found and "program" not in found]
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
# A block shows several of one key, one below the other.
IN_BLOCKS = [part for block in BLOCKS for part in re.split(r"^(?=\w)", block, flags=re.MULTILINE) if part.strip()]


@pytest.mark.parametrize("text", [*(f"source: {found}" for found in IN_TABLE), *IN_BLOCKS])
def test_what_it_shows_is_taken(text: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.yaml").touch()
    pipeline = {"name": "dock", "model": "model", "source": {"type": "images", "path": "x"}, **yaml.safe_load(text)}
    parse_config({"device": "gate", "pipelines": [pipeline]}, tmp_path)


def test_it_shows_something() -> None:
    assert len(IN_TABLE) >= 4
    assert len(IN_BLOCKS) >= 9
