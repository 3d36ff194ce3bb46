from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lisiere.errors import ConfigError
from lisiere_sim.device import pipelines_config
from lisiere_sim.scenario import CameraInput, CsvInput, PumpInput, Scenario, load_scenario, parse_scenario

DOCK = {"name": "dock", "model": "digits", "input": {"kind": "camera"}}


def document(**changes: Any) -> dict[str, Any]:
    return {
        "duration_s": 10,
        "devices": [{"name": "gate", "pipelines": [DOCK]}],
        **changes,
    }


def with_pipelines(*pipelines: Any, **more: Any) -> dict[str, Any]:
    return document(devices=[{"name": "gate", "pipelines": list(pipelines), **more}])


def with_input(**given: Any) -> dict[str, Any]:
    return with_pipelines({**DOCK, "input": given})


def test_the_default_has_two_devices_a_camera_two_series_and_one_outage() -> None:
    scenario = load_scenario(None)
    pipelines = [pipeline for device in scenario.devices for pipeline in device.pipelines]
    kinds = {type(pipeline.input) for pipeline in pipelines}
    assert kinds == {CameraInput, PumpInput, CsvInput}
    assert {pipeline.model for pipeline in pipelines} == {"digits", "pump", "co2"}
    assert [device.runtime for device in scenario.devices] == ["process", "greengrass"]
    assert [fault.kind for fault in scenario.faults] == ["cut"]
    assert 30 <= scenario.duration_s <= 60
    pump = next(pipeline.input for pipeline in pipelines if isinstance(pipeline.input, PumpInput))
    assert pump.faults
    assert [gap.length_s > 1 for gap in pump.gaps] == [True]


def test_what_is_decided_goes_to_the_device() -> None:
    dock = {**DOCK, "decision": {"threshold": 0.8, "events": {"min_s": 1}}}
    gate = parse_scenario(with_pipelines(dock, {**DOCK, "name": "other"})).devices[0]
    one, other = pipelines_config(gate, {"dock": {}, "other": {}}, {"dock": Path("a"), "other": Path("b")})
    assert one["decision"]["threshold"] == 0.8
    assert one["decision"]["events"]["min_s"] == 1
    assert "decision" not in other


def test_numbers_may_come_as_strings() -> None:
    assert parse_scenario(document(duration_s="10")).duration_s == 10


def test_a_gap_of_a_sensor_ends_within_the_scenario() -> None:
    given = with_input(kind="pump", gaps=[{"at_s": 1, "length_s": 2}, {"at_s": 5, "length_s": 1e4}])
    with pytest.raises(ConfigError, match=r"input\.gaps\[1\]: The gap ends after the scenario"):
        parse_scenario(given)
    given = with_input(kind="camera", freezes=[{"at_s": 1, "length_s": 1e4}])
    with pytest.raises(ConfigError, match=r"input\.freezes\[0\]: The freeze ends after the scenario"):
        parse_scenario(given)


def test_every_kind_of_fault_is_understood() -> None:
    faults = [
        {"kind": "cut", "at_s": 1, "length_s": 1},
        {"kind": "kill", "device": "gate", "at_s": 1, "length_s": 0.5},
        {"kind": "stall", "at_s": 2, "length_s": 1},
        {"kind": "delay", "at_s": 3, "length_s": 1, "delay_ms": 50},
        {"kind": "kill", "device": "gate", "at_s": 3, "length_s": 7},
    ]
    assert len(parse_scenario(document(faults=faults)).faults) == 5


