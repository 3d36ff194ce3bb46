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

from lisiere.errors import ConfigError
from lisiere_sim import inputs, scenario
from lisiere_sim.broker import Address, Broker, choose_broker
from lisiere_sim.device import Device, DeviceProcess, device_config, pipelines_config
from lisiere_sim.devicerun import DeviceRun
from lisiere_sim.models import find_data, find_model
from lisiere_sim.progress import Line, Progress, State
from lisiere_sim.proxy import Proxy
from lisiere_sim.report import OutageReport, Report, make_report
from lisiere_sim.scenario import CameraInput, CsvInput, Fault, PumpInput, Scenario
from lisiere_sim.subscriber import Subscriber, Watch

PREFIX = "lisiere"
_TICK_S = 0.2
_CATCH_UP_S = 60.0


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
    watches: list[Watch] = field(default_factory=list)  # one a device
    told: bool = False

    @property
    def backlog(self) -> int:
        """How many results waited at its end."""
        return sum(watch.size for watch in self.watches)

    def drain_s(self, begun: float) -> float | None:
        """How long after its end the backlog had been delivered; None while it has not."""
        done = [watch.done_at for watch in self.watches if watch.done_at is not None]
        if not done or len(done) < len(self.watches):
            return None
        return max(0.0, max(done) - begun - self.end_s)


