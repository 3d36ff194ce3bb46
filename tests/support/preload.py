"""Libraries in C that a process under test is started with (LD_PRELOAD), and the page that each shares with it."""

from __future__ import annotations

import ctypes
import functools
import mmap
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from support import REPOSITORY, require

# Removed when the interpreter ends.
_FOLDER = tempfile.TemporaryDirectory(prefix="lisiere-preload-")


@functools.cache
def library(name: str) -> Path:
    """Compile a library of tests/crash once a test run, or skip."""
    require(sys.platform.startswith("linux"), "Linux, whose dynamic linker takes a library before libc")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    require(compiler, "C compiler")
    built = Path(_FOLDER.name) / f"{name}.so"
    source = REPOSITORY / "tests" / "crash" / f"{name}.c"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run([str(compiler), *flags, "-o", built, source], check=True)
    return built


class SharedPage:
    """64-bit integers that a test and the processes under test both see.

    Args:
        file: made here.
        names: of the integers, in the order of the library's `struct control`.
    """

    def __init__(self, file: Path, *names: str) -> None:
        file.write_bytes(bytes(mmap.PAGESIZE))
        with file.open("r+b") as stream:
            self._page = mmap.mmap(stream.fileno(), mmap.PAGESIZE)
        self._at = {name: number * 8 for number, name in enumerate(names)}

    def __getitem__(self, name: str) -> int:
        return ctypes.c_int64.from_buffer_copy(self._page, self._at[name]).value

    def __setitem__(self, name: str, value: int) -> None:
        self._page[self._at[name] : self._at[name] + 8] = value.to_bytes(8, sys.byteorder, signed=True)

    def close(self) -> None:
        """Let the page go."""
        self._page.close()
