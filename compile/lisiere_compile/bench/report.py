"""What a benchmark says in the end: a table for people, a document for programs, and what it ran on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from lisiere_compile.bench.rounds import Plan, Spread, geometric_mean
from lisiere_compile.bench.run import OURS, Figure, ModelFigures

_PACKAGES = (
    "lisiere", "apache-tvm", "apache-tvm-ffi", "dlr", "onnxruntime", "openvino", "ai-edge-litert", "numpy",
)  # fmt: skip


class Machine(Struct, frozen=True, kw_only=True):
    """What it ran on, as far as it decides speed."""

    system: str
    arch: str
    cpu: str
    features: tuple[str, ...]
    cpus: int
    python: str


class Document(Struct, frozen=True, kw_only=True):
    """All figures of one run, schema `lisiere.bench/1`.

    Attributes:
        versions: package -> version, of what is installed.
        threads, plan, against: the settings.
        geometric_mean: of the models' ratios; None when no model has one.
    """

    schema: Literal["lisiere.bench/1"] = "lisiere.bench/1"
    machine: Machine
    versions: dict[str, str]
    threads: int
    plan: Plan
    against: tuple[str, ...]
    models: tuple[ModelFigures, ...]
    geometric_mean: float | None


def document(models: Sequence[ModelFigures], against: Sequence[str], threads: int, plan: Plan) -> Document:
    """Put figures together with what they were measured on and how."""
    return Document(
        machine=machine(),
        versions=versions(),
        threads=threads,
        plan=plan,
        against=tuple(against),
        models=tuple(models),
        geometric_mean=geometric_mean([model.ratio.median for model in models if model.ratio is not None]),
    )


def machine() -> Machine:
    """Describe this machine; Linux says what its CPU is, elsewhere only Python does."""
    found: dict[str, str] = {}
    about = Path("/proc/cpuinfo")
    if about.is_file():
        for line in about.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip().lower(), value.strip())
    features = found.get("flags", found.get("features", ""))
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        arch=platform.machine(),
        cpu=found.get("model name") or platform.processor() or "unknown",
        features=tuple(sorted(word for word in features.split() if _matters(word))),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        python=platform.python_version(),
    )


def _matters(feature: str) -> bool:
    """Vector and matrix instructions decide the speed of inference."""
    return re.match(r"sse4|avx|fma|f16c|amx|asimd|neon|sve|i8mm|bf16", feature) is not None


def versions() -> dict[str, str]:
    """Return the version of each package that takes part, where it is installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def table(whole: Document) -> str:
    """Return the figures as text: a row a model, then whatever a number alone would hide."""
    heads = ["model", OURS, *whole.against, "best peer", "ratio", "middle half", "at best"]
    rows = [heads, *(_row(model, whole.against) for model in whole.models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.append("")
    if whole.geometric_mean is not None:
        lines.append(f"Geometric mean of the ratios: {whole.geometric_mean:.2f}")
    lines.append(
        f"Milliseconds of one call on {whole.threads} thread{'s' * (whole.threads > 1)}, median of the rounds ± half "
        "the middle half; a ratio below 1 is faster than the best peer. `at best` compares the fastest rounds."
    )
    lines.append(f"{whole.machine.cpu}, {whole.machine.cpus} CPUs; {_shown_versions(whole.versions)}")
    lines += notes(whole.models)
    return "\n".join(lines) + "\n"


def notes(models: Sequence[ModelFigures]) -> list[str]:
    """Return who did not run and why, and whose answer is another one."""
    lines = []
    for model in models:
        for name, figure in model.contestants.items():
            if figure.absent:
                lines.append(f"{model.name}: {name} did not run: {figure.absent}")
            elif not figure.agrees:
                by = "other shapes" if figure.difference is None else f"{figure.difference:.3g}"
                lines.append(f"{model.name}: {name} gives another answer than {model.reference} (by {by}).")
        if model.unscheduled:
            lines.append(f"{model.name}: kernels without a schedule: {', '.join(model.unscheduled)}")
    return lines


def _row(model: ModelFigures, against: Sequence[str]) -> list[str]:
    cells = [_cell(model.contestants[name]) for name in (OURS, *against)]
    if model.ratio is None or model.best_peer is None:
        return [model.name, *cells, model.best_peer or "-", "-", "-", "-"]
    return [
        model.name, *cells, model.best_peer, f"{model.ratio.median:.2f}", _half(model.ratio), f"{model.at_best:.2f}",
    ]  # fmt: skip


def _cell(figure: Figure) -> str:
    if figure.ms is None:
        return "absent"
    noise = (figure.ms.q3 - figure.ms.q1) / 2 / figure.ms.median
    return f"{figure.ms.median:.3g} ±{noise:.0%}{'' if figure.agrees else ' !'}"


def _half(ratio: Spread) -> str:
    return f"{ratio.q1:.2f}-{ratio.q3:.2f}"


def _shown_versions(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in found.items())


def encode(whole: Document) -> bytes:
    """Return the document as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"
