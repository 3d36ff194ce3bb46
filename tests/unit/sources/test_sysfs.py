"""Sensors that Linux has a driver for: the files as the kernel lays them out, in a tree of the test's own."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lisiere.clock import ManualClock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sensors import SysfsSource, SysfsValue
from lisiere.sources.sysfs import Sysfs
from lisiere.values import Reading
from support.sources import Faults, Stop


class Tree:
    """A tree like /sys: devices in their own folders, and links to them by class."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("class/hwmon", "bus/iio/devices"):
            (root / folder).mkdir(parents=True)

    def hwmon(self, number: int, name: str, parent: str, files: dict[str, str], old: bool = False) -> Path:
        """A hwmon device; drivers of old have their files in the parent."""
        above = self.root / "devices" / parent
        folder = above / "hwmon" / f"hwmon{number}"
        folder.mkdir(parents=True)
        (folder / "device").symlink_to(above)
        (self.root / "class/hwmon" / f"hwmon{number}").symlink_to(folder)
        return self._fill(above if old else folder, name, files)

    def iio(self, number: int, name: str, parent: str, files: dict[str, str]) -> Path:
        folder = self.root / "devices" / parent / f"iio:device{number}"
        folder.mkdir(parents=True)
        (self.root / "bus/iio/devices" / f"iio:device{number}").symlink_to(folder)
        return self._fill(folder, name, files)

    def _fill(self, folder: Path, name: str, files: dict[str, str]) -> Path:
        for file, text in {"name": name, **files}.items():
            (folder / file).write_text(text + "\n")
        return folder

    def source(self, faults: Faults | None = None, **values: tuple[str, str]) -> Iterator[Reading]:
        config = SysfsSource(
            root=str(self.root),
            values={channel: SysfsValue(device=device, file=file) for channel, (device, file) in values.items()},
        )
        clock = ManualClock(500.0)
        stop: threading.Event = Stop(clock)
        return Sysfs(config, "sysfs", tuple(values), clock, faults if faults is not None else Faults()).items(stop)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def read(tree: Tree, device: str, file: str) -> float:
    return next(tree.source(x=(device, file))).values[0]


@pytest.mark.parametrize(
    ("file", "text", "value"),
    [
        ("temp1_input", "-5125", -5.125),
        ("in0_input", "3300", 3.3),
        ("curr1_input", "250", 0.25),
        ("power1_input", "1500000", 1.5),
        ("energy1_input", "2000000", 2.0),
        ("humidity1_input", "45500", 45.5),
        ("fan1_input", "1200", 1200),
        ("temp1_alarm", "1", 1),
    ],
)
def test_hwmon_in_whole_units(tree: Tree, file: str, text: str, value: float) -> None:
    tree.hwmon(3, "chip", "1-0048", {file: text})
    assert read(tree, "chip", file) == pytest.approx(value)


@pytest.mark.parametrize(
    ("file", "files", "value"),
    [
        ("in_voltage0_raw", {"in_voltage0_raw": "1000", "in_voltage0_scale": "0.5", "in_voltage_scale": "9"}, 0.5),
        ("in_voltage1_raw", {"in_voltage1_raw": "1000", "in_voltage_scale": "0.5", "in_voltage_offset": "100"}, 0.55),
        ("in_voltage0-voltage1_raw", {"in_voltage0-voltage1_raw": "4", "in_voltage-voltage_scale": "250"}, 1.0),
        ("in_accel_x_raw", {"in_accel_x_raw": "-2048", "in_accel_scale": "0.0048"}, -9.8304),
        ("in_temp_raw", {"in_temp_raw": "200", "in_temp_scale": "100", "in_temp_offset": "15"}, 21.5),
        ("in_temp_input", {"in_temp_input": "21500", "in_temp_scale": "7"}, 21.5),
        ("in_humidityrelative_input", {"in_humidityrelative_input": "45000"}, 45),
        ("in_illuminance_raw", {"in_illuminance_raw": "77"}, 77),
        ("in_pressure_input", {"in_pressure_input": "101.325"}, 101.325),
    ],
)
def test_iio_with_the_drivers_scale_and_offset(tree: Tree, file: str, files: dict[str, str], value: float) -> None:
    tree.iio(0, "adc", "spi0.0", files)
    assert read(tree, "adc", file) == pytest.approx(value)