@pytest.mark.parametrize(
    ("wrong", "path", "text"),
    [
        (None, "$", "object"),
        ([], "$", "object"),
        ({}, "$", "duration_s"),
        (document(speed=2), "$", "speed"),
        (document(duration_s=0), "$.duration_s", "> 0"),
        (document(duration_s="long"), "$.duration_s", "float"),
        (with_pipelines(DOCK, name="a/b"), "$.devices[0].name", "regex"),
        (document(devices=[]), "$.devices", "length >= 1"),
        (with_pipelines(), "$.devices[0].pipelines", "length >= 1"),
        (with_pipelines(DOCK, runtime="docker"), "$.devices[0].runtime", "docker"),
        (with_pipelines(DOCK, runtime="greengrass", flavour="full"), "$.devices[0].flavour", "full"),
        (with_pipelines(DOCK, flavour="lite"), "$.devices[0].flavour", "goes with"),
        (document(devices=document()["devices"] * 2), "$.devices[1].name", "Two devices"),
        (with_pipelines({"name": "dock", "model": "digits"}), "$.devices[0].pipelines[0]", "input"),
        (with_pipelines(DOCK, DOCK), "$.devices[0].pipelines[1].name", "Two pipelines"),
        (with_input(kind="radar"), "$.devices[0].pipelines[0].input.kind", "radar"),
        (with_input(kind="camera", fps=0), "$.devices[0].pipelines[0].input.fps", "> 0"),
        (with_input(kind="csv", rows=1), "$.devices[0].pipelines[0].input", "rows"),
        (
            with_input(kind="pump", faults=[{"kind": "rust", "at_s": 1, "length_s": 1}]),
            "$.devices[0].pipelines[0].input.faults[0].kind",
            "rust",
        ),
        (
            with_input(kind="pump", faults=[{"kind": "bearing", "at_s": 9, "length_s": 2}]),
            "$.devices[0].pipelines[0].input.faults[0]",
            "ends after",
        ),
        (document(faults=[{"kind": "fire", "at_s": 1, "length_s": 1}]), "$.faults[0].kind", "fire"),
        (document(faults=[{"kind": "cut", "at_s": -1, "length_s": 1}]), "$.faults[0].at_s", ">= 0"),
        (document(faults=[{"kind": "cut", "at_s": 9, "length_s": 2}]), "$.faults[0]", "ends after"),
        (document(faults=[{"kind": "delay", "at_s": 1, "length_s": 1}]), "$.faults[0].delay_ms", "goes with"),
        (
            document(faults=[{"kind": "cut", "at_s": 1, "length_s": 1, "delay_ms": 5}]),
            "$.faults[0].delay_ms",
            "goes with",
        ),
        (
            document(faults=[{"kind": "stall", "at_s": 4, "length_s": 1}, {"kind": "cut", "at_s": 3, "length_s": 1.5}]),
            "$.faults[0].at_s",
            "another fault of the link",
        ),
        (
            document(
                faults=[
                    {"kind": "kill", "device": "gate", "at_s": 1, "length_s": 2},
                    {"kind": "kill", "device": "gate", "at_s": 2, "length_s": 1},
                ]
            ),
            "$.faults[1].at_s",
            "another fault of the device",
        ),
        (document(faults=[{"kind": "kill", "at_s": 1, "length_s": 1}]), "$.faults[0].device", "goes with"),
        (
            document(faults=[{"kind": "cut", "device": "gate", "at_s": 1, "length_s": 1}]),
            "$.faults[0].device",
            "goes with",
        ),
        (
            document(faults=[{"kind": "kill", "device": "shed", "at_s": 1, "length_s": 1}]),
            "$.faults[0].device",
            "there are gate",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(wrong: Any, path: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        parse_scenario(wrong)
    assert caught.value.path == path


def test_reading_a_file(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(
        "duration_s: 5\ndevices:\n  - {name: gate, pipelines: [{name: dock, model: digits, input: {kind: camera}}]}\n"
    )
    assert isinstance(load_scenario(file), Scenario)
    file.write_text("duration_s: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_scenario(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError):
        load_scenario(file)
    file.write_text("#" * (1 << 20) + "\n")
    with pytest.raises(ConfigError, match="larger"):
        load_scenario(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_scenario(tmp_path / "absent.yaml")
