"""A pump that vibrates, with faults that can be switched on.

The signal is synthetic: a plain model of what an accelerometer on the casing of a small centrifugal pump picks up,
not a recording. It follows the usual textbook signs of the three faults (R. B. Randall, Vibration-based Condition
Monitoring, 2011, chapters 2 and 5) as far as a sample rate of 512 Hz can show them.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Fault = Literal["bearing", "imbalance", "cavitation"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
RATE_HZ = 512.0

# Shaft of a two-pole-pair motor at 50 Hz, without slip, and the impeller's vanes.
_SHAFT_HZ = 25.0
_VANES = 6
# Impulses a turn from a defect on the outer race: not a whole number, so it never hides behind a harmonic.
_BALL_PASS = 3.57
# A mode of the casing that impulses and flow excite: its frequency and how fast it rings down.
_MODE_HZ = 205.0
_MODE_DECAY_S = 0.008
# 64 samples of ring-down: after them the mode is e^-15 of its start.
_TAPS = 64


class Pump:
    """One pump of the type: the seed decides the individual and all of its noise.

    The same seed and the same calls give the same samples, and how the calls are cut does not matter:
    `samples(100)` and `samples(156)` are `samples(256)`. Faults change the signal from the next sample on and leave
    the healthy part of it as it was.

    Attributes:
        faults: severity by fault, 0 (none) to 1 (severe).
    """

    def __init__(self, seed: int, rate_hz: float = RATE_HZ) -> None:
        self.faults: dict[Fault, float] = dict.fromkeys(FAULTS, 0.0)
        self._rate_hz = rate_hz
        self._count = 0  # samples made so far
        make, *streams = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(5))
        self._noise, self._flow, self._impulse, self._burst = streams
        # Amplitudes in m/s2 of 1x, 2x, 3x, 4x and blade pass; pumps of one type differ by about a tenth.
        self._orders = np.array([1.0, 2.0, 3.0, 4.0, _VANES])
        self._amplitudes = np.array([0.55, 0.28, 0.14, 0.09, 0.4]) * np.exp(make.normal(0, 0.1, 5))
        self._phases = make.uniform(0, 2 * np.pi, 5)
        self._noise_level = 0.16 * np.exp(make.normal(0, 0.08))
        self._mode = _ring_down(_MODE_HZ * (1 + make.normal(0, 0.01)), rate_hz)
        # Load wanders slowly: a sum of slow waves, so that its integral, which the shaft's angle needs, is exact.
        self._load_mean = make.uniform(0.5, 0.7)
        self._load_waves = np.array([0.12, 0.08, 0.05])
        self._load_rates = 2 * np.pi / (np.array([300.0, 110.0, 37.0]) * make.uniform(0.8, 1.25, 3))
        self._load_phases = make.uniform(0, 2 * np.pi, 3)
        # What went into the filters last, so that the next call goes on where this one ended.
        self._mode_tail = np.zeros(_TAPS - 1)
        self._burst_tail = 0.0

    def set_fault(self, fault: Fault, severity: float) -> None:
        """Switch a fault on (severity up to 1) or off (0), from the next sample on.

        Raises:
            ValueError: no such fault, or a severity outside 0 … 1.
        """
        if fault not in self.faults or not 0 <= severity <= 1:
            raise ValueError(f"A fault is one of {', '.join(FAULTS)} with a severity of 0 to 1.")
        self.faults[fault] = severity

    def samples(self, n: int) -> NDArray[np.float32]:
        """Return the next `n` samples of acceleration in m/s2: float32, [n]."""
        if n == 0:
            return np.empty(0, np.float32)
        time = np.arange(self._count, self._count + n) / self._rate_hz
        load, turns = self._shaft(time)
        signal = self._harmonics(load, turns)
        signal += self._noise.standard_normal(n) * self._noise_level * (0.7 + 0.5 * load)
        # Flow noise and impulses reach the sensor through the same mode of the casing.
        excitation = self._flow.standard_normal(n) * 0.5 * self._noise_level * load
        if self.faults["bearing"] > 0:
            excitation += self._impacts(time, turns)
        signal += self._through_mode(excitation)
        if self.faults["cavitation"] > 0:
            signal += self._bursts(n)
        self._count += n
        return signal.astype(np.float32)

    def _shaft(self, time: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Load (0 … 1) and the shaft's angle in turns; more load, more slip."""
        angle = self._load_rates * time[:, None] + self._load_phases
        load = self._load_mean + np.sin(angle) @ self._load_waves
        integral = self._load_mean * time
        integral += (np.cos(self._load_phases) - np.cos(angle)) @ (self._load_waves / self._load_rates)
        slip = 0.05
        return load, _SHAFT_HZ * (time - slip * integral)

    def _harmonics(self, load: NDArray[np.float64], turns: NDArray[np.float64]) -> NDArray[np.float64]:
        amplitudes = self._amplitudes.copy()
        # A heavy spot pulls once a turn; up to four times what a balanced impeller does.
        amplitudes[0] *= 1 + 3 * self.faults["imbalance"]
        waves = np.sin(2 * np.pi * turns[:, None] * self._orders + self._phases)
        # Pressure pulses grow with load, unbalanced mass does not.
        waves[:, -1] *= 0.6 + 0.6 * load
        total: NDArray[np.float64] = waves @ amplitudes
        return total

    def _impacts(self, time: NDArray[np.float64], turns: NDArray[np.float64]) -> NDArray[np.float64]:
        """One impulse each time a ball rolls over the defect, stronger where the load presses on the race."""
        _, before = self._shaft(time[:1] - 1 / self._rate_hz)
        passes = np.floor(np.concatenate([before, turns]) * _BALL_PASS)
        hits = np.diff(passes) > 0
        impulses = np.zeros(len(time))
        strength = 1 + 0.25 * self._impulse.standard_normal(int(hits.sum()))
        press = 0.75 + 0.25 * np.cos(2 * np.pi * turns[hits])
        impulses[hits] = 1.6 * self.faults["bearing"] * strength * press
        return impulses

    def _bursts(self, n: int) -> NDArray[np.float64]:
        """Collapsing bubbles: bursts of broadband noise, about nine a second, that die away in 20 ms."""
        chance = self._burst.random((n, 2))
        starts = chance[:, 0] < 9 / self._rate_hz
        # Uniform noise of unit variance, from the same draw as the starts: so the cut of the calls cannot matter.
        noise = (chance[:, 1] - 0.5) * np.sqrt(12)
        decay = float(np.exp(-1 / (0.02 * self._rate_hz)))
        envelope = np.empty(n)
        level = self._burst_tail
        for index in range(n):
            level = 1.0 if starts[index] else level * decay
            envelope[index] = level
        self._burst_tail = level
        bursts: NDArray[np.float64] = 2.0 * self.faults["cavitation"] * envelope * noise
        return bursts

    def _through_mode(self, excitation: NDArray[np.float64]) -> NDArray[np.float64]:
        padded = np.concatenate([self._mode_tail, excitation])
        self._mode_tail = padded[len(excitation) :]
        return np.convolve(padded, self._mode, mode="valid")


def _ring_down(frequency_hz: float, rate_hz: float) -> NDArray[np.float64]:
    """Impulse response of the casing's mode: a decaying sine, float64, [taps]."""
    time = np.arange(_TAPS) / rate_hz
    response: NDArray[np.float64] = np.exp(-time / _MODE_DECAY_S) * np.cos(2 * np.pi * frequency_hz * time)
    return response
