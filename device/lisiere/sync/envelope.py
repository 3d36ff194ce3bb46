"""The messages that leave the device, as docs/contract has them.

A result's body is encoded once, when it is made, and stored so; what is only known later (its seq, when it is
published, whether it is a replay) is put around those bytes when they leave.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from lisiere.clock import TsQuality, parse_ts, rfc3339
from lisiere.spool import GapBody, Row
from lisiere.timeline import Origin, Timeline
from lisiere.values import EventBody, InputInfo, ScoreBody

SCHEMAS = {kind: f"lisiere.{kind}/1" for kind in ("result", "event", "score", "gap")}  # by the kind of a row
TaskKind = Literal["classification", "detection", "forecasting", "anomaly"]
BATCH_SCHEMA = "lisiere.batch/1"
# How a body begins that was stamped by a clock that nobody vouched for; the order is that of _Stamped.
_ORIGIN = re.compile(rb'\{"ts":"(?P<ts>[^"]+)","ts_quality":"\w+","clock":(?P<origin>\{[^}]*\})')


class ModelInfo(Struct, frozen=True, kw_only=True):
    """Which model gave a result, by which backend, and why that one."""

    name: str
    version: str
    digest: str
    backend: str
    backend_why: str
    target: str


class Latency(Struct, frozen=True, kw_only=True):
    """Where the time went on the device, in milliseconds."""

    preprocess: float
    infer: float
    postprocess: float


class WindowInfo(Struct, frozen=True, kw_only=True):
    """The stretch of readings behind a series result.

    Attributes:
        n: its rows, `step_s` seconds apart.
        coverage: share of its values that were measured.
        imputed: how many rows were interpolated, in one channel at least.
        imputed_rows: which, as [first, how many], counted from 0. Of more than 32 stretches the nearest are joined, so
            that rows between them are named as well.
    """

    start: str
    end: str
    step_s: float
    n: int
    coverage: float
    imputed: int
    imputed_rows: list[tuple[int, int]] = field(default_factory=list)


class _Stamped(Struct, frozen=True, kw_only=True):
    """What the messages of a pipeline begin with, as the spool holds them."""

    ts: str
    ts_quality: TsQuality
    clock: Origin | UnsetType = UNSET  # while the true time is not known
    pipeline: str
    source: str
    task: TaskKind
    model: ModelInfo


class ResultBody(_Stamped, frozen=True, kw_only=True):
    """A result as the spool holds it: the envelope without its identity. `input` says how far it can be trusted."""

    latency_ms: Latency
    input: InputInfo = field(default_factory=InputInfo)
    window: WindowInfo | UnsetType = UNSET
    result: Any  # a `values.Body`, the one that `task` says


class EventMessage(_Stamped, frozen=True, kw_only=True):
    """An event as the spool holds it."""

    event: EventBody


class ScoreMessage(_Stamped, frozen=True, kw_only=True):
    """How a forecast did, as the spool holds it."""

    score: ScoreBody


class ResultEnvelope(ResultBody, frozen=True, kw_only=True):
    """A result as a subscriber gets it. `id` is `<device>:<epoch>:<seq>`; deduplicate by it.

    `formerly` is `<epoch>:<seq>` before its spool was replaced: a damaged one, or one that was imported. It may have
    arrived by that name already.
    """

    schema: Literal["lisiere.result/1"]
    id: str
    device: str
    epoch: str
    seq: int
    formerly: str | UnsetType = UNSET
    published_ts: str
    replay: bool


class EventEnvelope(EventMessage, frozen=True, kw_only=True):
    """Something that lasts begins, changes or ends. Its identity is like that of a result, and numbered with them."""

    schema: Literal["lisiere.event/1"]
    id: str
    device: str
    epoch: str
    seq: int
    formerly: str | UnsetType = UNSET
    published_ts: str
    replay: bool


class ScoreEnvelope(ScoreMessage, frozen=True, kw_only=True):
    """How a forecast did when its time came. Its identity is like that of a result, and numbered with them."""

    schema: Literal["lisiere.score/1"]
    id: str
    device: str
    epoch: str
    seq: int
    formerly: str | UnsetType = UNSET
    published_ts: str
    replay: bool


# What a pipeline sends; each has a seq of its own.
Sequenced = ResultEnvelope | EventEnvelope | ScoreEnvelope


class BatchEnvelope(Struct, frozen=True, kw_only=True):
    """Results of the backlog in one message, where `backlog_batch_kb` asks for it; deduplicate by the `id` of each.

    On `backlog/<pipeline>`; on `backlog/<pipeline>/zstd` the same compressed, by `backlog_zstd`. All are of one
    pipeline and in the order of seq.
    """

    schema: Literal["lisiere.batch/1"]
    device: str
    epoch: str
    published_ts: str
    results: Annotated[list[ResultEnvelope], Meta(min_length=2)]


class GapEnvelope(GapBody, frozen=True, kw_only=True):
    """What was never delivered: inclusive ranges of seq, and counts by pipeline.

    `spool_full`: evicted to make room. `expired`: nobody wants it any more. `too_large`: larger than the transport
    carries. `refused`: the other end says that it can never be taken, or ends the connection by it again and again,
    while others pass. `spool_damaged`: lost on the device's disk.
    """

    schema: Literal["lisiere.gap/1"]
    id: str
    device: str
    epoch: str
    seq: int
    published_ts: str
    replay: bool


class StatusMessage(Struct, frozen=True, kw_only=True):
    """Retained on `status`: `online` at birth, `stopped` after a clean stop, `offline` by the broker's will.

    `epoch` is empty while the spool cannot be opened, because its disk refuses.
    """

    schema: Literal["lisiere.status/1"] = "lisiere.status/1"
    device: str
    state: Literal["online", "offline", "stopped"]
    epoch: str
    ts: str
    version: str


class PipelineHealth(Struct, frozen=True, kw_only=True):
    """One pipeline: its state, and its counters since the start."""

    state: Literal["starting", "running", "waiting", "failed", "ended"]
    why: str
    backend: str
    counters: dict[str, int]


class HealthMessage(Struct, frozen=True, kw_only=True):
    """How the device is: `degraded` when a pipeline does not run or one of the failures is told, else `ok`.

    `spool_failure` says why nothing can be written, or that a damaged spool was replaced since the start.
    `configuration_failure` says why a newer configuration was refused; `delivery_failure`, why results wait.
    `clock_steps` counts how often wall time was set while the device ran.
    `commands` counts what became of them: answered, rejected, unknown, expired, malformed, oversized, too_many.
    `local` counts the results for other components of the device: published, missed, failed, too_many.
    """

    schema: Literal["lisiere.health/1"] = "lisiere.health/1"
    device: str
    ts: str
    ts_quality: TsQuality
    clock_steps: int
    state: Literal["ok", "degraded"]
    uptime_s: float
    pipelines: dict[str, PipelineHealth]
    spool: dict[str, int]
    spool_failure: str | None
    delivery_failure: str | None
    configuration_failure: str | None
    commands: dict[str, int]
    local: dict[str, int]


class LatencyQuantiles(Struct, frozen=True, kw_only=True):
    """Of the whole on-device latency over the last interval, in milliseconds."""

    p50: float
    p95: float
    p99: float


class PipelineMetrics(Struct, frozen=True, kw_only=True):
    """One pipeline over the last interval."""

    results_per_s: float
    latency_ms: LatencyQuantiles | None
    queue: int


class MetricsMessage(Struct, frozen=True, kw_only=True):
    """Figures over the last interval of `interval_s` seconds."""

    schema: Literal["lisiere.metrics/1"] = "lisiere.metrics/1"
    device: str
    ts: str
    interval_s: float
    rss_mb: float | None
    pipelines: dict[str, PipelineMetrics]
    spool: dict[str, int]


class CommandMessage(Struct, frozen=True, kw_only=True):
    """What is sent to `cmd/<name>`, for `ping`, `health` and `metrics`. Other keys are let pass.

    `id` comes back in the reply. After `expires` (RFC 3339) the command is not answered any more.
    """

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    expires: str | None = None


class AckCommand(CommandMessage, frozen=True, kw_only=True):
    """What is sent to `cmd/ack` where `consumer_ack` is on: inclusive ranges of seq that a consumer has for good.

    What was not sent yet, or not since the device's last start, is not acknowledged by it; it comes (again).
    """

    epoch: str
    ranges: Annotated[list[tuple[int, int]], Meta(min_length=1, max_length=200)]


class AckAnswer(Struct, frozen=True, kw_only=True):
    """The answer to `ack`: how many messages the device lets go of."""

    acknowledged: int


class InferCommand(CommandMessage, frozen=True, kw_only=True):
    """What is sent to `cmd/infer`: let a pipeline's model see the next frame of its camera, whatever the trigger says.

    The answer comes at once; the result comes as all results do, with the command's `id` in `input.command`.
    """

    pipeline: str


class InferAnswer(Struct, frozen=True, kw_only=True):
    """The answer to `infer`: whose next frame is taken."""

    pipeline: str


class PingAnswer(Struct, frozen=True, kw_only=True):
    """The answer to `ping`."""

    version: str
    uptime_s: float


class ReplyMessage(Struct, frozen=True, kw_only=True):
    """What comes on `reply/<name>`, never retained: the answer, or `done: false` and why there is none."""

    schema: Literal["lisiere.reply/1"] = "lisiere.reply/1"
    id: str
    device: str
    ts: str
    command: str
    done: bool
    why: str | None
    answer: Any


def restamp(row: Row, timeline: Timeline) -> Row:
    """Return a row with its time put right, if it was stamped by a clock that was not and the true time is known now.

    The body on disk stays as it is: the true time may become better known until the row leaves.
    """
    found = _ORIGIN.match(row.body) if row.kind != "gap" else None
    if found is None:
        return row
    ts = timeline.corrected(parse_ts(found["ts"].decode()), msgspec.json.decode(found["origin"], type=Origin))
    if ts is None:
        return row
    head = f'{{"ts":"{rfc3339(ts)}","ts_quality":"corrected"'
    return dataclasses.replace(row, body=head.encode() + row.body[found.end() :])


def seal(row: Row, device: str, epoch: str, published: float, replay: bool) -> bytes:
    """Put a stored body into its envelope.

    Args:
        row: a row of the spool; its body is a JSON object that is not empty.
        device: the device's name.
        epoch: the spool's epoch.
        published: wall time of this publication, seconds since the epoch.
        replay: whether the row waited out an outage.
    """
    head = (
        f'{{"schema":"{SCHEMAS[row.kind]}","id":"{device}:{epoch}:{row.seq}","device":"{device}","epoch":"{epoch}",'
        f'"seq":{row.seq},'
    )
    tail = f',"published_ts":"{rfc3339(published)}","replay":{"true" if replay else "false"}}}'
    return head.encode() + row.body[1:-1] + tail.encode()
