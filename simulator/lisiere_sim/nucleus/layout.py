"""The nucleus' root folder, laid out as Greengrass's is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

from lisiere.errors import ConfigError, Permanent
from lisiere.settings.sensors import UNIX_PATH_MAX_BYTES
from lisiere_sim.nucleus.flavour import CLASSIC, FLAVOURS, Flavour


class Layout:
    """Where everything stands below a root. Folders are made by `make`; the root is locked by `lock`."""

    def __init__(self, root: Path, flavour: Flavour = CLASSIC) -> None:
        self.root = root.resolve()
        self._socket = flavour.socket
        self.config = self.root / "config"
        self.logs = self.root / "logs"
        self.recipes = self.root / "packages" / "recipes"
        self.log = self.logs / "greengrass.log"
        # Where the sockets are: `config/sockets` points there, since their paths may not be long.
        self.sockets = self.root
        self._lock: int | None = None

    @property
    def socket(self) -> Path:
        """The components' socket."""
        return self.sockets / self._socket

    @property
    def control(self) -> Path:
        """The socket of `lisiere nucleus status` and its like."""
        return self.sockets / "control.socket"

    def work(self, component: str) -> Path:
        """A component's working directory, which all its versions share."""
        return self.root / "work" / component

    def artifacts(self, component: str, version: str) -> Path:
        """Where a version's artifacts are copied to."""
        return self.root / "packages" / "artifacts" / component / version

    def unarchived(self, component: str, version: str) -> Path:
        """Where a version's archives are unpacked to."""
        return self.root / "packages" / "artifacts-unarchived" / component / version

    def component_log(self, component: str) -> Path:
        """What a component writes to stdout and stderr."""
        return self.logs / f"{component}.log"

    def make(self) -> None:
        """Make the folders.

        Raises:
            Permanent: they cannot be made.
        """
        try:
            for folder in (self.config, self.logs, self.recipes, self.root / "work", self.root / "packages"):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.config, self.logs):  # components may not read of each other there, past the IPC
                folder.chmod(0o700)
        except OSError as error:
            raise Permanent(f"The root {self.root} cannot be made: {error.strerror} ({error.filename}).") from error

    def lock(self) -> None:
        """Take the root for this process, and find a place for the sockets.

        Raises:
            ConfigError: another nucleus has it.
        """
        handle = os.open(self.config / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise ConfigError(
                f"Another nucleus (process {holder}) runs in {self.root}. Stop it with `lisiere nucleus stop`, "
                "or choose another root.",
                "--root",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        self._lock = handle
        self._place_sockets()

    def find_sockets(self) -> None:
        """Find the sockets of the nucleus that has the root."""
        link = self.config / "sockets"
        self.sockets = link.readlink() if link.is_symlink() else self.root

    def wait_unlocked(self) -> None:
        """Wait until no nucleus has the root."""
        try:
            handle = os.open(self.config / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return  # the root is gone
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        finally:
            os.close(handle)

    def unlock(self) -> None:
        """Give the root back. Calling it twice does no harm."""
        if self._lock is None:
            return
        if self.sockets != self.root:
            (self.config / "sockets").unlink(missing_ok=True)
            for file in (self.socket, self.control):
                file.unlink(missing_ok=True)
            self.sockets.rmdir()
        os.close(self._lock)
        self._lock = None

    def _place_sockets(self) -> None:
        """The root itself, or a short temporary folder where the path of a socket would be too long."""
        link = self.config / "sockets"
        if link.is_symlink():  # of a nucleus that was killed
            old = link.readlink()
            link.unlink()
            for name in (*(flavour.socket for flavour in FLAVOURS.values()), self.control.name):
                (old / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                old.rmdir()
        self.sockets = self.root
        if len(os.fsencode(self.control)) > UNIX_PATH_MAX_BYTES:
            self.sockets = Path(tempfile.mkdtemp(prefix="lisiere-"))
            self.sockets.chmod(0o755)
            link.symlink_to(self.sockets)
