"""One component: its state, its scripts, and when they are started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

from lisiere.errors import ConfigError
from lisiere_sim.nucleus.components.board import Board
from lisiere_sim.nucleus.components.processes import Process, User
from lisiere_sim.nucleus.components.recipe import Recipe, Script, skips
from lisiere_sim.nucleus.flavour import Flavour
from lisiere_sim.nucleus.layout import Layout
from lisiere_sim.nucleus.logs import LogFile

State = Literal["NEW", "INSTALLED", "STARTING", "RUNNING", "STOPPING", "ERRORED", "BROKEN", "FINISHED"]

_log = logging.getLogger("lisiere_sim.nucleus")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the nucleus waits, in seconds, and how many errors it bears.

    Attributes:
        install: for `install` and `bootstrap` without a Timeout; likewise `startup`, `shutdown` and `recover`.
        term: between SIGTERM and SIGKILL.
        consent: for a component to say whether an update suits it; `defer`: for all that it puts it off.
        retry: before a component is started again after an error.
        errors: so many of them `within` this time make a component BROKEN.
    """

    install: float = 120.0
    startup: float = 120.0
    shutdown: float = 15.0
    recover: float = 60.0
    term: float = 15.0
    consent: float = 60.0
    defer: float = 3600.0
    retry: float = 0.5
    errors: int = 3
    within: float = 3600.0


class Host(Protocol):
    """What a component asks of its nucleus."""

    flavour: Flavour
    layout: Layout
    board: Board
    patience: Patience

    def environment(self, recipe: Recipe) -> dict[str, str]:
        """A script's environment, with a token that replaces the component's last."""

    def user(self, script: Script) -> User:
        """Who a script runs as."""

    def interpolate(self, recipe: Recipe, text: str) -> str:
        """Put values in place of a text's variables."""

    def release(self, component: str) -> None:
        """Take the component's token and connections away: its processes are gone."""

    def is_installed(self, recipe: Recipe) -> bool:
        """Whether `install` has succeeded for just this recipe and these artifacts."""

    def set_installed(self, recipe: Recipe) -> None:
        """Remember that it has."""

    def started(self, component: str, pid: int, token: str) -> None:
        """Remember a process, so that the next nucleus can end it if this one is killed."""

    def ended(self, pid: int) -> None:
        """Forget a process."""


class _Failed(Exception):
    """The component has failed; the text says how."""


