"""The synthetic pump: the seed decides it, the cut of the calls does not matter, and each fault has its own sign."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lisiere_sim.pump import FAULTS, RATE_HZ, Fault, Pump

SECONDS = 60


def spectrum(signal: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean power in bands of 1 Hz, averaged over windows of one second: float64, [257]."""
    rows = signal.astype(np.float64).reshape(-1, int(RATE_HZ)) * np.hanning(int(RATE_HZ))
    power: NDArray[np.float64] = (np.abs(np.fft.rfft(rows, axis=1)) ** 2).mean(axis=0)
    return power


def record(fault: Fault | None = None, severity: float = 1.0, seed: int = 3) -> NDArray[np.float32]:
    pump = Pump(seed)
    if fault is not None:
        pump.set_fault(fault, severity)
    return pump.samples(SECONDS * int(RATE_HZ))


def test_samples_are_float32_and_as_many_as_asked() -> None:
    pump = Pump(1)
    for n in (0, 1, 2, 63, 64, 256):
        samples = pump.samples(n)
        assert samples.shape == (n,)
        assert samples.dtype == np.float32


def test_the_seed_decides_the_samples() -> None:
    assert np.array_equal(Pump(1).samples(500), Pump(1).samples(500))
    assert not np.array_equal(Pump(1).samples(500), Pump(2).samples(500))


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_cut_of_the_calls_does_not_matter(fault: Fault | None) -> None:
    whole, cut = Pump(5), Pump(5)
    if fault is not None:
        whole.set_fault(fault, 0.7)
        cut.set_fault(fault, 0.7)
    parts = np.concatenate([cut.samples(n) for n in (1, 7, 100, 3, 145, 300, 44)])
    assert np.allclose(whole.samples(600), parts, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_the_signal_from_the_next_sample_on_and_can_be_switched_off(fault: Fault) -> None:
    healthy, faulty = Pump(2), Pump(2)
    assert np.array_equal(healthy.samples(256), faulty.samples(256))
    faulty.set_fault(fault, 1.0)
    difference = faulty.samples(512) - healthy.samples(512)
    assert difference.std() > 0.2
    faulty.set_fault(fault, 0.0)
    healthy.samples(64)
    faulty.samples(64)  # what still rings
    assert np.allclose(healthy.samples(256), faulty.samples(256), atol=1e-5)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worse_fault_shakes_more(fault: Fault) -> None:
    levels = [float(record(fault, severity).std()) for severity in (0.0, 0.5, 1.0)]
    assert levels == sorted(levels)
    assert levels[2] > 1.1 * levels[0]


def test_a_healthy_pump_shows_its_shaft_and_its_vanes() -> None:
    power = spectrum(record())
    for order in (1, 2, 6):
        centre = round(24.25 * order)
        assert power[centre - 2 : centre + 3].max() > 20 * np.median(power)


def test_imbalance_grows_the_shaft_line_alone() -> None:
    ratio = spectrum(record("imbalance")) / spectrum(record())
    assert ratio[24] > 10
    assert np.all(np.abs(ratio[40:250] - 1) < 0.05)


def test_a_bearing_defect_rings_the_casing() -> None:
    ratio = spectrum(record("bearing")) / spectrum(record())
    assert np.median(ratio[190:220]) > 1.3
    assert abs(ratio[24] - 1) < 0.3
    # Lines at the rate of ball passes, 3.57 a turn, and twice that.
    passes = round(24.25 * 3.57)
    assert ratio[passes - 2 : passes + 3].max() > 10


def test_cavitation_is_broad() -> None:
    ratio = spectrum(record("cavitation")) / spectrum(record())
    assert np.mean(ratio[40:250] > 1.5) > 0.8


@pytest.mark.parametrize("severity", [-0.1, 1.5, float("nan")])
def test_a_severity_outside_the_scale_is_refused(severity: float) -> None:
    with pytest.raises(ValueError, match="severity of 0 to 1"):
        Pump(1).set_fault("bearing", severity)


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="bearing, imbalance, cavitation"):
        Pump(1).set_fault("gremlins", 0.5)  # type: ignore[arg-type]
