"""Matching: the windows that a configuration asks for, and those that a model takes."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from lisiere.errors import ConfigError
from lisiere.models.manifest import WindowInput
from lisiere.settings.window import WindowConfig

OPEN_ROWS_MAX = 100_000  # that `lateness_s` may keep open
_IDLE_S, _IDLE_STEPS = 30.0, 10


def window_input(config: WindowConfig, model: WindowInput, path: str) -> WindowInput:
    """Return the windows to make for a model: its own, with what the configuration may choose.

    Args:
        config: what the configuration says of windows.
        model: what the model's manifest says.
        path: where the configuration has `window`.

    Raises:
        ConfigError: the model takes other windows than the configuration says, a whole one would be interpolated, or
            too many rows are kept open.
    """
    stated: dict[str, tuple[Any, Any]] = {
        "channels": (config.channels, model.channels),
        "length": (config.length, model.length),
        "step_s": (config.step_s, model.step_s),
    }
    for name, (asked, taken) in stated.items():
        if asked is not None and asked != taken:
            raise ConfigError(f"It is {_said(asked)}, but the model takes windows whose {name} is {_said(taken)}.",
                              f"{path}.{name}")  # fmt: skip
    if config.lateness_s / model.step_s > OPEN_ROWS_MAX:
        raise ConfigError(
            f"{config.lateness_s:g} s are more than {OPEN_ROWS_MAX:,} steps of {model.step_s:g} s.",
            f"{path}.lateness_s",
        )
    if config.max_gap is not None and config.max_gap >= model.length:
        raise ConfigError(
            f"A gap of {config.max_gap} rows would fill a whole window, which has {model.length}: nothing in it would "
            "be measured.",
            f"{path}.max_gap",
        )
    return replace(
        model,
        stride=model.stride if config.stride is None else config.stride,
        max_gap=model.max_gap if config.max_gap is None else config.max_gap,
    )


def idle_seconds(config: WindowConfig, how: WindowInput) -> float:
    """Return after how many seconds of silence the clock closes windows; infinity for never."""
    if config.idle_s is None:
        return max(_IDLE_S, max(_IDLE_STEPS, how.max_gap + 2) * how.step_s) + config.lateness_s
    return config.idle_s or float("inf")


def _said(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else f"{value:g}"
