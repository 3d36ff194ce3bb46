from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest

from lisiere_sim.nucleus.cloud.limits import Refused
from lisiere_sim.nucleus.cloud.spooler import Message, Spooler


def message(name: str, size: int = 10, qos: int = 1) -> Message:
    return Message(name, b"x" * size, qos, retain=False)


def names(spooler: Spooler) -> list[str]:
    return [spooler.take().topic for _ in range(len(spooler))]


def test_first_in_first_out_and_what_failed_goes_to_the_front() -> None:
    spooler = Spooler(1000, Counter())
    for name in "abc":
        spooler.store(message(name))
    taken = [spooler.take(), spooler.take()]
    for one in reversed(taken):
        spooler.put_back(one)
    assert names(spooler) == ["a", "b", "c"]


def test_full_it_refuses_the_new_message_and_keeps_the_old() -> None:
    spooler = Spooler(25, Counter())
    spooler.store(message("a"))
    spooler.store(message("b"))
    with pytest.raises(Refused, match="full") as caught:
        spooler.store(message("c"))
    assert caught.value.reason == "spooler_full"
    with pytest.raises(Refused, match="larger than"):
        spooler.store(message("d", size=26))
    assert names(spooler) == ["a", "b"]


def test_full_it_drops_qos_0_first_and_only_as_much_as_is_needed() -> None:
    dropped: Counter[str] = Counter()
    spooler = Spooler(40, dropped)
    for name, qos in (("a", 1), ("b", 0), ("c", 0), ("d", 0)):
        spooler.store(message(name, qos=qos))
    spooler.store(message("e", size=15))
    assert names(spooler) == ["a", "d", "e"]
    assert dropped == {"spooler_full": 2}


def test_what_is_under_way_counts_until_it_is_acknowledged() -> None:
    spooler = Spooler(10, Counter())
    spooler.store(message("a"))
    under_way = spooler.take()
    with pytest.raises(Refused):
        spooler.store(message("b"))
    spooler.forget(under_way)
    spooler.store(message("b"))


def test_messages_without_a_payload_do_not_gather_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lisiere_sim.nucleus.cloud.spooler._MESSAGES_MAX", 3)
    spooler = Spooler(10, Counter())
    for name in "abc":
        spooler.store(message(name, size=0))
    with pytest.raises(Refused, match="full"):
        spooler.store(message("d", size=0))


def test_dropping_says_how_many() -> None:
    dropped: Counter[str] = Counter()
    spooler = Spooler(1000, dropped)
    spooler.store(message("a"))
    spooler.store(message("b", qos=0))
    assert spooler.close("stopped") == 2
    assert dropped == {"stopped": 2}
    assert len(spooler) == 0


def test_on_disk_what_is_not_delivered_outlives_the_spooler_and_keeps_its_order(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "spooler.db"
    first = Spooler(1000, Counter(), file)
    for name in "abcd":
        first.store(message(name))
    first.forget(first.take())
    first.put_back(first.take())  # under way when the nucleus stops
    assert first.close("stopped") == 0
    second = Spooler(1000, Counter(), file)
    second.store(message("e"))
    taken = [second.take() for _ in range(len(second))]
    assert [one.topic for one in taken] == ["b", "c", "d", "e"]
    assert [(one.payload, one.qos, one.retain) for one in taken] == [(b"x" * 10, 1, False)] * 4
    for one in taken:
        second.forget(one)
    second.close("stopped")
    third = Spooler(1000, Counter(), file)
    assert len(third) == 0
    third.close("stopped")


def test_a_damaged_database_is_deleted_and_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "spooler.db"
    file.write_bytes(b"no database" * 1000)
    with caplog.at_level(logging.ERROR):
        spooler = Spooler(1000, Counter(), file)
    assert "is damaged" in caplog.text
    spooler.store(message("a"))
    spooler.close("stopped")
    again = Spooler(1000, Counter(), file)
    assert names(again) == ["a"]
    again.close("stopped")


def test_what_cannot_be_written_is_kept_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spooler = Spooler(1000, Counter(), tmp_path / "spooler.db")
    assert spooler._file is not None
    spooler._file._db.execute("DROP TABLE spooler")
    spooler.store(message("a"))
    assert "cannot be written" in caplog.text
    assert len(spooler) == 1
    assert spooler.close("stopped") == 1
