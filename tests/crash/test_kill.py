"""Device and broker are killed at random under load: what was accepted arrives, in order, and little of it twice."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from support.stage import check, stage

SEED = int(os.environ.get("LISIERE_SEED", "5"))


def kill_at_random(folder: Path, kills: int, seed: int, most: int) -> None:
    """Kill device or broker again and again, then let the device deliver what it has; hold what was heard against it.

    Args:
        most: messages between two kills.
    """
    print(f"LISIERE_SEED={SEED}, run {seed}")  # noqa: T201 - shown when the test fails
    rng = random.Random(seed)
    with stage(folder, 400) as staged:
        broker, ear, host = staged.broker, staged.ear, staged.host
        host.start()
        delivers = True  # else it waits for a second at least until it tries the broker again
        for _ in range(kills):
            number = rng.choice((0, 1, 2, 3, rng.randrange(most), rng.randrange(most)))
            ear.wait(len(ear.heard) + number, 5.0 if delivers else rng.random() * 0.3)
            if rng.random() < 0.75:
                host.kill()
                host.start()
                delivers = True
            else:
                broker.kill()
                ear.last_words()
                broker.start()
                ear.connect()
                delivers = False
        ear.wait(len(ear.heard) + 1, 60)  # it is under way again, so that it hears the signal
        assert host.end() == 0, staged.log
        assert check(staged) >= kills, "There was hardly any load."


def test_device_and_broker_are_killed_fifty_times(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 50, SEED, most=40)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(4))
def test_device_and_broker_are_killed_a_thousand_times(part: int, tmp_path: Path) -> None:
    kill_at_random(tmp_path, 250, SEED + 1 + part, most=400)