def run_scenario(plan: Plan, progress: Progress) -> Report:
    """Run a scenario to its report.

    Raises:
        ConfigError: a model, a file or the broker that it names is not there.
        LisiereError: the broker or a device cannot do its part.
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
        self._runs: dict[str, DeviceRun] = {}
        self._outages: list[_Outage] = []
        self._begun = 0.0
        self._halt = threading.Event()

    def prepare(self) -> None:
        """Find models, render inputs, start broker, network, subscribers and devices; wait for their birth messages."""
        say = self._progress.event
        # A socket's path may have about a hundred characters, which a kept folder may exceed.
        sockets = Path(tempfile.mkdtemp(prefix="lisiere-"))
        self._stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        configured = []
        for number, device in enumerate(self._scenario.devices):
            folder = self._folder / device.name
            folder.mkdir()
            models = self._find_models(device, f"$.devices[{number}]")
            feeds = self._make_inputs(device, number, folder, sockets)
            sources = {name: feed.source for name, feed in feeds.items()}
            configured.append((device, folder, feeds, pipelines_config(device, sources, models)))
        address = self._broker.start()
        self._stack.callback(self._broker.stop)
        say(f"broker {self._broker.name} at {address[0]}:{address[1]}")
        self._proxy = Proxy(address)
        link = self._proxy.start()
        self._stack.callback(self._proxy.stop)
        for device, folder, feeds, pipelines in configured:
            subscriber = Subscriber(PREFIX, device.name)
            subscriber.start(address)
            self._stack.callback(subscriber.stop)
            made = self._make_device(device, folder, pipelines, link)
            run = DeviceRun(device, made, feeds, subscriber, lambda text: say(text, self._now()), self._now)
            self._runs[device.name] = run
            run.start(self._stack)
        for run in self._runs.values():
            run.await_birth()
        self._begun = time.monotonic()
        for device in self._scenario.devices:
            names = ", ".join(pipeline.name for pipeline in device.pipelines)
            where = " in the laptop nucleus" if device.runtime == "greengrass" else ""
            say(f"{device.name} online{where}, pipelines {names}", 0.0)

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
        """Let the backlogs drain, stop the devices, and judge."""
        runs = self._runs.values()
        for run in runs:
            run.stop_inputs()
        self._progress.event("time is up, waiting for what is on its way", self._now())
        for run in runs:
            run.await_online(_CATCH_UP_S / 2)
        watches = [(run, run.watch_backlog()) for run in runs]
        until = time.monotonic() + _CATCH_UP_S
        for run, watch in watches:
            run.await_delivery(watch, until)
        self._look()
        evidence = {name: run.stop() for name, run in self._runs.items()}
        return make_report(
            evidence, [self._measured(outage) for outage in self._outages], self._broker.name, self._now()
        )

    def _find_models(self, device: scenario.Device, where: str) -> dict[str, Path]:
        plan, say = self._plan, self._progress.event
        return {
            pipeline.name: find_model(pipeline.model, plan.models, plan.base, f"{where}.pipelines[{number}].model", say)
            for number, pipeline in enumerate(device.pipelines)
        }

    def _make_inputs(self, device: scenario.Device, index: int, folder: Path, sockets: Path) -> dict[str, inputs.Input]:
        made: dict[str, inputs.Input] = {}
        for number, pipeline in enumerate(device.pipelines):
            seed, where = self._scenario.seed + 64 * index + number, f"$.devices[{index}].pipelines[{number}].input"
            if isinstance(pipeline.input, CameraInput):
                glyphs = find_data(pipeline.input.glyphs, self._plan.base, f"{where}.glyphs")
                pictures = folder / "inputs" / pipeline.name
                pictures.mkdir(parents=True)
                made[pipeline.name] = inputs.camera(
                    pipeline.input, glyphs, seed, pictures, self._scenario.duration_s, where
                )
            elif isinstance(pipeline.input, PumpInput):
                made[pipeline.name] = inputs.PumpFeed(pipeline.input, seed, sockets / f"{index}-{number}.sock")
            else:
                assert isinstance(pipeline.input, CsvInput)  # noqa: S101 - the last of the three
                file = find_data(pipeline.input.path, self._plan.base, f"{where}.path")
                made[pipeline.name] = inputs.replay(pipeline.input, file, self._scenario.duration_s, where)
        return made

    def _make_device(
        self, device: scenario.Device, folder: Path, pipelines: list[dict[str, object]], link: Address
    ) -> Device:
        if device.runtime == "greengrass":
            # Only here: a scenario of processes needs no nucleus, and no client for its IPC.
            from lisiere_sim.greengrass import GreengrassDevice

            return GreengrassDevice(folder, device.name, pipelines, link, PREFIX, device.flavour or "classic")
        return DeviceProcess(folder, device_config(device.name, pipelines, link, PREFIX, self._broker.protocol))

    def _schedule(self) -> Iterator[tuple[float, Callable[[], None]]]:
        """What happens when, as pairs of seconds and what to do."""
        for fault in self._scenario.faults:
            if fault.device is None:
                yield fault.at_s, partial(self._break, fault)
                yield fault.end_s, partial(self._heal, fault)
            else:
                yield fault.at_s, self._runs[fault.device].kill
                yield fault.end_s, self._runs[fault.device].revive
        for run in self._runs.values():
            yield from run.schedule()

    def _break(self, fault: Fault) -> None:
        if fault.kind == "delay":
            self._proxy.delay(fault.delay_ms or 0.0)
        else:
            (self._proxy.cut if fault.kind == "cut" else self._proxy.stall)()
            self._outages.append(_Outage(fault.kind, self._now()))
        state = f"delayed by {fault.delay_ms:g} ms each way" if fault.delay_ms else self._proxy.link
        self._progress.event(f"link {state} for {fault.length_s:g} s", self._now())

    def _heal(self, fault: Fault) -> None:
        if fault.kind == "delay":
            self._proxy.heal()
            self._progress.event("link back to full speed", self._now())
            return
        outage = self._outages[-1]
        outage.watches = [run.watch_backlog() for run in self._runs.values()]
        outage.end_s = self._now()
        self._proxy.heal()
        self._progress.event(f"link back, {outage.backlog} results wait", self._now())

    def _look(self) -> None:
        """Check that everybody is there, and show how it stands."""
        lines: dict[str, Line] = {}
        for run in self._runs.values():
            lines |= run.look()
        for outage in self._outages:
            if not outage.told and (drain := outage.drain_s(self._begun)) is not None:
                outage.told = True
                text = f"the backlog of {outage.backlog} is delivered, {drain:.1f} s after the link's return"
                self._progress.event(text, self._now())
        away = tuple(run.name for run in self._runs.values() if run.away)
        self._progress.update(State(self._now(), self._scenario.duration_s, self._proxy.link, away, lines))

    def _measured(self, outage: _Outage) -> OutageReport:
        drain = outage.drain_s(self._begun)
        return OutageReport(
            kind=outage.kind,
            start_s=round(outage.start_s, 2),
            length_s=round(outage.end_s - outage.start_s, 2),
            backlog=outage.backlog,
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
