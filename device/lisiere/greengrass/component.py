"""The component's life: configuration from the nucleus, a runtime for it, changes while it runs, and the end.

One thread lives here and does one thing after the other; the nucleus, signals and the runtime put events before it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lisiere import __version__
from lisiere.clock import Clock
from lisiere.config import Config
from lisiere.errors import LisiereError, Permanent, Rejected, Retryable
from lisiere.greengrass.configuration import component_config, own_part
from lisiere.greengrass.shadow import Shadow
from lisiere.ipc import Nucleus, NucleusLost
from lisiere.pipeline import check_models
from lisiere.runtime import Runtime
from lisiere.settings.links import GreengrassConfig
from lisiere.supervisor import backoff
from lisiere.sync.transports import Transport
from lisiere.sync.transports.greengrass import GreengrassTransport

log = logging.getLogger(__name__)

_BEGIN_S = 15.0  # for the first connection and the configuration
_RETRY_S = 0.5
_DEBOUNCE_S = 0.5  # a deployment changes many keys, and tells of each
_BURST_S = 5.0  # … but changes that never end are not waited for
_LOOK_S = 2.0  # how often states are looked at for the shadow
_STOP_DRAIN_S = 4.0
_STOP_S = 9.0  # a nucleus kills what has not stopped in 15 s
_SWAP_S = 30.0

Event = Literal["stop", "changed", "lost", "ready", "ended"]


class _Running:
    """A runtime on a thread of its own."""

    def __init__(self, own: dict[str, Any], config: Config, make: Callable[[Callable[[], None]], Runtime]) -> None:
        self.own = own
        self.config = config
        self.warm = False
        self.error: BaseException | None = None
        self._tell: Callable[[Event], None]
        self.runtime = make(self._ready)
        self._thread = threading.Thread(target=self._run, name="runtime", daemon=True)

    def start(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._thread.start()

    def join(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _ready(self) -> None:
        self.warm = True
        self._tell("ready")

    def _run(self) -> None:
        try:
            self.runtime.run()
        except BaseException as error:  # noqa: BLE001 - it is raised again where the component lives
            self.error = error
        self._tell("ended")


class Component:
    """`lisiere run --greengrass`.

    Args:
        nucleus: not connected yet.
        clock: where time comes from.
        folder: the component's work folder.
    """

    def __init__(self, nucleus: Nucleus, clock: Clock, folder: Path) -> None:
        self._nucleus = nucleus
        self._clock = clock
        self._folder = folder
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._shadow = Shadow(nucleus, clock)
        self._access: Any = None
        self._refused = ""  # why the last configuration was
        self._refused_own: dict[str, Any] | None = None  # which one that was
        self._errored = ""  # why the component ends
        self._running: _Running
        self._before: _Running | None = None  # what ran before, until the new one is warm
        self._watching = False
        self._heard = threading.Event()  # a change that is not taken yet
        self._due: float | None = None  # when a change is to be read
        self._burst = 0.0  # when the changes began
        self._lost_at: float | None = None
        self._reconnect_due = 0.0
        self._attempts = 0

    def stop(self) -> None:
        """Ask for a clean stop; may be called from a signal handler."""
        self._stopping.set()
        self._events.put("stop")

    def run(self) -> None:
        """Run until `stop` is called or every source has ended.

        Raises:
            NucleusLost: the nucleus is gone; the component is to be started anew.
            ConfigError: the first configuration is wrong.
            LisiereError: nothing can run.
        """
        self._nucleus.on_lost(lambda _why: self._events.put("lost"))
        try:
            document = self._begin()
            if document is None:
                return
            self._access = document.get("accessControl")
            own = own_part(document)
            # Models are not looked at beforehand here: one bad model does not keep the others from running.
            self._start(own, self._config(own))
            self._live()
        except NucleusLost:
            raise
        except LisiereError as error:
            self._state("ERRORED", str(error))
            raise
        finally:
            self._nucleus.close()

    def _begin(self) -> dict[str, Any] | None:
        """Connect, watch the configuration and return it; None when stopped meanwhile."""
        deadline = self._clock.monotonic() + _BEGIN_S
        while not self._stopping.is_set():
            try:
                return self._attach()
            except Retryable as error:
                if self._clock.monotonic() >= deadline:
                    raise NucleusLost(str(error)) from error
                self._stopping.wait(_RETRY_S)
        return None

    def _attach(self) -> dict[str, Any]:
        """Connect, and watch before reading, so that no change falls between."""
        self._nucleus.connect()
        if not self._watching:
            self._watching = True
            try:
                self._nucleus.watch_configuration(self._hear_change, self._unwatched)
            except LisiereError as error:
                self._watching = False
                if not isinstance(error, Rejected):  # which means that there is no configuration to watch
                    raise
        return self._nucleus.configuration()

    def _unwatched(self) -> None:
        """The nucleus has ended the subscription: subscribe anew and look, as for a change."""
        self._watching = False
        self._hear_change()

    def _hear_change(self) -> None:
        """Put one event for however many changes there are until it is taken; on the SDK's thread."""
        if not self._heard.is_set():
            self._heard.set()
            self._events.put("changed")

    def _config(self, own: dict[str, Any]) -> Config:
        return component_config(own, self._nucleus.environment.thing, self._folder)

    def _start(self, own: dict[str, Any], config: Config) -> None:
        self._running = _Running(own, config, lambda ready: self._runtime(config, ready))
        self._running.runtime.reports.configuration_failure = self._refused or None
        self._running.start(self._events.put)

    def _runtime(self, config: Config, ready: Callable[[], None]) -> Runtime:
        settings = config.transport
        if not isinstance(settings, GreengrassConfig):
            return Runtime(config, self._clock, ready=ready)

        def make() -> Transport:
            return GreengrassTransport(settings, self._nucleus)

        local = self._nucleus.publish_locally if settings.publish_locally else None
        return Runtime(config, self._clock, make, ready, local)

    def _live(self) -> None:
        """Take events until the end."""
        while True:
            event = self._next()
            if event == "stop":
                self._stop()
                return
            if event == "changed":
                self._heard.clear()
                self._changed()
            elif event == "lost" and not self._nucleus.connected:
                self._lost_at = self._reconnect_due = self._clock.monotonic()
                log.warning("The connection to the nucleus was lost; results stay in the spool.")
            elif event == "ready" and self._running.warm:
                self._before = None
                self._state("RUNNING")
            elif event == "ended" and self._running.join(0) and self._ended():
                return
            now = self._clock.monotonic()
            if self._lost_at is not None:
                self._reconnect(now)
            elif self._due is not None and now >= self._due:
                self._apply(now)
            if self._nucleus.connected:
                self._report()

    def _next(self) -> Event | None:
        now = self._clock.monotonic()
        dues = [now + _LOOK_S]
        if self._lost_at is not None:
            dues.append(self._reconnect_due)
        elif self._due is not None:
            dues.append(self._due)
        try:
            return self._events.get(timeout=max(0.0, min(dues) - now))
        except queue.Empty:
            return None

    def _changed(self) -> None:
        now = self._clock.monotonic()
        if self._due is None:
            self._burst = now
        self._due = min(now + _DEBOUNCE_S, self._burst + _BURST_S)

    def _apply(self, now: float) -> None:
        """Read the configuration anew, and run it if it can be; else what runs stays."""
        try:
            document = self._attach()
        except LisiereError as error:
            log.warning("The changed configuration cannot be read yet. %s", error)
            self._due = now + _LOOK_S
            return
        self._due = None
        access, self._access = self._access, document.get("accessControl")
        if access != self._access:
            log.info("The component's accessControl has changed.")
            self._running.runtime.renew()
            self._shadow.again()
        own = own_part(document)
        if own == self._running.own:
            self._judge("")
            return
        try:
            config = self._config(own)
            check_models(config)
        except LisiereError as error:
            self._judge(str(error), own)
            return
        if config == self._running.config:
            self._running.own = own
            self._judge("")
            return
        log.info("The configuration has changed; the pipelines are started anew.")
        before = self._running
        before.runtime.stop(0, farewell=False)
        if not before.join(_SWAP_S):
            raise Permanent(f"The pipelines did not stop within {_SWAP_S:g} s for the changed configuration.")
        self._judge("")
        self._before = before
        self._start(own, config)

    def _judge(self, why: str, own: dict[str, Any] | None = None) -> None:
        """Keep and tell whether the newest configuration was accepted; each that is refused is told once."""
        if why and (why, own) != (self._refused, self._refused_own):
            log.error("The changed configuration is refused, and the one before it goes on. %s", why)
        self._refused, self._refused_own = why, own
        self._running.runtime.reports.configuration_failure = why or None

    def _ended(self) -> bool:
        """The runtime has ended: put the one before it back if the new one never ran; return whether that is all.

        Raises:
            LisiereError: what it ended with.
        """
        running, before = self._running, self._before
        error = running.error
        if error is not None and before is not None and not running.warm and isinstance(error, LisiereError):
            self._before = None
            self._judge(str(error), running.own)
            self._start(before.own, before.config)
            return False
        if error is not None:
            raise error
        return True

    def _reconnect(self, now: float) -> None:
        """Try the environment's token again, for a bounded time.

        Raises:
            NucleusLost: it does not work any more, or the time is over.
        """
        assert self._lost_at is not None  # noqa: S101 - who calls has looked
        if now < self._reconnect_due:
            return
        transport = self._running.config.transport
        patience = transport.reconnect_s if isinstance(transport, GreengrassConfig) else GreengrassConfig().reconnect_s
        try:
            self._attach()
        except NucleusLost:
            self._stop()
            raise
        except LisiereError as error:
            if self._clock.monotonic() - self._lost_at >= patience:
                self._stop()
                raise NucleusLost(f"The nucleus did not come back within {patience:g} s. {error}") from error
            self._attempts += 1
            longest = max(0.1, min(8.0, self._lost_at + patience - now))
            self._reconnect_due = now + min(backoff(self._attempts - 1, longest, 0), longest)
            return
        log.info("The connection to the nucleus is back.")
        self._lost_at, self._attempts = None, 0
        self._due = now
        self._running.runtime.hurry()
        if self._running.warm:
            self._state("RUNNING")

    def _stop(self) -> None:
        """Stop what runs, within what a nucleus allows; what is not delivered stays in the spool."""
        running = self._running
        lost = not self._nucleus.connected and isinstance(running.config.transport, GreengrassConfig)
        running.runtime.stop(0 if lost else min(_STOP_DRAIN_S, running.config.stop_drain_s))
        if not running.join(_STOP_S):
            log.warning("Not all has stopped within %g s; what is on disk stays there.", _STOP_S)

    def _state(self, state: Literal["RUNNING", "ERRORED"], why: str = "") -> None:
        """Tell the nucleus how the component is; it takes no reason, so that goes into the log and the shadow."""
        if why:
            log.error("%s", why)
            self._errored = why
        if not self._nucleus.connected:
            return
        try:
            self._nucleus.update_state(state)
        except LisiereError as error:
            log.warning("The nucleus was not told that the component is %s. %s", state, error)
        if state == "ERRORED":
            self._shadow.again()
            self._report()

    def _report(self) -> None:
        """Report what runs to the shadow, if there is something new."""
        running = getattr(self, "_running", None)
        configuration = {"state": "refused" if self._refused else "accepted", "why": self._refused}
        delivery = running.runtime.reports.delivery_failure() if running else None
        state = {
            "version": __version__,
            "component": {"state": "errored" if self._errored else "running", "why": self._errored},
            "configuration": configuration,
            "delivery": {"state": "failing" if delivery else "ok", "why": delivery or ""},
            "pipelines": running.runtime.reports.overview() if running else {},
        }
        self._shadow.report(state, running.runtime.spool_figures() if running else {})
