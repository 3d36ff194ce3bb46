"""Runs a scenario: sets the stage, plays the faults on time, and gathers the evidence.

Only processes that were started here are ended here, whatever goes wrong.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lisiere.errors import ConfigError, Permanent
from lisiere_sim import inputs
from lisiere_sim.broker import Broker, choose_broker
from lisiere_sim.device import DeviceProcess, SpoolView, device_config
from lisiere_sim.models import find_data, find_model
from lisiere_sim.progress import Line, Progress, State, describe
from lisiere_sim.proxy import Proxy
from lisiere_sim.pump import Fault as PumpFaultKind
from lisiere_sim.report import Evidence, OutageReport, Report, RestartReport, make_report
from lisiere_sim.scenario import CameraInput, CsvInput, Fault, PumpInput, Scenario
from lisiere_sim.subscriber import Subscriber, Watch

PREFIX = "lisiere"
_ONLINE_S = 60.0
_TICK_S = 0.2
_CATCH_UP_S = 60.0
_LAST_MESSAGES_S = 10.0


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        base: the folder that relative paths of the scenario start from.
        models: the folder of compiled models.
        broker: `embedded`, `mosquitto` or HOST:PORT.
        keep: a folder that is left with the configuration, logs and spool; a temporary one when None.
    """

    scenario: Scenario
    base: Path
    models: Path
    broker: str = "embedded"
    keep: Path | None = None


@dataclass
class _Outage:
    """One outage while it is being measured; times are seconds into the scenario."""

    kind: str
    start_s: float
    end_s: float = 0.0
    watch: Watch | None = None
    told: bool = False

    def drain_s(self, begun: float) -> float | None:
        """How long after its end the backlog had been delivered; None while it has not."""
        if self.watch is None or self.watch.done_at is None:
            return None
        return max(0.0, self.watch.done_at - begun - self.end_s)


@dataclass
class _Notes:
    """What is written down while the scenario runs."""

    peaks: dict[str, int] = field(default_factory=dict)
    outages: list[_Outage] = field(default_factory=list)
    restarts: list[RestartReport] = field(default_factory=list)
    begun: set[str] = field(default_factory=set)  # pipelines that have delivered
    states: dict[str, str] = field(default_factory=dict)  # what anomaly pipelines last said


