"""What a configuration asks of windows, and what a model takes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lisiere.errors import ConfigError
from lisiere.models.manifest import WindowInput
from lisiere.settings.window import WindowConfig
from lisiere.windows import OPEN_ROWS_MAX, idle_seconds, window_input

MODEL = WindowInput(channels=("flow", "head"), length=96, step_s=60.0, stride=4, max_gap=3)


def test_the_model_decides_unless_the_configuration_may() -> None:
    assert window_input(WindowConfig(), MODEL, "$.window") == MODEL
    told = WindowConfig(channels=("flow", "head"), length=96, step_s=60, stride=96, max_gap=0)
    found = window_input(told, MODEL, "$.window")
    assert (found.stride, found.max_gap) == (96, 0)
    assert (found.channels, found.length, found.step_s) == (MODEL.channels, 96, 60.0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"length": 48}, r"^\$\.p\.window\.length: It is 48, but the model takes windows whose length is 96\."),
        ({"step_s": 1}, r"^\$\.p\.window\.step_s: It is 1, but the model takes windows whose step_s is 60\."),
        ({"channels": ("head", "flow")}, r"^\$\.p\.window\.channels: It is head, flow, but .* is flow, head\."),
        ({"max_gap": 96}, r"^\$\.p\.window\.max_gap: A gap of 96 rows would fill a whole window"),
        ({"lateness_s": 60.0 * OPEN_ROWS_MAX + 60}, r"^\$\.p\.window\.lateness_s: .* more than 100,000 steps of 60 s"),
    ],
)
def test_other_windows_than_the_models_are_refused_by_their_place(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        window_input(WindowConfig(**asked), MODEL, "$.p.window")


@pytest.mark.parametrize(
    ("asked", "step_s", "max_gap", "seconds"),
    [
        ({}, 0.01, 0, 30.0),
        ({}, 60.0, 0, 600.0),
        ({}, 60.0, 20, 1320.0),
        ({"lateness_s": 90.0}, 1.0, 0, 120.0),
        ({"idle_s": 2.0, "lateness_s": 90.0}, 60.0, 20, 2.0),
        ({"idle_s": 0.0}, 1.0, 0, math.inf),
    ],
)
def test_silence_is_taken_for_such_after_a_while(
    asked: dict[str, Any], step_s: float, max_gap: int, seconds: float
) -> None:
    how = WindowInput(channels=("flow",), length=8, step_s=step_s, max_gap=max_gap)
    assert idle_seconds(WindowConfig(**asked), how) == seconds
