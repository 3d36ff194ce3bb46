"""One device of a run: what it reads, itself, who counts what it delivers, and what is noted of it on the way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from lisiere.errors import Permanent
from lisiere_sim import inputs, scenario
from lisiere_sim.device import Device, SpoolView
from lisiere_sim.progress import Line, describe
from lisiere_sim.pump import Fault as PumpFaultKind
from lisiere_sim.report import Evidence, RestartReport
from lisiere_sim.subscriber import Subscriber, Watch

_ONLINE_S = 90.0
_TICK_S = 0.2
_LAST_MESSAGES_S = 10.0

Say = Callable[[str], None]


class DeviceRun:
    """A device while it is being run.

    Args:
        spec: what the scenario says of it.
        device: the thing itself.
        feeds: what feeds its pipelines, by their names.
        subscriber: counts what it delivers; connected.
        say: tells an event, with the time.
        now: seconds into the scenario.
    """

    def __init__(
        self,
        spec: scenario.Device,
        device: Device,
        feeds: Mapping[str, inputs.Input],
        subscriber: Subscriber,
        say: Say,
        now: Callable[[], float],
    ) -> None:
        self.name = spec.name
        self.away = False  # whether it has been killed and is not back
        self._spec = spec
        self._device = device
        self._feeds = feeds
        self._subscriber = subscriber
        self._spool = SpoolView(device.spool)
        self._say = say
        self._now = now
        self._peaks: dict[str, int] = {}
        self._restarts: list[RestartReport] = []
        self._begun: set[str] = set()  # pipelines that have delivered
        self._named: dict[str, set[str]] = {}  # what results have said of their input, by pipeline
        self._states: dict[str, str] = {}  # what anomaly pipelines last said

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start the inputs and the device; what is started goes on the stack."""
        stack.callback(self._spool.close)
        stack.callback(self._device.close)
        for feed in self._feeds.values():
            stack.callback(feed.stop)
            feed.start()
        self._device.start()

    def await_birth(self) -> None:
        """Wait for the device's birth message.

        Raises:
            Permanent: it does not come, or the device ends.
        """
        until = time.monotonic() + _ONLINE_S
        while not self._subscriber.wait_for(lambda seen: "online" in seen.statuses, _TICK_S):
            self._device.check()
            self._check_subscriber()
            if time.monotonic() > until:
                raise Permanent(f"{self.name} was not online within {_ONLINE_S:g} s.{self._device.last_words()}")

    def schedule(self) -> Iterator[tuple[float, Callable[[], None]]]:
        """What happens to its inputs when, as pairs of seconds and what to do."""
        for pipeline in self._spec.pipelines:
            feed = self._feeds[pipeline.name]
            if isinstance(pipeline.input, scenario.PumpInput) and isinstance(feed, inputs.PumpFeed):
                for ill in pipeline.input.faults:
                    yield ill.at_s, partial(self._set_pump, pipeline.name, feed, ill.kind, ill.severity)
                    yield ill.at_s + ill.length_s, partial(self._set_pump, pipeline.name, feed, ill.kind, 0.0)
                for gap in pipeline.input.gaps:
                    yield gap.at_s, partial(self._set_silent, pipeline.name, feed, True)
                    yield gap.at_s + gap.length_s, partial(self._set_silent, pipeline.name, feed, False)

    def kill(self) -> None:
        """Kill the device."""
        self.away = True
        self._device.kill()
        self._restarts.append(RestartReport(start_s=round(self._now(), 2), length_s=0.0))
        self._say(f"{self.name} killed (kill -9)")

    def revive(self) -> None:
        """Have it started again; `look` notes when it runs."""
        self._device.revive()

    def look(self) -> dict[str, Line]:
        """Check that everybody is there, note the backlog, and return how each pipeline stands.

        Raises:
            Permanent: the device or the subscriber is gone.
        """
        if self.away and self._device.alive():
            self.away = False
            killed = self._restarts[-1].start_s
            self._restarts[-1] = RestartReport(start_s=killed, length_s=round(self._now() - killed, 2))
            self._say(f"{self.name} runs again")
        if not self.away:
            self._device.check()
        self._check_subscriber()
        counts, lines = self._spool.counts(), {}
        for name in self._feeds:
            seen, full = self._subscriber.seen(name), f"{self.name}/{name}"
            if seen.backends and name not in self._begun:
                self._begun.add(name)
                self._say(f"{full}: first result, by {'+'.join(seen.backends)}")
            for fault in sorted(set(seen.faults) - self._named.get(name, set())):
                self._named.setdefault(name, set()).add(fault)
                self._say(f"{full}: results say of their input: {fault}")
            if seen.task == "anomaly":
                state = str(seen.answer.get("state"))
                if state != self._states.get(name, "normal"):
                    self._say(f"{full}: the device finds it {state}")
                self._states[name] = state
            accepted = counts[name].accepted if name in counts else 0
            backlog = max(0, accepted - seen.delivered - seen.evicted)
            self._peaks[name] = max(self._peaks.get(name, 0), backlog)
            lines[full] = Line(accepted, seen.delivered, backlog, describe(seen.task, seen.answer))
        return lines

    def watch_backlog(self) -> Watch:
        """Begin to wait for what has been accepted until now and has not arrived, wherever it is held."""
        self.look()
        epoch = self._spool.epoch
        return self._subscriber.watch(epoch, self._subscriber.holes(epoch, self._spool.highest))

    def stop_inputs(self) -> None:
        """Let nothing more come in."""
        for feed in self._feeds.values():
            feed.stop()

    def await_online(self, timeout: float) -> None:
        """Wait until it says that it is online, if it does: one that was just started cannot be stopped properly."""
        self._subscriber.wait_for(lambda seen: seen.statuses[-1:] == ("online",), timeout)

    def await_delivery(self, watch: Watch, until: float) -> None:
        """Wait until a backlog is delivered, or until the given monotonic time.

        Raises:
            Permanent: the device or the subscriber is gone.
        """
        while watch.done_at is None and time.monotonic() < until:
            self._subscriber.wait_for(lambda _: watch.done_at is not None, _TICK_S)
            self.look()

    def stop(self) -> Evidence:
        """Stop the device, wait for its last messages, and return what was seen.

        Raises:
            Permanent: it does not stop as it should, or the subscriber is gone.
        """
        self.away = True
        code = self._device.stop()
        self._say(f"{self.name} stopped with exit code {code}")
        if code != 0:
            raise Permanent(f"{self.name} ended with exit code {code} after SIGTERM.{self._device.last_words()}")
        counts, waiting = self._spool.counts(), self._spool.waiting()
        due = {name: found.accepted - waiting.get(name, 0) - found.evicted for name, found in counts.items()}
        self._subscriber.wait_for(
            lambda seen: all(seen.delivered.get(name, 0) >= number for name, number in due.items()), _LAST_MESSAGES_S
        )
        self._check_subscriber()
        epoch = self._spool.epoch
        return Evidence(
            counts=counts,
            waiting=waiting,
            seen={pipeline.name: self._subscriber.seen(pipeline.name) for pipeline in self._spec.pipelines},
            freezes={
                pipeline.name: min(freeze.at_s for freeze in pipeline.input.freezes)
                for pipeline in self._spec.pipelines
                if isinstance(pipeline.input, scenario.CameraInput) and pipeline.input.freezes
            },
            peaks=self._peaks,
            holes=self._subscriber.holes(epoch, self._spool.highest),
            restarts=self._restarts,
            unreadable=self._subscriber.snapshot().unreadable,
            runtime=self._spec.runtime,
            epoch=epoch,
            exit_code=code,
        )

    def _set_pump(self, name: str, feed: inputs.PumpFeed, kind: PumpFaultKind, severity: float) -> None:
        feed.set_fault(kind, severity)
        self._say(f"{self.name}/{name}: {kind} fault {'begins' if severity else 'ends'}")

    def _set_silent(self, name: str, feed: inputs.PumpFeed, silent: bool) -> None:
        feed.silent = silent
        self._say(f"{self.name}/{name}: the sensor {'falls silent' if silent else 'is heard again'}")

    def _check_subscriber(self) -> None:
        if self._subscriber.failure is not None:
            raise Permanent(self._subscriber.failure)
