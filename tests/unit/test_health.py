"""Health: what happened is counted under names, from any thread, and said ever more rarely."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from lisiere import health
from lisiere.health import PipelineHealth, State, resident_mb


def test_a_new_pipeline_is_starting_and_has_no_counters() -> None:
    assert PipelineHealth("dock").snapshot() == ("starting", "", {})


def test_counters_add_up_and_come_sorted() -> None:
    one = PipelineHealth("dock")
    one.count("read", 3)
    one.count("dropped")
    one.count("read")
    counters = one.snapshot()[2]
    assert list(counters.items()) == [("dropped", 1), ("read", 4)]


def test_a_snapshot_is_a_copy() -> None:
    one = PipelineHealth("dock")
    one.snapshot()[2]["read"] = 5
    assert one.snapshot()[2] == {}


def test_a_fault_is_logged_the_1st_10th_100th_time(caplog: pytest.LogCaptureFixture) -> None:
    one = PipelineHealth("dock")
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            one.fault("image_unreadable", "x.jpg is truncated.")
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"x.jpg is truncated. (image_unreadable, {times} so far)" for times in (1, 10, 100, 1000)]
    assert one.snapshot()[2] == {"image_unreadable": 1000}


def test_many_faults_at_once_are_logged_when_the_count_passes_a_power_of_ten(caplog: pytest.LogCaptureFixture) -> None:
    one = PipelineHealth("dock")
    with caplog.at_level(logging.WARNING):
        for times in (4, 5, 1, 300, 600, 89, 1):
            one.fault("stuck:a", "a is stuck.", times)
    assert len(caplog.records) == 4
    assert [record.getMessage().split()[-3] for record in caplog.records] == ["4", "10", "310", "1000"]


def test_each_kind_of_fault_is_logged_by_its_own_count(caplog: pytest.LogCaptureFixture) -> None:
    one = PipelineHealth("dock")
    with caplog.at_level(logging.WARNING):
        one.fault("a", "A.")
        one.fault("b", "B.")
    assert len(caplog.records) == 2


def test_a_percent_sign_in_a_sentence_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        PipelineHealth("dock").fault("odd", "100 %s of it {} is gone.")
    assert "100 %s of it {} is gone." in caplog.text


def test_nothing_is_lost_between_threads() -> None:
    one = PipelineHealth("dock")

    def work() -> None:
        for _ in range(2000):
            one.count("read")
            one.result(1.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.snapshot()[2] == {"read": 8000, "results": 8000}


@pytest.mark.parametrize(
    ("state", "level"),
    [
        ("running", logging.INFO),
        ("ended", logging.INFO),
        ("waiting", logging.WARNING),
        ("failed", logging.WARNING),
    ],
)
def test_a_change_of_state_is_logged_once(state: State, level: int, caplog: pytest.LogCaptureFixture) -> None:
    one = PipelineHealth("dock")
    with caplog.at_level(logging.INFO):
        one.state(state, "No camera.")
        one.state(state, "Still no camera.")
    assert [record.levelno for record in caplog.records] == [level]
    assert "dock" in caplog.text
    assert one.snapshot()[:2] == (state, "Still no camera.")


def test_quantiles_are_of_the_results_since_the_last_call() -> None:
    one = PipelineHealth("dock")
    values = np.random.default_rng(0).exponential(5, 500)
    for value in values:
        one.result(float(value))
    assert one.take_latencies() == pytest.approx(tuple(np.quantile(values, (0.5, 0.95, 0.99))))
    assert one.take_latencies() is None
    one.result(7.0)
    assert one.take_latencies() == (7.0, 7.0, 7.0)


def test_latencies_kept_are_bounded_but_results_are_all_counted() -> None:
    one = PipelineHealth("dock")
    for _ in range(5000):
        one.result(1.0)
    assert one.snapshot()[2] == {"results": 5000}
    assert len(one._latencies) == 4096


def test_resident_memory_is_plausible_or_unknown() -> None:
    found = resident_mb()
    assert found is None or 5 < found < 100_000


def test_resident_memory_counts_the_pages_of_this_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "9 1000 3 4 0 5 0\n")
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 65536}.__getitem__)
    assert resident_mb() == pytest.approx(65.536)


@pytest.mark.parametrize("text", ["", "7", "a b c"])
def test_resident_memory_is_unknown_when_the_system_talks_nonsense(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert health.resident_mb() is None


def test_resident_memory_is_unknown_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert health.resident_mb() is None
