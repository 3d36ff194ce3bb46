"""Scripts as child processes: their own session, their own user, and nothing of them left when they are stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lisiere.errors import ConfigError
from lisiere_sim.nucleus.logs import LogFile, Output

_POLL_S = 0.02
_KILLED_S = 5.0
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class User:
    """Who a script runs as."""

    name: str
    uid: int
    gid: int
    home: str


def find_user(text: str) -> User:
    """Return the user that `USER[:GROUP]` names.

    Raises:
        ConfigError: this machine has no such user or group.
    """
    import grp

    name, _, group = text.partition(":")
    try:
        entry = pwd.getpwnam(name)
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError:
        raise ConfigError(f"This machine has no user or group {text!r}.", "--component-user") from None
    return User(name, entry.pw_uid, gid, entry.pw_dir)


def own_user() -> User:
    """Return the user that this process runs as."""
    uid = os.geteuid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # a container with a bare number
        return User(str(uid), uid, os.getegid(), os.environ.get("HOME", "/"))
    return User(entry.pw_name, uid, os.getegid(), entry.pw_dir)


class Process:
    """One script under `sh -c`, in a session of its own, its output in a log. Made by `start`.

    Attributes:
        pid: of the shell, which leads the session and the process group.
        code: its exit code, negative for a signal; None while it runs.
    """

    def __init__(self, child: asyncio.subprocess.Process, outputs: list[Output], marker: str) -> None:
        self._child = child
        self._outputs = outputs
        self._marker = f"SVCUID={marker}".encode()
        self.pid = child.pid

    @classmethod
    async def start(
        cls, script: str, environment: Mapping[str, str], folder: Path, user: User, log: LogFile
    ) -> Process:
        """Start a script.

        Args:
            script: what `sh -c` gets.
            environment: all of it; its `SVCUID` is what marks the processes that come from this script.
            folder: the working directory.
            user: who it runs as.
            log: where its output goes.

        Raises:
            OSError: it cannot be started.
        """
        pipes = [os.pipe(), os.pipe()]
        change = {} if user.uid == os.geteuid() else {"user": user.uid, "group": user.gid, "extra_groups": [user.gid]}
        try:
            child = await asyncio.create_subprocess_exec(
                "sh",
                "-c",
                script,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=pipes[0][1],
                stderr=pipes[1][1],
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
                **change,  # type: ignore[arg-type]
            )
        except BaseException:
            for reading, _ in pipes:
                os.close(reading)
            raise
        finally:
            for _, writing in pipes:
                os.close(writing)
        outputs = [
            Output(pipe[0], lambda lines, kind=kind: log.write(kind, lines))  # type: ignore[misc]
            for pipe, kind in zip(pipes, ("stdout", "stderr"), strict=True)
        ]
        return cls(child, outputs, environment.get("SVCUID", ""))

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._child.returncode

    async def wait(self) -> int:
        """Wait for the shell to end and return its exit code. What it has forked may go on."""
        return await self._child.wait()

    async def stop(self, patience_s: float, alone: bool = False) -> bool:
        """End the script and everything that came from it: SIGTERM, and SIGKILL after `patience_s` seconds.

        Args:
            patience_s: seconds between the two.
            alone: leave other scripts of the same component be, which bear the same marker.

        Returns:
            Whether SIGTERM was enough.
        """
        marker = None if alone else self._marker
        gentle = await end_all(lambda: family(self.pid, marker), patience_s)
        # Not wait_for: before Python 3.12 it may swallow that its task is cancelled.
        await asyncio.wait({asyncio.ensure_future(self._child.wait())}, timeout=_KILLED_S)
        for output in self._outputs:
            output.close()
        return gentle


async def end_all(find: Callable[[], set[int]], patience_s: float) -> bool:
    """End processes by SIGTERM, and by SIGKILL after `patience_s` seconds; `find` returns those that still live.

    Returns:
        Whether SIGTERM was enough.
    """
    for number, bound in ((signal.SIGTERM, patience_s), (signal.SIGKILL, _KILLED_S)):
        until = asyncio.get_running_loop().time() + bound
        told: set[int] = set()
        while alive := find():
            for pid in alive - told:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            told |= alive
            while any(map(_lives, alive)) and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(_POLL_S)
            if asyncio.get_running_loop().time() >= until:
                break
        else:
            return number is signal.SIGTERM
    return False


def family(group: int, marker: bytes | None) -> set[int]:
    """Return the processes of a group, and those that left it but still carry the marker in their environment.

    Where there is no /proc to look into, the group stands for all of them, as a negative number.
    """
    if not _PROC.is_dir():
        return {-group} if _lives(-group) else set()
    found = set()
    for pid, state, its_group, _ in processes():
        if state not in "ZX" and (its_group == group or (marker is not None and marker in environment_of(pid))):
            found.add(pid)
    return found


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    if pid < 0 or not _PROC.is_dir():
        return True
    try:
        return (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def processes() -> list[tuple[int, str, int, int]]:
    """Return pid, state, process group and start time (ticks since boot) of each process; empty without /proc."""
    found = []
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            found.append((int(entry.name), fields[0], int(fields[2]), int(fields[19])))
    return found


def environment_of(pid: int) -> list[bytes]:
    """Return the environment that a process was started with, as far as we may read it."""
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
