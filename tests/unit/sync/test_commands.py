"""Commands: answered, or counted under a name; never more of them than there is room for."""

from __future__ import annotations

import json
import logging
from typing import Any

import jsonschema
import pytest

from lisiere.clock import ManualClock, rfc3339
from lisiere.schema import json_schema
from lisiere.sync.commands import Commands
from lisiere.sync.envelope import PingAnswer
from lisiere.sync.topics import Topics

BASE = "lisiere/v1/pi"


class Asked:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.woken = 0
        self.replies: list[tuple[str, dict[str, Any]]] = []
        answers = {"ping": lambda _payload: PingAnswer(version="1", uptime_s=2.0)}
        self.commands = Commands("pi", Topics("lisiere", "pi"), self.clock, answers, self.wake)

    def wake(self) -> None:
        self.woken += 1

    def ask(self, name: str, payload: bytes) -> None:
        self.commands.received(f"{BASE}/cmd/{name}", payload)
        self.commands.work(self.reply)

    def reply(self, topic: str, payload: bytes) -> None:
        jsonschema.validate(json.loads(payload), json_schema("reply"))
        self.replies.append((topic, json.loads(payload)))


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_a_command_is_answered_with_its_id(asked: Asked) -> None:
    asked.ask("ping", b'{"id": "a-7", "note": "other keys are let pass"}')
    ((topic, reply),) = asked.replies
    assert topic == f"{BASE}/reply/ping"
    assert (reply["id"], reply["done"], reply["why"]) == ("a-7", True, None)
    assert reply["answer"] == {"version": "1", "uptime_s": 2.0}
    assert asked.woken == 1
    assert asked.commands.counts() == {"answered": 1}


def test_an_unknown_command_is_told_what_there_is(asked: Asked) -> None:
    asked.ask("dance", b'{"id": "1"}')
    ((topic, reply),) = asked.replies
    assert topic == f"{BASE}/reply/dance"
    assert (reply["done"], reply["answer"]) == (False, None)
    assert "there are ping" in reply["why"]


def test_an_expired_one_is_counted(asked: Asked) -> None:
    until = rfc3339(asked.clock.now() + 10)
    asked.ask("ping", json.dumps({"id": "1", "expires": until}).encode())
    asked.clock.advance(11)
    asked.ask("ping", json.dumps({"id": "2", "expires": until}).encode())
    assert [reply["id"] for _, reply in asked.replies] == ["1"]
    assert asked.commands.counts() == {"answered": 1, "expired": 1}


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b"\xff\x00", b'{"id": 7}', b'{"id": ""}', b'{"id": "1", "expires": "soon"}', b"[" * 8000],
    ids=range(8),
)
def test_a_malformed_one_is_counted(asked: Asked, payload: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asked.ask("ping", payload)
    assert asked.replies == []
    assert asked.commands.counts() == {"malformed": 1}
    assert len(caplog.records) == 1


def test_a_topic_that_is_no_commands_is_counted(asked: Asked) -> None:
    asked.ask("a/b", b'{"id": "1"}')
    asked.ask("", b'{"id": "1"}')
    assert asked.replies == []
    assert asked.commands.counts() == {"unknown": 2}


def test_an_oversized_one_is_counted_and_not_kept(asked: Asked) -> None:
    asked.ask("ping", b'{"id": "1", "x": "' + b"x" * 9000 + b'"}')
    assert asked.woken == 0
    assert asked.commands.counts() == {"oversized": 1}


def test_a_flood_is_cut(asked: Asked) -> None:
    for at in range(100):
        asked.commands.received(f"{BASE}/cmd/ping", b'{"id": "%d"}' % at)
    asked.commands.work(asked.reply)
    assert [reply["id"] for _, reply in asked.replies] == [str(at) for at in range(16)]
    assert asked.commands.counts() == {"answered": 16, "too_many": 84}