class Component:
    """A recipe brought to life. `start` and `stop` are the nucleus'; everything between goes by itself.

    Args:
        hard: the components without which this one does not run.

    Attributes:
        state: as Greengrass names it.
        why: a sentence on the state, where there is something to say.
        restarts: how often it was started again after an error.
        retired: it was brought down for good.
    """

    def __init__(self, recipe: Recipe, host: Host, hard: list[Component]) -> None:
        self.recipe = recipe
        self.hard = hard
        self.state: State = "NEW"
        self.why = ""
        self.restarts = 0
        self._host = host
        self._errors: deque[float] = deque()
        self._reported: tuple[str, str] | None = None
        self._process: Process | None = None
        self._environment: dict[str, str] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self.retired = False
        self._logfile: LogFile | None = None

    @property
    def name(self) -> str:
        """The component's name."""
        return self.recipe.name

    @property
    def ready(self) -> bool:
        """Whether those that depend on it may run."""
        return self._task is not None and self.state in ("RUNNING", "FINISHED")

    @property
    def settled(self) -> bool:
        """Whether it is where a deployment wants it, or will never get there by itself."""
        unfinished = self._only_installs and not self._host.flavour.finishes_install_only
        stuck = unfinished or any(one.settled and not one.ready for one in self.hard)
        stays = self._task is None or self.state == "BROKEN" or (self.state == "INSTALLED" and stuck)
        return self.ready or stays

    @property
    def _only_installs(self) -> bool:
        return self.recipe.steps.scripts.keys().isdisjoint({"run", "startup"})

    def start(self) -> None:
        """Bring it up; nothing is remembered of earlier errors."""
        if self.retired or self._task is not None:
            return
        self._errors.clear()
        self._set("NEW")
        self._task = asyncio.get_running_loop().create_task(self._live())

    async def stop(self, why: str = "It was stopped.") -> None:
        """Bring it down and wait until nothing of it is left."""
        async with self._turn:
            await self._stop(why)

    async def restart(self) -> None:
        """Bring it down, and up again."""
        async with self._turn:
            await self._stop("It is restarted.")
            self.start()

    async def retire(self, why: str) -> None:
        """Bring it down for good: another takes its place."""
        self.retired = True
        await self.stop(why)

    async def _stop(self, why: str) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif self._process is None:
            return
        if self.state not in ("FINISHED", "BROKEN"):
            self._set("STOPPING", why)
        await self._end()
        if self.state != "BROKEN":
            self._set("FINISHED", why)
        if self._logfile is not None:
            self._logfile.close()
            self._logfile = None

    def report(self, state: str, why: str = "") -> None:
        """Take what the component says of itself by UpdateState: `RUNNING` or `ERRORED`."""
        if self._reported is None or self._reported[0] != "ERRORED":  # which stands until it is started again
            self._reported = (state, why)
        self._host.board.notify()

    def _set(self, state: State, why: str = "") -> None:
        if (state, why) != (self.state, self.why):
            say = _log.warning if state in ("ERRORED", "BROKEN") else _log.info
            step = state if state == self.state else f"{self.state} -> {state}"
            say("%s %s: %s%s", self.name, self.recipe.version, step, why and f": {why}")
        self.state, self.why = state, why
        self._host.board.notify()

    async def _live(self) -> None:
        """Try until it has ended well, is BROKEN, or is stopped."""
        while True:
            try:
                if await self._attempt():
                    return
            except (_Failed, ConfigError, OSError) as error:
                if await self._failed(str(error)):
                    return
                self.restarts += 1
            except Exception as error:  # noqa: BLE001 - one component's trouble is not the others'
                _log.exception("%s: the nucleus has a defect", self.name)
                await self._kill()
                self._set("BROKEN", f"The nucleus has a defect: {error!r}.")
                return

    async def _failed(self, why: str) -> bool:
        """Count an error and tidy up. Returns whether it was one too many."""
        patience = self._host.patience
        now = asyncio.get_running_loop().time()
        self._errors.append(now)
        while self._errors[0] < now - patience.within:
            self._errors.popleft()
        if len(self._errors) >= patience.errors:
            await self._kill()
            self._set(
                "BROKEN", f"{why} That was error {patience.errors} within the hour: it waits to be deployed again."
            )
            return True
        self._set("ERRORED", why)
        if self._host.flavour.runs_shutdown and "recover" in self.recipe.steps.scripts:
            with contextlib.suppress(_Failed, ConfigError):
                await self._run_through("recover", patience.recover)
        await self._end()
        await asyncio.sleep(patience.retry)
        return False

    async def _attempt(self) -> bool:
        """Go through the lifecycle once. Returns whether nothing is left to do; else it is to be gone through again."""
        self._reported = None
        self._environment = self._host.environment(self.recipe)
        if not self._host.is_installed(self.recipe):
            for step in ("bootstrap", "install"):
                if step in self.recipe.steps.scripts:
                    self._set("NEW", f"`{step}` runs.")
                await self._run_through(step, self._host.patience.install)
            self._host.set_installed(self.recipe)
        self._set("INSTALLED")
        if self._only_installs and not self._host.flavour.finishes_install_only:
            self._set("INSTALLED", "It has neither `run` nor `startup`, and nucleus lite never calls that finished.")
            return True
        if self._only_installs:
            self._set("FINISHED")
            return True
        await self._await_dependencies()
        self._set("STARTING")
        step = "run" if "run" in self.recipe.steps.scripts else "startup"
        if not await self._spawn(step):
            self._set("FINISHED", f"`{step}` was skipped.")
            return True
        if step == "startup":
            await self._started_up()
        if self._lost() is None:
            self._set("RUNNING")
        return await self._running(step)

    async def _await_dependencies(self) -> None:
        while (first := self._lost()) is not None:
            self._set("INSTALLED", f"It waits for {first.name}, which is {first.state}.")
            before = (first, first.state)
            await self._host.board.until(lambda before=before: before != self._waits_for())  # type: ignore[misc]

    def _waits_for(self) -> tuple[Component | None, State]:
        lost = self._lost()
        return lost, lost.state if lost is not None else "RUNNING"

    async def _started_up(self) -> None:
        """Wait until `startup` has ended well or the component has reported RUNNING."""
        script = self.recipe.steps.scripts["startup"]
        bound = script.timeout or self._host.patience.startup
        in_time = await self._host.board.until(
            lambda: self._code is not None or self._reported is not None or self._lost() is not None, bound
        )
        if not in_time:
            raise _Failed(f"`startup` neither ended nor reported RUNNING within {bound:g} s.")
        self._check_report()
        if self._code:
            raise _Failed(f"`startup` {_ending(self._code)}.")

    async def _running(self, step: str) -> bool:
        """Stay until something happens. Returns as `_attempt` does."""
        script = self.recipe.steps.scripts[step]
        bound = script.timeout if step == "run" else None
        in_time = await self._host.board.until(lambda: self._stirs(step), bound)
        if not in_time:
            raise _Failed(f"`{step}` did not end within {bound:g} s.")
        self._check_report()
        lost = self._lost()
        if lost is not None:
            self._set("STOPPING", f"{lost.name} is {lost.state}.")
            await self._end()
            return False
        if self._code:
            raise _Failed(f"`{step}` {_ending(self._code)}.")
        await self._end()
        self._set("FINISHED")
        return True

    def _stirs(self, step: str) -> bool:
        errored = self._reported is not None and self._reported[0] == "ERRORED"
        ended = self._code is not None if step == "run" else bool(self._code)
        return errored or ended or self._lost() is not None

    def _check_report(self) -> None:
        if self._reported is not None and self._reported[0] == "ERRORED":
            raise _Failed(f"The component reported ERRORED{self._reported[1] and ': ' + self._reported[1]}.")

    def _lost(self) -> Component | None:
        return next((one for one in self.hard if not one.ready), None)

    @property
    def _code(self) -> int | None:
        return self._process.code if self._process is not None else None

    async def _run_through(self, step: str, bound: float) -> None:
        """Run a step to its end, if the recipe has it.

        Raises:
            _Failed: it ended with an error or took too long.
        """
        main = self._process if step in ("shutdown", "recover") else None
        try:
            if not await self._spawn(step):
                return
            bound = self.recipe.steps.scripts[step].timeout or bound
            if not await self._host.board.until(lambda: self._code is not None, bound):
                raise _Failed(f"`{step}` did not end within {bound:g} s.")
            if self._code and not (step == "bootstrap" and self._code in (100, 101)):  # asks for a restart: granted
                raise _Failed(f"`{step}` {_ending(self._code)}.")
        finally:
            ended, self._process = self._process, main
            if ended is not None and ended is not main:
                await ended.stop(self._host.patience.term, alone=main is not None)
                self._host.ended(ended.pid)

    async def _spawn(self, step: str) -> bool:
        """Start a step's script. Returns False where the recipe has none or it is to be skipped."""
        script = self.recipe.steps.scripts.get(step)
        host, recipe = self._host, self.recipe
        if script is None or (
            host.flavour.runs_shutdown and script.skipif and skips(host.interpolate(recipe, script.skipif))
        ):
            return False
        settings = {**recipe.steps.setenv, **{name: str(value) for name, value in script.setenv.items()}}
        environment = {
            **self._environment,
            **{name: host.interpolate(recipe, value) for name, value in settings.items()},
            "SVCUID": self._environment["SVCUID"],  # by which its processes are known, too
        }
        user = host.user(script)
        folder = host.layout.work(recipe.name)
        if self._logfile is None:
            self._logfile = LogFile(host.layout.component_log(recipe.name))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if user.uid != os.geteuid():
                os.chown(folder, user.uid, user.gid)
            text = host.interpolate(recipe, script.script)
            self._process = await Process.start(text, environment, folder, user, self._logfile)
        except OSError as error:
            raise _Failed(f"`{step}` cannot be started as {user.name}: {error.strerror} ({error.filename}).") from error
        except ValueError as error:  # a NUL in the script, or a `=` in the name of a variable
            raise _Failed(f"`{step}` cannot be started: {error}.") from error
        host.started(recipe.name, self._process.pid, environment["SVCUID"])
        watcher = asyncio.get_running_loop().create_task(self._watch_exit(self._process))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return True

    async def _watch_exit(self, process: Process) -> None:
        await process.wait()
        self._host.board.notify()

    async def _end(self) -> None:
        """Run `shutdown` where the nucleus heeds it, then end every process."""
        if self._process is not None and self._host.flavour.runs_shutdown:
            try:
                await self._run_through("shutdown", self._host.patience.shutdown)
            except (_Failed, ConfigError) as error:
                _log.warning("%s: %s", self.name, error)
        await self._kill()

    async def _kill(self) -> None:
        process = self._process
        if process is not None:
            bound = self._host.patience.term
            if not await process.stop(bound):
                _log.warning("%s: it did not end within %g s of SIGTERM, so it was killed.", self.name, bound)
            self._process = None
            self._host.ended(process.pid)
        self._host.release(self.name)


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