def run_scenario(plan: Plan, progress: Progress) -> Report:
    """Run a scenario to its report.

    Raises:
        ConfigError: a model, a file or the broker that it names is not there.
        LisiereError: broker or device cannot do their part.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder(plan.keep))
        run = _Run(plan, progress, folder, stack)
        run.prepare()
        run.play()
        return run.finish()


class _Run:
    """One run. What it starts goes on the stack, so that it ends in reverse order."""

    def __init__(self, plan: Plan, progress: Progress, folder: Path, stack: contextlib.ExitStack) -> None:
        self._plan = plan
        self._scenario = plan.scenario
        self._progress = progress
        self._folder = folder
        self._stack = stack
        self._broker: Broker = choose_broker(plan.broker, folder)
        self._inputs: dict[str, inputs.Input] = {}
        self._notes = _Notes()
        self._begun = 0.0
        self._halt = threading.Event()
        self._alive = True  # whether the device is meant to be running

    def prepare(self) -> None:
        """Find models, render inputs, start broker, network, subscriber and device; wait for its birth message."""
        scenario, say = self._scenario, self._progress.event
        models = {
            pipeline.name: find_model(
                pipeline.model, self._plan.models, self._plan.base, f"$.pipelines[{number}].model", say
            )
            for number, pipeline in enumerate(scenario.pipelines)
        }
        self._make_inputs()
        address = self._broker.start()
        self._stack.callback(self._broker.stop)
        say(f"broker {self._broker.name} at {address[0]}:{address[1]}")
        self._subscriber = Subscriber(PREFIX, scenario.device)
        self._subscriber.start(address)
        self._stack.callback(self._subscriber.stop)
        self._proxy = Proxy(address)
        link = self._proxy.start()
        self._stack.callback(self._proxy.stop)
        sources = {name: feed.source for name, feed in self._inputs.items()}
        self._device = DeviceProcess(self._folder, device_config(scenario, sources, models, link, PREFIX))
        self._spool = SpoolView(self._folder / "spool")
        self._stack.callback(self._spool.close)
        self._stack.callback(self._device.kill)
        for feed in self._inputs.values():
            self._stack.callback(feed.stop)
            feed.start()
        self._device.start()
        self._await_birth()
        self._begun = time.monotonic()
        say(f"device {scenario.device} online, pipelines {', '.join(self._inputs)}", 0.0)

    def play(self) -> None:
        """Play the schedule to the scenario's end."""
        schedule = sorted(self._schedule(), key=lambda item: item[0])
        while (now := self._now()) < self._scenario.duration_s or schedule:
            while schedule and schedule[0][0] <= now:
                schedule.pop(0)[1]()
            self._look()
            until = min([self._scenario.duration_s, *(at for at, _ in schedule[:1])])
            self._halt.wait(max(0.0, min(_TICK_S, until - self._now())))

    def finish(self) -> Report:
        """Let the backlog drain, stop the device, and judge."""
        scenario, say = self._scenario, self._progress.event
        for feed in self._inputs.values():
            feed.stop()
        say("time is up, waiting for what is on its way", self._now())
        # A device that has just been started again needs a moment before it can be stopped properly.
        self._subscriber.wait_for(lambda seen: seen.statuses[-1:] == ("online",), _CATCH_UP_S / 2)
        watch = self._subscriber.watch(self._spool.epoch, self._spool.waiting_seqs())
        until = time.monotonic() + _CATCH_UP_S
        while watch.done_at is None and time.monotonic() < until:
            self._subscriber.wait_for(lambda _: watch.done_at is not None, _TICK_S)
            self._look()
        self._alive = False
        code = self._device.stop()
        say(f"device stopped with exit code {code}", self._now())
        if code != 0:
            raise Permanent(f"The device ended with exit code {code} after SIGTERM.{self._device.last_words()}")
        counts, waiting = self._spool.counts(), self._spool.waiting()
        due = {name: found.accepted - waiting.get(name, 0) - found.evicted for name, found in counts.items()}
        self._subscriber.wait_for(
            lambda seen: all(seen.delivered.get(name, 0) >= number for name, number in due.items()), _LAST_MESSAGES_S
        )
        if self._subscriber.failure is not None:
            raise Permanent(self._subscriber.failure)
        epoch = self._spool.epoch
        return make_report(
            Evidence(
                counts=counts,
                waiting=waiting,
                seen={pipeline.name: self._subscriber.seen(pipeline.name) for pipeline in scenario.pipelines},
                peaks=self._notes.peaks,
                holes=self._subscriber.holes(epoch, self._spool.highest),
                outages=[self._measured(outage) for outage in self._notes.outages],
                restarts=self._notes.restarts,
                unreadable=self._subscriber.snapshot().unreadable,
                device=scenario.device,
                epoch=epoch,
                broker=self._broker.name,
                duration_s=self._now(),
                exit_code=code,
            )
        )

    def _make_inputs(self) -> None:
        scenario = self._scenario
        # A socket's path may have about a hundred characters, which a kept folder may exceed.
        sockets = Path(tempfile.mkdtemp(prefix="lisiere-"))
        self._stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        for number, pipeline in enumerate(scenario.pipelines):
            seed, where = scenario.seed + number, f"$.pipelines[{number}].input"
            feed: inputs.Input
            if isinstance(pipeline.input, CameraInput):
                glyphs = find_data(pipeline.input.glyphs, self._plan.base, f"{where}.glyphs")
                folder = self._folder / "inputs" / pipeline.name
                folder.mkdir(parents=True)
                feed = inputs.camera(pipeline.input, glyphs, seed, folder, where)
            elif isinstance(pipeline.input, PumpInput):
                feed = inputs.PumpFeed(pipeline.input, seed, sockets / f"{number}.sock")
            else:
                assert isinstance(pipeline.input, CsvInput)  # noqa: S101 - the last of the three
                file = find_data(pipeline.input.path, self._plan.base, f"{where}.path")
                feed = inputs.replay(pipeline.input, file, scenario.duration_s, where)
            self._inputs[pipeline.name] = feed

    def _await_birth(self) -> None:
        until = time.monotonic() + _ONLINE_S
        while not self._subscriber.wait_for(lambda seen: "online" in seen.statuses, _TICK_S):
            self._device.check()
            if self._subscriber.failure is not None:
                raise Permanent(self._subscriber.failure)
            if time.monotonic() > until:
                raise Permanent(f"The device was not online within {_ONLINE_S:g} s.{self._device.last_words()}")

    def _schedule(self) -> Iterator[tuple[float, Callable[[], None]]]:
        """What happens when, as pairs of seconds and what to do."""
        for fault in self._scenario.faults:
            begin, end = (self._kill, self._revive) if fault.kind == "kill" else (self._break, self._heal)
            yield fault.at_s, partial(begin, fault)
            yield fault.end_s, partial(end, fault)
        for pipeline in self._scenario.pipelines:
            feed = self._inputs[pipeline.name]
            if isinstance(pipeline.input, PumpInput) and isinstance(feed, inputs.PumpFeed):
                for ill in pipeline.input.faults:
                    yield ill.at_s, partial(self._set_pump, pipeline.name, feed, ill.kind, ill.severity)
                    yield ill.at_s + ill.length_s, partial(self._set_pump, pipeline.name, feed, ill.kind, 0.0)

    def _set_pump(self, name: str, feed: inputs.PumpFeed, kind: PumpFaultKind, severity: float) -> None:
        feed.set_fault(kind, severity)
        self._progress.event(f"{name}: {kind} fault {'begins' if severity else 'ends'}", self._now())

    def _break(self, fault: Fault) -> None:
        if fault.kind == "delay":
            self._proxy.delay(fault.delay_ms or 0.0)
        else:
            (self._proxy.cut if fault.kind == "cut" else self._proxy.stall)()
            self._notes.outages.append(_Outage(fault.kind, self._now()))
        state = f"delayed by {fault.delay_ms:g} ms each way" if fault.delay_ms else self._proxy.link
        self._progress.event(f"link {state} for {fault.length_s:g} s", self._now())

    def _heal(self, fault: Fault) -> None:
        if fault.kind == "delay":
            self._proxy.heal()
            self._progress.event("link back to full speed", self._now())
            return
        outage = self._notes.outages[-1]
        outage.watch = self._subscriber.watch(self._spool.epoch, self._spool.waiting_seqs())
        self._count_backlog()
        outage.end_s = self._now()
        self._proxy.heal()
        self._progress.event(f"link back, {outage.watch.size} results wait", self._now())

    def _kill(self, _fault: Fault) -> None:
        self._alive = False
        self._device.kill()
        self._notes.restarts.append(RestartReport(start_s=round(self._now(), 2), length_s=0.0))
        self._progress.event("device killed (kill -9)", self._now())

    def _revive(self, _fault: Fault) -> None:
        self._device.start()
        self._alive = True
        killed = self._notes.restarts[-1].start_s
        self._notes.restarts[-1] = RestartReport(start_s=killed, length_s=round(self._now() - killed, 2))
        self._progress.event("device started again", self._now())

    def _look(self) -> None:
        """Check that everybody is there, note the backlog, and show how it stands."""
        if self._alive:
            self._device.check()
        if self._subscriber.failure is not None:
            raise Permanent(self._subscriber.failure)
        waiting, counts, lines = self._count_backlog(), self._spool.counts(), {}
        for name in self._inputs:
            seen = self._subscriber.seen(name)
            if seen.backends and name not in self._notes.begun:
                self._notes.begun.add(name)
                self._progress.event(f"{name}: first result, by {'+'.join(seen.backends)}", self._now())
            if seen.task == "anomaly":
                state = str(seen.answer.get("state"))
                if state != self._notes.states.get(name, "normal"):
                    self._progress.event(f"{name}: the device finds it {state}", self._now())
                self._notes.states[name] = state
            accepted = counts[name].accepted if name in counts else 0
            lines[name] = Line(accepted, seen.delivered, waiting.get(name, 0), describe(seen.task, seen.answer))
        for outage in self._notes.outages:
            if not outage.told and outage.watch and (drain := outage.drain_s(self._begun)) is not None:
                outage.told = True
                text = f"the backlog of {outage.watch.size} is delivered, {drain:.1f} s after the link's return"
                self._progress.event(text, self._now())
        device = "running" if self._alive else "away"
        self._progress.update(State(self._now(), self._scenario.duration_s, self._proxy.link, device, lines))

    def _count_backlog(self) -> dict[str, int]:
        waiting = self._spool.waiting()
        for name, number in waiting.items():
            self._notes.peaks[name] = max(self._notes.peaks.get(name, 0), number)
        return waiting

    def _measured(self, outage: _Outage) -> OutageReport:
        drain = outage.drain_s(self._begun)
        return OutageReport(
            kind=outage.kind,
            start_s=round(outage.start_s, 2),
            length_s=round(outage.end_s - outage.start_s, 2),
            backlog=outage.watch.size if outage.watch else 0,
            drain_s=None if drain is None else round(drain, 2),
        )

    def _now(self) -> float:
        return time.monotonic() - self._begun


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """The folder of the run: the one to keep, which must be new or empty, or one that goes away.

    Raises:
        ConfigError: the one to keep holds something, and an old spool would spoil the count.
    """
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="lisiere-") as name:
            yield Path(name)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        full = any(keep.iterdir())
    except OSError as error:
        raise ConfigError(f"{keep} cannot be used: {error.strerror}", "--keep") from error
    if full:
        raise ConfigError(f"{keep} is not empty. Give a new folder.", "--keep")
    yield keep.resolve()
