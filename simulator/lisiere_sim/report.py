"""The report: what was accepted, what was delivered, and whether anything is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from msgspec import Struct
from rich import box
from rich.console import Console
from rich.table import Table

from lisiere.spool import Counts
from lisiere_sim.subscriber import Seen


class Quantiles(Struct, frozen=True, kw_only=True):
    """On-device latency in milliseconds; null when nothing was delivered."""

    p50: float | None
    p95: float | None
    p99: float | None


class PipelineReport(Struct, frozen=True, kw_only=True):
    """One pipeline.

    Attributes:
        accepted: results committed to the device's spool.
        delivered: distinct results that reached the subscriber.
        duplicates: further copies of them, which at-least-once allows.
        lost: accepted, but neither delivered nor named by a gap record.
        evicted: named by gap records.
        waiting: still in the spool at the end; they count as lost, because the run is over.
        replayed: distinct results that came flagged `replay`.
        disordered: first deliveries out of order within a topic.
        backend: what ran the model; several, joined by `+`, when it changed.
        input_faults: how many results name which fault of their input, such as `gap`.
        frozen_after_s: how long after its camera froze for the first time the first result said so; null when the
            camera does not freeze, or no result says so.
    """

    accepted: int
    delivered: int
    duplicates: int
    lost: int
    backlog_peak: int
    backend: str
    latency_ms: Quantiles
    evicted: int
    waiting: int
    replayed: int
    disordered: int
    input_faults: dict[str, int]
    frozen_after_s: float | None


class OutageReport(Struct, frozen=True, kw_only=True):
    """One time without a network.

    Attributes:
        kind: `cut` or `stall`.
        start_s: seconds since the device came online.
        length_s: how long it lasted, as measured.
        backlog: results that waited when the network came back.
        drain_s: from then until the last of them was delivered; null when that did not happen.
    """

    kind: str
    start_s: float
    length_s: float
    backlog: int
    drain_s: float | None


class RestartReport(Struct, frozen=True, kw_only=True):
    """One kill -9 of a device, and how long it was gone before it was started again."""

    start_s: float
    length_s: float


class DeviceReport(Struct, frozen=True, kw_only=True):
    """One device. `holes` are seqs that neither arrived nor are explained; `lost` counts them too."""

    runtime: str
    pipelines: dict[str, PipelineReport]
    lost: int
    restarts: list[RestartReport]
    holes: int
    unreadable: int
    epoch: str
    exit_code: int


class Report(Struct, frozen=True, kw_only=True):
    """The whole run."""

    devices: dict[str, DeviceReport]
    outages: list[OutageReport]
    lost: int
    broker: str
    duration_s: float

    @property
    def pipelines(self) -> dict[str, PipelineReport]:
        """All pipelines, by `device/pipeline`."""
        return {
            f"{device}/{name}": pipeline
            for device, found in self.devices.items()
            for name, pipeline in found.pipelines.items()
        }

    @property
    def silent(self) -> list[str]:
        """The pipelines that delivered nothing."""
        return [name for name, pipeline in self.pipelines.items() if pipeline.delivered == 0]

    @property
    def whole(self) -> bool:
        """Whether nothing was lost and every pipeline delivered."""
        return self.lost == 0 and not self.silent


@dataclass(frozen=True)
class Evidence:
    """What is known of one device.

    Attributes:
        counts: the spool's counts after the device has ended, by pipeline.
        waiting: what still waits in the spool then.
        seen: what the subscriber saw.
        peaks: the largest backlog observed.
        holes: unexplained seqs.
        freezes: when cameras froze for the first time, in seconds since their first frame, by pipeline.
    """

    counts: Mapping[str, Counts]
    waiting: Mapping[str, int]
    seen: Mapping[str, Seen]
    peaks: Mapping[str, int]
    holes: Sequence[int]
    freezes: Mapping[str, float] = field(default_factory=dict)
    restarts: list[RestartReport] = field(default_factory=list)
    unreadable: int = 0
    runtime: str = ""
    epoch: str = ""
    exit_code: int = 0


def make_report(
    devices: Mapping[str, Evidence], outages: list[OutageReport], broker: str = "", duration_s: float = 0.0
) -> Report:
    """Judge a run."""
    judged = {name: _device(evidence) for name, evidence in devices.items()}
    return Report(
        devices=judged,
        outages=outages,
        lost=sum(device.lost for device in judged.values()),
        broker=broker,
        duration_s=round(duration_s, 1),
    )


def write_json(report: Report) -> bytes:
    """Encode a report as indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def print_report(report: Report, console: Console) -> None:
    """Print the table and the closing sentence."""
    room = 1 if console.width >= 90 else 0  # between columns; 80 characters must do
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, room, 0, 0))
    for heading in ("pipeline", "backend"):
        table.add_column(heading, no_wrap=True)
    for heading in ("accepted", "delivered", "duplicates", "lost", "backlog\npeak", "p50\nms", "p95\nms", "p99\nms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, pipeline in report.pipelines.items():
        latency = pipeline.latency_ms
        table.add_row(
            name,
            pipeline.backend or "-",
            str(pipeline.accepted),
            str(pipeline.delivered),
            str(pipeline.duplicates),
            f"[bold red]{pipeline.lost}[/]" if pipeline.lost else "0",
            str(pipeline.backlog_peak),
            *("-" if value is None else f"{value:.2f}" for value in (latency.p50, latency.p95, latency.p99)),
        )
    console.print(table)
    # One sentence a line, whatever the width: logs and scripts look for them.
    for sentence in sentences(report):
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)


