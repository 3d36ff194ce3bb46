"""A disk that can lose power and fail: what tests/crash/disk.c does in the process under test, seen from the test."""

from __future__ import annotations

import errno
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from support.preload import SharedPage, library

_SECTOR = 512  # what a disk writes whole or not at all


class Disk:
    """A folder on a disk that can lose power and fail, for child processes that are started with `environment`.

    Args:
        root: the folder; what is in it now counts as synced.
        aside: a folder that is not below it, for the log.
    """

    def __init__(self, root: Path, aside: Path) -> None:
        self.root = root.resolve()
        self._log = aside / "disk.log"
        page = aside / "disk.page"
        self._page = SharedPage(page, "record", "cut_at", "fail_every", "fail_with", "calls", "failed")
        self.environment = os.environ | {
            "LD_PRELOAD": str(library("disk")),
            "LISIERE_DISK_ROOT": str(self.root),
            "LISIERE_DISK_CONTROL": str(page),
            "LISIERE_DISK_LOG": str(self._log),
        }

    def fail(self, every: int, error: str) -> None:
        """Refuse every n-th write or sync from now on, by the name of an errno; 0 for none."""
        self._page["fail_every"] = 0
        self._page["fail_with"] = getattr(errno, error)
        self._page["calls"] = self._page["failed"] = 0
        self._page["fail_every"] = every

    @property
    def failed(self) -> int:
        """How many writes and syncs have been refused since `fail`."""
        return self._page["failed"]

    def arm(self, changes: int) -> None:
        """Let the power go before the n-th change to a file from now on, in one process that is started next."""
        self._log.write_bytes(b"")
        self._base = _Files(self.root)
        self._page["record"], self._page["cut_at"] = 1, changes

    def restore(self, rng: random.Random) -> None:
        """Leave in the folder what a power cut leaves: what was synced, and of the rest what chance says.

        The process must have ended. Afterwards everything counts as synced, as after a start of the machine.
        """
        self._page["record"] = self._page["cut_at"] = 0
        left = self._base
        left.replay(self._log.read_bytes(), rng)
        shared_memory = {file: file.read_bytes() for file in self.root.rglob("*-shm")}
        for entry in self.root.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        left.cut(rng)
        left.write_to_disk()
        for file, content in shared_memory.items():  # pages of it may have been written back, whatever they held
            if file.exists():
                file.write_bytes(rng.choice((b"", content, content[: rng.randrange(len(content) + 1)])))

    def close(self) -> None:
        """Let the page that it shares with the library go."""
        self._page.close()


@dataclass
class _File:
    """One file: what a power cut cannot take, and what was written since."""

    durable: bytearray = field(default_factory=bytearray)
    since: list[tuple[int, bytes | None]] = field(default_factory=list)  # offset and data, or a new length and None

    def sync(self) -> None:
        for at, data in self.since:
            self._apply(at, data)
        self.since.clear()

    def forget(self, rng: random.Random) -> None:
        """Keep of what was not synced nothing, a prefix torn at a sector, or a choice of sectors in disorder."""
        kind = rng.choice(("nothing", "prefix", "sectors", "all"))
        since, self.since = self.since, []
        if kind == "nothing" or not since:
            return
        last = rng.randrange(len(since)) if kind == "prefix" else len(since)
        for number, (at, data) in enumerate(since[: last + 1]):
            if data is None:
                if kind != "sectors" or rng.random() < 0.5:
                    self._apply(at, None)
                continue
            torn = rng.randrange(len(data) + 1) // _SECTOR * _SECTOR if number == last else len(data)
            for start in range(0, torn, _SECTOR):
                if kind != "sectors" or rng.random() < 0.5:
                    self._apply(at + start, data[start : min(start + _SECTOR, torn)])

    def _apply(self, at: int, data: bytes | None) -> None:
        if data is None:
            del self.durable[at:]
        length = at + len(data or b"")
        if len(self.durable) < length:
            self.durable.extend(bytes(length - len(self.durable)))
        if data is not None:
            self.durable[at:length] = data


@dataclass(frozen=True)
class _Change:
    """One change of a folder's entries: C(reate), M(ake a folder), U(nlink) or R(ename)."""

    what: str
    path: str
    file: _File | None = None
    new: str = ""


class _Files:
    """The files below a folder, as the disk has them and as processes saw them.

    Args:
        root: what it holds now is durable.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._folders: set[str] = set()
        self._durable: dict[str, _File] = {}  # by path, as the disk has it
        self._numbered: dict[int, _File] = {}  # by the log's numbers
        self._since: dict[str, list[_Change]] = {}  # by folder, what was not synced
        for entry in [root, *root.rglob("*")]:
            if entry.is_dir():
                self._folders.add(str(entry))
            else:
                self._durable[str(entry)] = _File(bytearray(entry.read_bytes()))
        self._seen = dict(self._durable)  # by path, as processes saw it

    def replay(self, log: bytes, rng: random.Random) -> None:
        """Go through what a process did."""
        at = 0
        while at < len(log):
            end = log.index(b"\n", at)
            what, _, rest = log[at:end].decode().partition(" ")
            at = end + 1
            if what == "W":
                number, offset, length = map(int, rest.split())
                self._numbered[number].since.append((offset, log[at : at + length]))
                at += length
            elif what == "T":
                number, length = map(int, rest.split())
                self._numbered[number].since.append((length, None))
            elif what == "S":
                self._numbered[int(rest)].sync()
            elif what == "E":
                self._numbered[int(rest)].forget(rng)
            elif what == "D":
                for change in self._since.pop(rest, []):
                    self._settle(change)
            elif what == "R":
                end = log.index(b"\n", at)
                new = log[at:end].decode()
                at = end + 1
                assert Path(rest).parent == Path(new).parent, "The disk knows renames within a folder alone."
                self._seen[new] = self._seen.pop(rest)  # a file: there are no folders here
                self._change(_Change("R", rest, new=new))
            elif what in "CF":
                number_text, _, path = rest.partition(" ")
                if what == "C":
                    self._seen[path] = _File()
                    self._change(_Change("C", path, self._seen[path]))
                self._numbered[int(number_text)] = self._seen[path]
            elif what in "MU":
                self._seen.pop(rest, None)
                self._change(_Change(what, rest))
            else:
                raise AssertionError(f"The disk does not know what this did to a file: {what} {rest}.")

    def cut(self, rng: random.Random) -> None:
        """Let the power go: of what was not synced chance says what is there, the entries of a folder in order."""
        for changes in self._since.values():
            for change in changes[: rng.randrange(len(changes) + 1)]:
                self._settle(change)
        for file in {id(file): file for file in self._durable.values()}.values():
            file.forget(rng)

    def write_to_disk(self) -> None:
        """Write what is durable, in folders that are durable up to the root."""
        for path, file in sorted(self._durable.items()):
            folders = [str(folder) for folder in Path(path).parents if str(folder).startswith(self._root)]
            if all(folder in self._folders for folder in folders):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_bytes(file.durable)

    def _change(self, change: _Change) -> None:
        self._since.setdefault(str(Path(change.path).parent), []).append(change)

    def _settle(self, change: _Change) -> None:
        if change.what == "M":
            self._folders.add(change.path)
        elif change.what == "U":
            self._durable.pop(change.path, None)
        elif change.what == "R":
            self._durable[change.new] = self._durable.pop(change.path)
        elif change.file is not None:
            self._durable[change.path] = change.file
