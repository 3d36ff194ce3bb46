"""The few bytes of MQTT 3.1.1 that a test needs in order to behave as no client library would."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import msgspec

CONNACK, PUBLISH, PUBACK = 0x20, 0x30, 0x40


def connect(client_id: str, will: tuple[str, bytes] | None = None) -> bytes:
    """A CONNECT with a clean session and no keep-alive; amqtt reads fastest without one."""
    flags, payload = 0x02, _text(client_id)
    if will is not None:
        flags |= 0x04 | 0x08 | 0x20  # a will, QoS 1, retained
        payload += _text(will[0]) + struct.pack("!H", len(will[1])) + will[1]
    return _packet(0x10, _text("MQTT") + bytes([4, flags, 0, 0]) + payload)


def publish(topic: str, packet_id: int, payload: bytes) -> bytes:
    """A PUBLISH with QoS 1."""
    return _packet(0x32, _text(topic) + struct.pack("!H", packet_id) + payload)


def acknowledged(data: bytes) -> list[int]:
    """The packet ids of a run of PUBACKs."""
    whole = len(data) // 4 * 4
    return [struct.unpack("!H", data[at + 2 : at + 4])[0] for at in range(0, whole, 4) if data[at] == PUBACK]


def open_connection(address: tuple[str, int], client_id: str, will: tuple[str, bytes] | None = None) -> socket.socket:
    """Connect, and return once the broker has accepted."""
    link = socket.create_connection(address, timeout=10)
    link.sendall(connect(client_id, will))
    answer = b""
    while len(answer) < 4:
        answer += link.recv(4 - len(answer))
    assert answer[0] == CONNACK
    assert answer[3] == 0
    return link


@dataclass
class Envelopes:
    """Makes the messages of one device's pipelines, as docs/contract has them."""

    device: str = "sim"
    epoch: str = "e1"
    changes: dict[str, Any] = field(default_factory=dict)

    def result(self, seq: int, pipeline: str = "dock", replay: bool = False, backend: str = "dlr") -> bytes:
        return msgspec.json.encode(
            {
                "schema": "lisiere.result/1",
                "id": f"{self.device}:{self.epoch}:{seq}",
                "device": self.device,
                "epoch": self.epoch,
                "seq": seq,
                "ts": "2026-01-31T07:36:16.123Z",
                "ts_quality": "synced",
                "pipeline": pipeline,
                "source": "camera0",
                "task": "classification",
                "model": {
                    "name": "digits",
                    "version": "1.0.0",
                    "digest": "sha256:0",
                    "backend": backend,
                    "backend_why": "auto: first choice",
                    "target": "x",
                },
                "input": {"faults": [], "age_ms": None, "measures": {}},
                "latency_ms": {"preprocess": 0.5, "infer": 1.0, "postprocess": 0.5},
                "result": {"label": "7", "score": 0.981, "top": [], "decided": True},
                "published_ts": "2026-01-31T07:36:16.123Z",
                "replay": replay,
                **self.changes,
            }
        )

    def status(self, state: str = "online") -> bytes:
        return msgspec.json.encode(
            {
                "schema": "lisiere.status/1",
                "device": self.device,
                "state": state,
                "epoch": self.epoch,
                "ts": "2026-01-31T07:36:16.123Z",
                "version": "1",
            }
        )

    def event(self, seq: int, pipeline: str = "dock", replay: bool = False, **changes: Any) -> bytes:
        """A message of an event."""
        event = {"event": "1", "phase": "new", "label": "7", "score": 0.9, "count": 3}
        event |= {"since": "2026-01-31T07:36:15.000Z", "until": "2026-01-31T07:36:16.000Z"}
        return self._beside(seq, pipeline, replay, "event", event | changes)

    def score(self, seq: int, pipeline: str = "dock", replay: bool = False, **changes: Any) -> bytes:
        """A message of how a forecast did."""
        channel = {"n": 6, "mae": 0.5, "model_mae": 0.5, "naive_mae": 1.0, "skill": 0.5}
        channel |= {"coverage": 0.8, "pinball": 0.2}
        leads = [{"first": 1, "last": 6, "skill": 0.5, "coverage": 0.8}]
        score = {
            "made_ts": "2026-01-31T07:00:00.000Z",
            "until_ts": "2026-01-31T08:00:00.000Z",
            "method": "model",
            "steps": 6,
            "skill": 0.5,
            "channels": {"level": channel},
            "running": {
                "forecasts": 1,
                "every": 1,
                "unscored": 0,
                "skill": 0.5,
                "channels": {"level": channel},
                "leads": leads,
            },
        }
        return self._beside(seq, pipeline, replay, "score", score | changes)

    def _beside(self, seq: int, pipeline: str, replay: bool, kind: str, body: dict[str, Any]) -> bytes:
        message = msgspec.json.decode(self.result(seq, pipeline, replay))
        for key in ("latency_ms", "input", "result"):
            del message[key]
        return msgspec.json.encode({**message, "schema": f"lisiere.{kind}/1", kind: body})

    def gap(self, seq: int, ranges: list[tuple[int, int]], counts: dict[str, int]) -> bytes:
        return msgspec.json.encode(
            {
                "schema": "lisiere.gap/1",
                "id": f"{self.device}:{self.epoch}:{seq}",
                "device": self.device,
                "epoch": self.epoch,
                "seq": seq,
                "ts": "2026-01-31T07:36:16.123Z",
                "reason": "spool_full",
                "ranges": ranges,
                "exact": True,
                "summary": {},
                "counts": counts,
                "first_ts": "2026-01-31T07:36:16.123Z",
                "last_ts": "2026-01-31T07:36:16.123Z",
                "published_ts": "2026-01-31T07:36:16.123Z",
                "replay": False,
            }
        )


def _text(text: str) -> bytes:
    return struct.pack("!H", len(text.encode())) + text.encode()


def _packet(kind: int, body: bytes) -> bytes:
    head, rest = bytearray([kind]), len(body)
    while True:
        rest, digit = divmod(rest, 128)
        head.append(digit | (128 if rest else 0))
        if not rest:
            return bytes(head) + body
