"""From payloads to typed messages; whatever is not what its topic promises is `Rejected` with a reason."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from lisiere.errors import Rejected
from lisiere.sync.envelope import (
    EventEnvelope,
    GapEnvelope,
    HealthMessage,
    MetricsMessage,
    ResultEnvelope,
    ScoreEnvelope,
    Sequenced,
    StatusMessage,
)
from lisiere.values import AnomalyBody, ClassificationBody, DetectionBody, ForecastingBody

_BODIES = {
    "classification": ClassificationBody,
    "detection": DetectionBody,
    "forecasting": ForecastingBody,
    "anomaly": AnomalyBody,
}
_KINDS: dict[str, Any] = {
    "gap": GapEnvelope,
    "status": StatusMessage,
    "health": HealthMessage,
    "metrics": MetricsMessage,
}
_PIPELINE_MESSAGES: dict[str, type[EventEnvelope | ScoreEnvelope]] = {
    "lisiere.event/1": EventEnvelope,
    "lisiere.score/1": ScoreEnvelope,
}
_ZSTD = b"\x28\xb5\x2f\xfd"
_UNPACKED_MAX_BYTES = 16 << 20
_SEQ_END = 1 << 63  # SQLite's, which gives them

Typed = Sequenced | GapEnvelope | StatusMessage | HealthMessage | MetricsMessage


class _Batch(Struct):
    schema: str
    results: list[msgspec.Raw]


class _Schema(Struct):
    schema: str


def read(kind: str, device: str, payload: bytes) -> list[Typed]:
    """Return what a message holds: one, but for a batch of results.

    Args:
        kind: the level of the topic behind the device, such as `result`.
        device: the level before it, which the message must agree with.
        payload: as it came.

    Raises:
        Rejected: it is not what its topic promises.
    """
    try:
        if kind in _KINDS:
            found: list[Typed] = [msgspec.json.decode(payload, type=_KINDS[kind])]
        else:
            found = [_sequenced(one) for one in _envelopes(payload)]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Rejected(f"It is no {kind} message: {error}") from error
    for message in found:
        if message.device != device:
            raise Rejected(f"It says that it is from {message.device!r}, and its topic that it is from {device!r}.")
        if isinstance(message, Sequenced | GapEnvelope) and not 0 < message.seq < _SEQ_END:
            raise Rejected(f"Its seq is {message.seq}; they start at 1 and end before 2^63.")
        if isinstance(message, GapEnvelope) and any(first < 1 or first > last for first, last in message.ranges):
            raise Rejected("Its ranges are none.")
    return found


def _envelopes(payload: bytes) -> list[bytes]:
    if payload.startswith(_ZSTD):
        payload = _unpacked(payload)
    schema = msgspec.json.decode(payload, type=_Schema).schema
    if schema != "lisiere.batch/1":
        return [payload]
    return [bytes(one) for one in msgspec.json.decode(payload, type=_Batch).results]


def _sequenced(payload: bytes) -> Sequenced:
    kind = _PIPELINE_MESSAGES.get(msgspec.json.decode(payload, type=_Schema).schema)
    if kind is not None:
        return msgspec.json.decode(payload, type=kind)
    envelope = msgspec.json.decode(payload, type=ResultEnvelope)
    body = msgspec.convert(envelope.result, _BODIES[envelope.task])
    return msgspec.structs.replace(envelope, result=body)


def _unpacked(payload: bytes) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise Rejected("It is a batch packed by zstd. Install the package `zstandard` to read it.") from error
    try:
        unpacked: bytes = zstandard.ZstdDecompressor().decompress(payload, max_output_size=_UNPACKED_MAX_BYTES)
    except zstandard.ZstdError as error:
        raise Rejected(f"It cannot be unpacked: {error}") from error
    if len(unpacked) > _UNPACKED_MAX_BYTES:  # a frame that says its size is not held to the limit
        raise Rejected(f"It unpacks to more than {_UNPACKED_MAX_BYTES} bytes.")
    return unpacked