def test_readings_come_at_regular_times_and_the_name_finds_the_device_whatever_its_number(tree: Tree) -> None:
    tree.hwmon(0, "acpitz", "thermal", {"temp1_input": "1"})
    folder = tree.hwmon(7, "cpu_thermal", "soc", {"temp1_input": "40000"})
    items = tree.source(cpu=("cpu_thermal", "temp1_input"))
    one = next(items)
    (folder / "temp1_input").write_text("41000\n")
    assert (one, next(items)) == (Reading(500.0, (40.0,), "sysfs"), Reading(501.0, (41.0,), "sysfs"))


def test_two_of_one_name_are_told_apart_by_what_they_are_attached_to(tree: Tree) -> None:
    tree.hwmon(0, "lm75", "1-0048", {"temp1_input": "1000"})
    tree.hwmon(1, "lm75", "1-0049", {"temp1_input": "2000"})
    with pytest.raises(Permanent, match="lm75@1-0048, lm75@1-0049"):
        read(tree, "lm75", "temp1_input")
    assert read(tree, "lm75@1-0049", "temp1_input") == 2.0


def test_drivers_of_old_have_their_files_in_the_parent(tree: Tree) -> None:
    tree.hwmon(0, "w83781d", "isa.656", {"temp1_input": "30000"}, old=True)
    assert read(tree, "w83781d", "temp1_input") == 30.0


def test_a_device_that_is_not_there_may_come(tree: Tree) -> None:
    tree.hwmon(0, "acpitz", "thermal", {})
    with pytest.raises(Retryable, match=r"no device 'bme280' .* there are: acpitz"):
        read(tree, "bme280", "in_temp_input")


def test_a_file_that_the_device_does_not_have_is_named_with_those_that_it_has(tree: Tree) -> None:
    tree.iio(0, "bme280", "i2c", {"in_temp_input": "1"})
    with pytest.raises(Permanent, match="no file in_temp_raw, but in_temp_input"):
        read(tree, "bme280", "in_temp_raw")


@pytest.mark.parametrize(("text", "fault"), [("", "not_a_number"), ("busy", "not_a_number")])
def test_a_file_that_has_no_number_is_that_channels_alone(tree: Tree, text: str, fault: str) -> None:
    folder = tree.hwmon(0, "chip", "1-0048", {"temp1_input": "1000", "temp2_input": "2000"})
    faults = Faults()
    items = tree.source(faults, a=("chip", "temp1_input"), b=("chip", "temp2_input"))
    next(items)
    (folder / "temp1_input").write_text(text)
    values = next(items).values
    assert (math.isnan(values[0]), values[1]) == (True, 2.0)
    assert faults.names == [fault]


def test_a_file_that_cannot_be_read_is_that_channels_alone_and_the_devices_end_retryable(tree: Tree) -> None:
    folder = tree.hwmon(0, "chip", "1-0048", {"temp1_input": "1000", "temp2_input": "2000"})
    faults = Faults()
    items = tree.source(faults, a=("chip", "temp1_input"), b=("chip", "temp2_input"))
    next(items)
    (folder / "temp1_input").unlink()
    assert math.isnan(next(items).values[0])
    assert faults.names == ["sysfs_unreadable"]
    assert "temp1_input of a cannot be read: No such file" in faults[0][1]
    folder.rename(tree.root / "gone")
    with pytest.raises(Retryable, match="are gone"):
        next(items)


def test_a_driver_whose_scale_is_none_is_refused(tree: Tree) -> None:
    tree.iio(0, "adc", "spi0.0", {"in_voltage0_raw": "1", "in_voltage_scale": "?"})
    with pytest.raises(Permanent, match=r"in_voltage_scale has '\?'"):
        read(tree, "adc", "in_voltage0_raw")


def test_a_channel_without_a_file_can_never_be_read(tree: Tree) -> None:
    config = SysfsSource(root=str(tree.root), values={"a": SysfsValue(device="x", file="y")})
    with pytest.raises(Permanent, match="no file for b"):
        Sysfs(config, "sysfs", ("a", "b"), ManualClock(), Faults()).items(threading.Event())
