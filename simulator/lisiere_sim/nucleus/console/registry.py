"""Which nuclei of this user run, so that `lisiere nucleus status` needs no --root where there is one alone."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lisiere.errors import ConfigError


def _folder() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"lisiere-nuclei-{os.getuid()}"


@contextlib.contextmanager
def entry(root: Path) -> Iterator[None]:
    """List a nucleus of this process while it runs. Where that cannot be, only --root is needed more often."""
    place = _folder() / str(os.getpid())
    with contextlib.suppress(OSError):
        place.parent.mkdir(mode=0o700, exist_ok=True)
        if _is_ours(place.parent):  # else somebody may have put links there
            place.write_text(str(root), "utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.unlink()


def find_root(wanted: Path | None) -> Path:
    """Return the root that is meant.

    Raises:
        ConfigError: none is named, and not exactly one nucleus runs.
    """
    if wanted is not None:
        return wanted
    folder = _folder()
    roots: list[Path] = []
    if _is_ours(folder):
        running = [place for place in sorted(folder.iterdir()) if place.name.isdecimal() and _runs(int(place.name))]
        roots = [Path(place.read_text("utf-8")) for place in running]
    if len(roots) == 1:
        return roots[0]
    if not roots:
        raise ConfigError("No nucleus of yours runs. Start one with `lisiere nucleus run`.", "--root")
    raise ConfigError(f"{len(roots)} nuclei run; say which: {', '.join(map(str, roots))}.", "--root")


def _is_ours(folder: Path) -> bool:
    """Whether a folder is one of this user's making, and no link: in a temporary folder everybody may make them."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
