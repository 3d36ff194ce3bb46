"""Device and broker are killed at random under load: what was accepted arrives, in order, and little of it twice."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from support.stage import check, stage

SEED = int(os.environ.get("LISIERE_SEED", "5"))


def kill_at_random(folder: Path, kills: int, seed: int, patience: float = 0.3) -> None:
    """Kill device or broker again and again, then let the device deliver what it has; hold what was heard against it.

    Args:
        patience: seconds after which a kill comes although few messages do, since the device waits for the broker.
    """
    print(f"LISIERE_SEED={SEED}, run {seed}")  # noqa: T201 - shown when the test fails
    rng = random.Random(seed)
    with stage(folder, 400) as staged:
        broker, ear, host = staged.broker, staged.ear, staged.host
        host.start()
        for _ in range(kills):
            ear.wait(len(ear.heard) + rng.choice((0, 1, 2, 3, 10, 30, 60, 120)), rng.random() * patience)
            if rng.random() < 0.75:
                host.kill()
                host.start()
            else:
                broker.kill()
                ear.last_words()
                broker.start()
                ear.connect()
        ear.wait(len(ear.heard) + 1, 60)  # it is under way again, so that it hears the signal
        assert host.end() == 0, staged.log
        assert check(staged) >= kills, "There was hardly any load."


def test_device_and_broker_are_killed_fifty_times(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 50, SEED)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(4))
def test_device_and_broker_are_killed_a_thousand_times(part: int, tmp_path: Path) -> None:
    kill_at_random(tmp_path, 250, SEED + 1 + part, patience=2.0)
