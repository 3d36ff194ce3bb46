"""Linking: the object file of the kernels and their C wrappers -> one shared object that needs libc and libm only."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lisiere.errors import Permanent, Rejected
from lisiere_compile.target import Target

_TIMEOUT_S = 300
# Architecture -> the kind of machine in GCC's and zig's words.
KINDS = {"armv7l": "arm-linux-gnueabihf", "aarch64": "aarch64-linux-gnu", "x86_64": "x86_64-linux-gnu"}
# Old enough for every system that Python 3.10 and this runtime's libraries run on; GCC links with its own glibc.
_ZIG_GLIBC = "2.17"
_LIBC = ("libc.", "libm.", "ld-linux")


def find_compiler(target: Target | None = None) -> list[str]:
    """Return the command of a C compiler for a target, or for this machine.

    For this machine it is `$CC`, else cc, gcc, clang; for another kind, GCC under its name for that kind, as Debian
    has it. Else it is zig's from the wheel `ziglang`, which links for any machine.

    Raises:
        Permanent: there is none; the message names all that were looked for.
    """
    zig = [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") is not None else []
    if target is not None and "linux" in target.triple:
        zig += ["-target", f"{KINDS[target.arch]}.{_ZIG_GLIBC}"] if zig else []
        if target.cross:
            return _find_cross(target, zig)
    given = shlex.split(os.environ.get("CC", ""))
    if given:
        if shutil.which(given[0]) is None:
            raise Permanent(f"The C compiler that $CC names, {given[0]}, was not found.")
        return given
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    if zig:
        return zig
    raise Permanent(
        "No C compiler was found, and linking needs one. Looked for $CC, cc, gcc, clang and `python -m ziglang cc`; "
        "`pip install ziglang` brings the last one."
    )


def _find_cross(target: Target, zig: list[str]) -> list[str]:
    kind = KINDS[target.arch]
    if found := shutil.which(f"{kind}-gcc"):
        return [found]
    if zig:
        return zig
    raise Permanent(
        f"No C compiler for {target.name} was found, and linking needs one: install the package "
        f"gcc-{kind.replace('_', '-')} (Debian, Ubuntu), which brings {kind}-gcc, or `pip install ziglang`."
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


def link(work: Path, source: str, kernels: str | None, library: str, target: Target | None = None) -> Path:
    """Compile the wrappers and link them with the kernels.

    The library depends on libc and libm alone: anything else a device may lack.

    Args:
        work: the folder that holds the object file and gets the library; everything in it is scratch.
        source: C source of the wrappers.
        kernels: file name of the kernels' object; None for a program without any.
        library: file name of the shared object.
        target: the machine to link for; None for this one.

    Raises:
        Permanent: there is no C compiler, or it cannot be run.
        Rejected: it refuses, which names a symbol when a kernel needs more than libc and libm.
    """
    compiler = find_compiler(target)
    (work / "wrappers.c").write_text(source, encoding="ascii")
    command = [*compiler, "-std=gnu99", "-O2", "-shared", "-fPIC", "-o", library, "wrappers.c"]
    command += [kernels] if kernels else []
    if sys.platform != "darwin" or (target is not None and target.cross):
        # Own symbols win over the host's of the same name; anything undefined is an error now rather than there.
        command += ["-Wl,-Bsymbolic", "-Wl,-z,defs", "-Wl,--build-id=none", "-s", "-static-libgcc"]
    command.append("-lm")
    _compile(command, work, "link the kernels")
    if foreign := sorted(name for name in read_needs(work / library).libraries if not name.startswith(_LIBC)):
        raise Rejected(f"The linked kernels need {', '.join(foreign)}, and a device may have libc and libm alone.")
    return work / library


def build_program(work: Path, source: str, program: str, target: Target) -> Path:
    """Compile a C program for a target, with what loads libraries at run time.

    Raises:
        Permanent, Rejected: as `link`.
    """
    (work / f"{program}.c").write_text(source, encoding="ascii")
    command = [*find_compiler(target), "-std=gnu99", "-O1", "-o", program, f"{program}.c", "-ldl"]
    _compile(command, work, f"build {program}")
    return work / program


def _compile(command: list[str], work: Path, what: str) -> None:
    compiler = command[0]
    try:
        # In the folder, so that no path of this machine gets into the result.
        done = subprocess.run(  # noqa: S603 - the compiler that the user has chosen
            command, cwd=work, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except OSError as error:
        raise Permanent(f"The C compiler {compiler} cannot be run: {error.strerror}.") from error
    except subprocess.TimeoutExpired as error:
        raise Permanent(f"The C compiler {compiler} took more than {_TIMEOUT_S} seconds.") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        telling = [line for line in said if "undefined" in line or "error" in line] or said
        raise Rejected(f"{compiler} could not {what}: {' / '.join(telling[:5]) or 'it gave no reason'}.")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a shared object asks of the machine that loads it: libraries by name, and the oldest glibc, if any."""

    libraries: tuple[str, ...] = ()
    glibc: str | None = None


def read_needs(library: Path) -> Needs:
    """Read what a shared object needs; nothing is known of one that is not ELF, such as macOS's.

    Source: the ELF gABI's dynamic section, and the LSB's symbol versions (.gnu.version_r).
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerNeedSection

    with library.open("rb") as stream:
        try:
            sections = list(ELFFile(stream).iter_sections())
        except ELFError:
            return Needs()
        libraries: list[str] = []
        versions: list[tuple[int, ...]] = []
        for section in sections:
            if isinstance(section, DynamicSection):
                libraries += [tag.needed for tag in section.iter_tags("DT_NEEDED")]  # type: ignore[attr-defined]
            elif isinstance(section, GNUVerNeedSection):
                versions += [_glibc_version(one.name) for _, wanted in section.iter_versions() for one in wanted]
    oldest = max(filter(None, versions), default=())
    return Needs(tuple(libraries), ".".join(map(str, oldest)) or None)


def _glibc_version(name: str) -> tuple[int, ...]:
    """Return the numbers of GLIBC_2.17 and the like; other libraries' versions have none."""
    if name == "GLIBC_ABI_DT_RELR":  # relative relocations in the short form
        return (2, 36)
    prefix, _, numbers = name.partition("_")
    return tuple(int(part) for part in numbers.split(".")) if prefix == "GLIBC" and numbers[0].isdigit() else ()
