"""Settings of a view: pixels or shares, and what cannot be one is told before a frame comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from lisiere.errors import ConfigError
from lisiere.settings.view import ViewConfig, check_view, resolve_view

AT = "$.pipelines[0].view"
CORNER = [[0, 0], [0.5, 0], [0, 0.5]]


def view(**config: Any) -> ViewConfig:
    found = msgspec.convert(config, ViewConfig, strict=False)
    check_view(found, AT)
    return found


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"region": [0, 0, 1, 1]},
        {"region": ["0.1", "0.2", "0.9", "0.8"], "crop": "false"},
        {"region": [100, 50, 320, 240], "rotate": "90", "flip": "vertical"},
        {"mask": [CORNER, [[0, 0], [640, 0], [0, 480]]]},
    ],
)
def test_a_view_in_pixels_or_shares_is_taken(config: dict[str, Any]) -> None:
    view(**config)


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"region": [0, 0, 0, 10]}, ".region"),
        ({"region": [0.5, 0, 0.2, 0]}, ".region"),
        ({"region": [0.5, 0, 0.6, 1]}, ".region"),
        ({"region": [0, 0.2, 1, 0.9]}, ".region"),
        ({"region": [0.5, 0, 320, 240]}, ".region"),
        ({"mask": [CORNER, [[0, 0], [640.5, 0], [0, 480]]]}, ".mask[1]"),
        ({"mask": "absent.png"}, ".mask"),
        ({"mask": "/"}, ".mask"),
    ],
)
def test_what_cannot_be_a_view_is_told_with_its_place(config: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        view(**config)
    assert caught.value.path == AT + place


@pytest.mark.parametrize(
    "config",
    [
        {"region": [0, 0, 10]},
        {"region": [-1, 0, 10, 10]},
        {"region": ["nan", 0, 10, 10]},
        {"region": [0, 0, 1e9, 10]},
        {"rotate": 45},
        {"rotate": 360},
        {"rotate": -90},
        {"flip": "both"},
        {"mask": []},
        {"mask": [[[0, 0], [1, 1]]]},
        {"mask": [CORNER] * 101},
        {"zoom": 2},
    ],
)
def test_what_is_out_of_bounds_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        view(**config)


def test_a_mask_is_looked_for_from_the_configurations_folder(tmp_path: Path) -> None:
    (tmp_path / "mask.png").touch()
    found = resolve_view(ViewConfig(mask="mask.png"), lambda path, at: str(tmp_path / path) if at else "", AT)
    assert found.mask == str(tmp_path / "mask.png")
    check_view(found, AT)
    plain = ViewConfig(rotate=90)
    assert resolve_view(plain, lambda path, at: path + at, AT) is plain
