"""Sensors that Linux has a driver for: the files of hwmon and IIO, by the device's name.

Source of names and units: Documentation/hwmon/sysfs-interface.rst and Documentation/ABI/testing/sysfs-bus-iio.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lisiere.clock import Clock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sensors import SysfsSource, SysfsValue
from lisiere.sources.base import FaultReport
from lisiere.sources.pace import polled
from lisiere.values import Reading

_CLASSES = {"hwmon": "class/hwmon", "iio": "bus/iio/devices"}
_READ_BYTES = 4096  # what a file of the kernel's holds at most
# What drivers count in thousandths or millionths of the unit, by how the file's name begins.
_SMALL = {
    "hwmon": {"temp": 1e-3, "in": 1e-3, "curr": 1e-3, "humidity": 1e-3, "power": 1e-6, "energy": 1e-6},
    "iio": {"temp": 1e-3, "voltage": 1e-3, "current": 1e-3, "humidityrelative": 1e-3, "power": 1e-3},
}


@dataclass(frozen=True, slots=True)
class _File:
    """A file, and what its number has to be put through: `(number + offset) * scale`."""

    path: Path
    scale: float
    offset: float


class Sysfs:
    """Reads the kernel's files at regular times. One that cannot be read is NaN and counted; the others go on.

    Args:
        channels: what the model's window wants, in order.
    """

    def __init__(
        self, config: SysfsSource, name: str, channels: tuple[str, ...], clock: Clock, fault: FaultReport
    ) -> None:
        self._config = config
        self._channels = channels
        self._name = name
        self._clock = clock
        self._fault = fault

    def items(self, stop: threading.Event) -> Iterator[Reading]:
        """Find the devices, and yield until stopped; see `Source.items`."""
        absent = [channel for channel in self._channels if channel not in self._config.values]
        if absent:
            raise Permanent(f"`values` has no file for {', '.join(absent)}.")
        devices = self._devices()
        files = [self._find(devices, self._config.values[channel]) for channel in self._channels]
        return polled(lambda: self._ask(files), self._config.interval_s, self._name, self._clock, self._fault, stop)

    def _devices(self) -> list[tuple[str, str, str, Path]]:
        """Every device: of which kind, its name, its parent's name, and its folder."""
        found = []
        for kind, folder in _CLASSES.items():
            for device in sorted(Path(self._config.root, folder).glob("*")):
                # Old drivers of hwmon have their files in the parent.
                for place in (device, device / "device"):
                    if name := _text(place / "name"):
                        parent = (device / "device").resolve() if kind == "hwmon" else device.resolve().parent
                        found.append((kind, name, parent.name, place))
                        break
        return found

    def _find(self, devices: list[tuple[str, str, str, Path]], value: SysfsValue) -> _File:
        name, _, parent = value.device.partition("@")
        fitting = [one for one in devices if one[1] == name and (not parent or one[2] == parent)]
        if not fitting:
            known = ", ".join(sorted({one[1] for one in devices})) or "none"
            raise Retryable(f"There is no device {value.device!r} under {self._config.root}; there are: {known}.")
        having = [one for one in fitting if (one[3] / value.file).is_file()]
        if not having:
            files = sorted({file.name for one in fitting for file in one[3].glob("*_*") if file.is_file()})
            raise Permanent(f"The device {value.device!r} has no file {value.file}, but {', '.join(files) or 'none'}.")
        if len(having) > 1:
            told = ", ".join(f"{name}@{one[2]}" for one in having)
            raise Permanent(f"More than one device is called {value.device!r}. Say which: {told}.")
        kind, _, _, folder = having[0]
        return _iio(folder, value.file) if kind == "iio" else _hwmon(folder, value.file)

    def _ask(self, files: list[_File]) -> list[float]:
        values, lost = [], 0
        for channel, file in zip(self._channels, files, strict=True):
            value = math.nan
            try:
                text = _read(file.path)
                value = (float(text) + file.offset) * file.scale
            except OSError as error:
                lost += not file.path.parent.exists()
                self._fault("sysfs_unreadable", f"{file.path} of {channel} cannot be read: {error.strerror}.")
            except ValueError:
                self._fault("not_a_number", f"{file.path} of {channel} has {text[:40]!r} where a number belongs.")
            values.append(value)
        if lost == len(files):
            raise Retryable(f"The devices under {self._config.root} are gone.")
        return values


def _hwmon(folder: Path, name: str) -> _File:
    if re.search(r"_(alarm|fault|beep|enable|type)$", name):
        return _File(folder / name, 1.0, 0.0)
    return _File(folder / name, _SMALL["hwmon"].get(re.split(r"[0-9_]", name)[0], 1.0), 0.0)


def _iio(folder: Path, name: str) -> _File:
    """A raw value has a scale and an offset in files of its own, or in those of all channels of its type."""
    quantity = re.sub(r"^(in|out)_", "", name)
    unit = _SMALL["iio"].get(re.split(r"[0-9_-]", quantity)[0], 1.0)
    if not name.endswith("_raw"):
        return _File(folder / name, unit, 0.0)
    own = name.removesuffix("_raw")
    # in_voltage0_raw: in_voltage0_scale or in_voltage_scale; in_accel_x_raw: in_accel_x_scale or in_accel_scale.
    prefixes = dict.fromkeys((own, re.sub(r"[0-9]+", "", own), re.sub(r"_[a-z]$", "", own)))
    scale = next((found for prefix in prefixes if (found := _setting(folder / f"{prefix}_scale")) is not None), 1.0)
    offset = next((found for prefix in prefixes if (found := _setting(folder / f"{prefix}_offset")) is not None), 0.0)
    return _File(folder / name, scale * unit, offset)


def _setting(file: Path) -> float | None:
    """The number in a file, or None where there is none."""
    text = _text(file)
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise Permanent(f"{file} has {text[:40]!r} where a number belongs.") from error


def _text(file: Path) -> str:
    """A file's text, or none where it cannot be read."""
    try:
        return _read(file)
    except OSError:
        return ""


def _read(file: Path) -> str:
    with file.open("rb", buffering=0) as stream:
        return (stream.read(_READ_BYTES) or b"").decode("ascii", "replace").strip()
