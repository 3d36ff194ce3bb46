"""The scenario document: which devices run which pipelines on what input, and what goes wrong when.

Times are seconds since the device came online. Unknown keys are errors, and every error names its path.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from lisiere.config import Level, QueueConfig
from lisiere.documents import read_yaml
from lisiere.errors import ConfigError, Rejected
from lisiere.settings.decision import DecisionConfig
from lisiere.settings.window import WindowConfig
from lisiere_sim.pump import Fault as PumpFaultKind

Positive = Annotated[float, Meta(gt=0, le=86_400)]
# What goes wrong with an input for a while, by its key.
_SINGULAR = {"faults": "fault", "gaps": "gap", "freezes": "freeze"}
NotNegative = Annotated[float, Meta(ge=0, le=86_400)]


class _Part(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What all parts share: unknown keys are errors. Type checkers want the rest said at each class."""


class Freeze(_Part, frozen=True, kw_only=True):
    """A time in which the camera sends its last picture again and again; seconds since it began to be read."""

    at_s: Positive
    length_s: Positive


class CameraInput(_Part, tag="camera", tag_field="kind", frozen=True, kw_only=True):
    """A virtual camera that looks at handwritten digits: a video file of `frames` rendered frames, in a loop.

    One that freezes has frames for the whole scenario instead, so that it does so only once.

    Attributes:
        glyphs: an .npz with `glyphs`, uint8 [n, 8, 8]; digits that no model was trained on.
        hold: for how many frames a digit stays, each time seen a little differently.
    """

    glyphs: str = "models/digits/heldout.npz"
    fps: Annotated[float, Meta(gt=0, le=120)] = 10.0
    frames: Annotated[int, Meta(ge=2, le=10_000)] = 120
    hold: Annotated[int, Meta(ge=1, le=10_000)] = 1
    width: Annotated[int, Meta(ge=32, le=1920)] = 160
    height: Annotated[int, Meta(ge=32, le=1080)] = 120
    freezes: tuple[Freeze, ...] = ()


class PumpFault(_Part, frozen=True, kw_only=True):
    """A fault of the pump that is there for a while."""

    kind: PumpFaultKind
    at_s: NotNegative
    length_s: Positive
    severity: Annotated[float, Meta(gt=0, le=1)] = 0.8


class SensorGap(_Part, frozen=True, kw_only=True):
    """A time in which the sensor says nothing, though the device listens."""

    at_s: NotNegative
    length_s: Positive


class PumpInput(_Part, tag="pump", tag_field="kind", frozen=True, kw_only=True):
    """The virtual pump: vibration in real time on the device's socket, `block` samples a line."""

    channel: str = "vibration"
    rate_hz: Annotated[float, Meta(ge=16, le=20_000)] = 512.0
    block: Annotated[int, Meta(ge=1, le=10_000)] = 64
    faults: tuple[PumpFault, ...] = ()
    gaps: tuple[SensorGap, ...] = ()


class CsvInput(_Part, tag="csv", tag_field="kind", frozen=True, kw_only=True):
    """A recorded series, replayed faster than it was recorded: `rows_per_s` rows a second.

    The record must last for the scenario: it is neither repeated nor made longer.
    """

    path: str = "models/co2/holdout.csv"
    time: str = "time"
    rows_per_s: Annotated[float, Meta(gt=0, le=10_000)] = 5.0


class Pipeline(_Part, frozen=True, kw_only=True):
    """One input through one model.

    Attributes:
        model: a name in --models, or the path of a model folder.
        decision, window: as in a device's configuration.
    """

    name: Level
    input: CameraInput | PumpInput | CsvInput
    model: Annotated[str, Meta(min_length=1)]
    queue: QueueConfig = field(default_factory=lambda: QueueConfig(policy="all", size=64))
    decision: DecisionConfig | None = None
    window: WindowConfig | None = None


class Device(_Part, frozen=True, kw_only=True):
    """One device.

    Attributes:
        name: what it is called in topics; as a Greengrass core, the name of its thing.
        runtime: `process` is `lisiere run` with a configuration file and MQTT of its own; `greengrass` is the
            component in the laptop nucleus, configured by a deployment, on the nucleus's connection.
        flavour: which nucleus; classic without it. It goes with `greengrass`.
    """

    name: Level
    runtime: Literal["process", "greengrass"] = "process"
    flavour: Literal["classic", "lite"] | None = None
    pipelines: Annotated[tuple[Pipeline, ...], Meta(min_length=1, max_length=64)]