def sentences(report: Report) -> list[str]:
    """Say in plain words how it went."""
    accepted = sum(pipeline.accepted for pipeline in report.pipelines.values())
    delivered = sum(pipeline.delivered for pipeline in report.pipelines.values())
    evicted = sum(pipeline.evicted for pipeline in report.pipelines.values())
    waiting = sum(pipeline.waiting for pipeline in report.pipelines.values())
    said = [
        f"{accepted} results accepted, {delivered} delivered, {report.lost} lost"
        + (f", {evicted} evicted by the spool's limit, as gap records say" if evicted else "")
        + "".join(_outage(outage) for outage in report.outages)
        + "."
    ]
    said += [
        f"{name} was killed at {restart.start_s:.1f} s and ran again {restart.length_s:.1f} s later."
        for name, device in report.devices.items()
        for restart in device.restarts
    ]
    said += [
        f"{name}: {', '.join(_named(count, fault) for fault, count in pipeline.input_faults.items())}."
        for name, pipeline in report.pipelines.items()
        if pipeline.input_faults
    ]
    said += [
        f"{name} said that its camera was frozen {pipeline.frozen_after_s:.1f} s after it froze."
        for name, pipeline in report.pipelines.items()
        if pipeline.frozen_after_s is not None
    ]
    if report.lost and waiting:
        said.append(f"Of those lost, {waiting} still wait in a spool: they were late rather than lost.")
    if report.lost and (holes := sum(device.holes for device in report.devices.values())):
        said.append(f"{holes} numbers of the sequence never arrived and no gap record explains them.")
    if report.silent:
        said.append(f"Nothing came from {', '.join(report.silent)}.")
    if unreadable := sum(device.unreadable for device in report.devices.values()):
        said.append(f"{unreadable} messages were not what their topic promises.")
    return said


def _named(count: int, fault: str) -> str:
    return f"{count} result{'' if count == 1 else 's'} of an input with {fault}"


def _outage(outage: OutageReport) -> str:
    away = f"; the network {'was away' if outage.kind == 'cut' else 'stalled'} for {outage.length_s:.1f} s"
    if outage.drain_s is None:
        return f"{away} and its backlog of {outage.backlog} was not delivered whole"
    return f"{away} and the backlog of {outage.backlog} was delivered {outage.drain_s:.1f} s after it came back"


def _device(evidence: Evidence) -> DeviceReport:
    """What was lost is the larger of what the counts and what the holes in `seq` say."""
    pipelines = {name: _pipeline(name, evidence) for name in evidence.seen}
    return DeviceReport(
        runtime=evidence.runtime,
        pipelines=pipelines,
        lost=max(sum(pipeline.lost for pipeline in pipelines.values()), len(evidence.holes)),
        restarts=evidence.restarts,
        holes=len(evidence.holes),
        unreadable=evidence.unreadable,
        epoch=evidence.epoch,
        exit_code=evidence.exit_code,
    )


def _pipeline(name: str, evidence: Evidence) -> PipelineReport:
    seen = evidence.seen[name]
    counts = evidence.counts.get(name, Counts())
    return PipelineReport(
        accepted=counts.accepted,
        delivered=seen.delivered,
        duplicates=seen.duplicates,
        # A result may have been delivered and, its PUBACK lost, been evicted as well: that is no negative loss.
        lost=max(0, counts.accepted - seen.delivered - seen.evicted),
        backlog_peak=evidence.peaks.get(name, 0),
        backend="+".join(sorted(seen.backends)),
        latency_ms=_quantiles(seen.latencies),
        evicted=seen.evicted,
        waiting=evidence.waiting.get(name, 0),
        replayed=seen.replayed,
        disordered=seen.disordered,
        input_faults=dict(sorted(seen.faults.items())),
        frozen_after_s=_frozen_after(seen, evidence.freezes.get(name)),
    )


def _frozen_after(seen: Seen, at_s: float | None) -> float | None:
    """How long it took to name a freeze: by the stamps of the results, and the first is that of the first frame."""
    if at_s is None or "frozen" not in seen.named:
        return None
    return round(seen.named["frozen"] - seen.first - at_s, 2)


def _quantiles(latencies: Sequence[float]) -> Quantiles:
    if not latencies:
        return Quantiles(p50=None, p95=None, p99=None)
    p50, p95, p99 = (round(float(value), 3) for value in np.percentile(latencies, [50, 95, 99]))
    return Quantiles(p50=p50, p95=p95, p99=p99)
