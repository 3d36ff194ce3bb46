"""Linking: the object file of the kernels and their C wrappers -> one shared object that needs libc and libm only."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from lisiere.errors import Permanent, Rejected

_TIMEOUT_S = 300


def find_compiler() -> list[str]:
    """Return the command of a C compiler: `$CC`, else cc, gcc, clang, else zig's from the wheel `ziglang`.

    Raises:
        Permanent: there is none; the message names all that were looked for.
    """
    given = shlex.split(os.environ.get("CC", ""))
    if given:
        if shutil.which(given[0]) is None:
            raise Permanent(f"The C compiler that $CC names, {given[0]}, was not found.")
        return given
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise Permanent(
        "No C compiler was found, and linking needs one. Looked for $CC, cc, gcc, clang and `python -m ziglang cc`; "
        "`pip install ziglang` brings the last one."
    )


def compiler_version(compiler: list[str]) -> str:
    """Return the first line of what the compiler says of itself, for the record of the build."""
    try:
        done = subprocess.run(  # noqa: S603 - the compiler that the user has chosen
            [*compiler, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (done.stdout.strip().splitlines() or ["unknown"])[0][:200]


def link(work: Path, source: str, kernels: str | None, library: str) -> Path:
    """Compile the wrappers and link them with the kernels.

    Args:
        work: the folder that holds the object file and gets the library; everything in it is scratch.
        source: C source of the wrappers.
        kernels: file name of the kernels' object; None for a program without any.
        library: file name of the shared object.

    Raises:
        Permanent: there is no C compiler, or it cannot be run.
        Rejected: it refuses, which names a symbol when a kernel needs more than libc and libm.
    """
    compiler = find_compiler()
    (work / "wrappers.c").write_text(source, encoding="ascii")
    command = [*compiler, "-std=gnu99", "-O2", "-shared", "-fPIC", "-o", library, "wrappers.c"]
    command += [kernels] if kernels else []
    if sys.platform != "darwin":
        # Own symbols win over the host's of the same name; anything undefined is an error now rather than there.
        command += ["-Wl,-Bsymbolic", "-Wl,-z,defs", "-Wl,--build-id=none", "-s"]
    command.append("-lm")
    try:
        # In the folder, so that no path of this machine gets into the library.
        done = subprocess.run(  # noqa: S603 - the compiler that the user has chosen
            command, cwd=work, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except OSError as error:
        raise Permanent(f"The C compiler {compiler[0]} cannot be run: {error.strerror}.") from error
    except subprocess.TimeoutExpired as error:
        raise Permanent(f"The C compiler {compiler[0]} took more than {_TIMEOUT_S} seconds.") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        telling = [line for line in said if "undefined" in line or "error" in line] or said
        raise Rejected(f"{compiler[0]} could not link the kernels: {' / '.join(telling[:5]) or 'it gave no reason'}.")
    return work / library