class Fault(_Part, frozen=True, kw_only=True):
    """What goes wrong.

    Attributes:
        kind: `cut` closes every connection of all devices, `delay` holds everything back for `delay_ms` each way,
            `stall` keeps connections open and forwards nothing, `kill` is kill -9 of one device, which is started
            again after `length_s` (a component is started again by its nucleus, at once).
        device: who is killed.
    """

    kind: Literal["cut", "delay", "stall", "kill"]
    at_s: NotNegative
    length_s: Positive
    device: Level | None = None
    delay_ms: Annotated[float, Meta(gt=0, le=60_000)] | None = None

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.at_s + self.length_s


class Scenario(_Part, frozen=True, kw_only=True):
    """A whole scenario."""

    duration_s: Positive
    seed: int = 0
    devices: Annotated[tuple[Device, ...], Meta(min_length=1, max_length=16)]
    faults: tuple[Fault, ...] = ()


def load_scenario(file: Path | None) -> Scenario:
    """Read a scenario, or the default one when there is no file.

    Raises:
        ConfigError: it cannot be read or is wrong; the message names the place.
    """
    try:
        if file is not None:
            return parse_scenario(read_yaml(file))
        with resources.as_file(resources.files("lisiere_sim").joinpath("scenarios/default.yaml")) as built_in:
            return parse_scenario(read_yaml(built_in))
    except Rejected as error:
        raise ConfigError(str(error)) from error


def parse_scenario(document: Any) -> Scenario:
    """Validate a document.

    Raises:
        ConfigError: with the path of what is wrong.
    """
    try:
        scenario = msgspec.convert(document, Scenario, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        raise ConfigError(f"{message}.", path.rstrip("`") or "$") from error
    _check_names(scenario)
    _check_faults(scenario)
    return scenario


def _check_names(scenario: Scenario) -> None:
    devices: set[str] = set()
    for index, device in enumerate(scenario.devices):
        if device.name in devices:
            raise ConfigError(f"Two devices are called {device.name!r}.", f"$.devices[{index}].name")
        devices.add(device.name)
        if device.flavour is not None and device.runtime != "greengrass":
            raise ConfigError("`flavour` goes with the runtime `greengrass`.", f"$.devices[{index}].flavour")
        _check_pipelines(device, f"$.devices[{index}]", scenario.duration_s)


def _check_pipelines(device: Device, where: str, duration_s: float) -> None:
    seen: set[str] = set()
    for index, pipeline in enumerate(device.pipelines):
        if pipeline.name in seen:
            raise ConfigError(f"Two pipelines are called {pipeline.name!r}.", f"{where}.pipelines[{index}].name")
        seen.add(pipeline.name)
        for kind in _SINGULAR:
            for number, part in enumerate(getattr(pipeline.input, kind, ())):
                if part.at_s + part.length_s > duration_s:
                    raise ConfigError(
                        f"The {_SINGULAR[kind]} ends after the scenario's {duration_s:g} s.",
                        f"{where}.pipelines[{index}].input.{kind}[{number}]",
                    )


def _check_faults(scenario: Scenario) -> None:
    """Every fault ends within the scenario; the link has one state at a time, and a device dies once at a time."""
    names = [device.name for device in scenario.devices]
    free: dict[str | None, float] = dict.fromkeys([*names, None], 0.0)  # None is the link, which all share
    for index, fault in sorted(enumerate(scenario.faults), key=lambda item: item[1].at_s):
        path = f"$.faults[{index}]"
        if fault.end_s > scenario.duration_s:
            raise ConfigError(f"The fault ends after the scenario's {scenario.duration_s:g} s.", path)
        if (fault.delay_ms is not None) != (fault.kind == "delay"):
            raise ConfigError("`delay_ms` goes with `delay`, and only with it.", f"{path}.delay_ms")
        if (fault.device is not None) != (fault.kind == "kill"):
            raise ConfigError("`device` goes with `kill`, and only with it: all share the link.", f"{path}.device")
        if fault.device not in free:
            raise ConfigError(f"No device is called {fault.device!r}; there are {', '.join(names)}.", f"{path}.device")
        if fault.at_s < free[fault.device]:
            what = "link" if fault.device is None else "device"
            raise ConfigError(f"It begins while another fault of the {what} lasts.", f"{path}.at_s")
        free[fault.device] = fault.end_s
