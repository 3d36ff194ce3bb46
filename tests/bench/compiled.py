"""`make bench`, the compiler: compiled models against other runtimes, each beside its target.

By itself: `PYTHONPATH=tests python -m bench.compiled [NAME...]`, for the table or a part of it. The measuring is that
of `lisiere bench`; here are only the models and what is asked of them. No timing fails a run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench import models
from bench.litert import to_tflite
from lisiere_compile.bench import report
from lisiere_compile.bench.peers import PEERS, missing
from lisiere_compile.bench.rounds import Plan, geometric_mean
from lisiere_compile.bench.run import OURS, ModelFigures, bench_model

REPOSITORY = Path(__file__).resolve().parents[2]
COMPILE_TARGET_S = 60.0
TINY_TARGET = 0.85
THREADS = (2, 4)


@dataclass(frozen=True)
class Case:
    """One model: its files or what makes it, and the ratio to the best peer that is asked of it.

    One that `scales` is large enough that more threads should help.
    """

    name: str
    target: float | None
    onnx: str = ""
    tflite: str = ""
    make: Callable[[Path], Path] | None = None
    group: str = ""
    scales: bool = False


CASES = (
    Case("overhead", None, make=models.overhead),
    Case("ic01_fp32", 1.0, "ic01_fp32.onnx", "pretrainedResnet.tflite", group="tiny"),
    Case("vww01_fp32", 1.0, "vww01_fp32.onnx", "vww_96_float.tflite", group="tiny"),
    Case("kws01_fp32", 1.0, "kws01_fp32.onnx", "kws_ref_model_float32.tflite", group="tiny"),
    Case("ad01_fp32", 1.0, "ad01_fp32.onnx", "ad01_fp32.tflite", group="tiny"),
    Case("mobilenet_v2", 1.1, make=models.mobilenet_v2, scales=True),
    Case("resnet18", 1.1, make=models.resnet18, scales=True),
    Case("tcn", 1.0, make=models.tcn),
    Case("lstm", 1.0, make=models.lstm),
    Case("ic01_int8", 1.3, "ic01_int8.onnx", "pretrainedResnet_quant.tflite"),
    Case("vww01_int8", 1.3, "vww01_int8.onnx", "vww_96_int8.tflite"),
    Case("kws01_int8", 1.3, "kws01_int8.onnx", "kws_ref_model.tflite"),
    Case("ad01_int8", 1.3, "ad01_int8.onnx", "ad01_int8.tflite"),
)


@dataclass(frozen=True)
class Judged:
    """A figure beside its target."""

    name: str
    value: float | None
    target: float
    unit: str = "x"
    at_best: float | None = None

    @property
    def met(self) -> bool:
        """Whether the figure is there and is at most the target."""
        return self.value is not None and self.value <= self.target


def measure(
    cases: Sequence[Case], shared: Path, work: Path, threads: int, plan: Plan, say: Callable[[str], None]
) -> tuple[ModelFigures, ...]:
    """Measure the cases whose files are here."""
    found = []
    for case in cases:
        folder = work / f"{case.name}-{threads}"
        folder.mkdir()
        model, tflite = shared / case.onnx, shared / case.tflite
        if case.make is not None:
            model = case.make(folder / f"{case.name}.onnx")
            tflite = model if missing("litert") else to_tflite(model, folder / f"{case.name}.tflite")
        if not model.is_file():
            say(f"{case.name}: left out, {model.name} is not in the shared data (LISIERE_SHARED names their folder)")
            continue
        figures = bench_model(model, folder, tflite=tflite, name=case.name, threads=threads, plan=plan, say=say)
        # Where nothing is asked for nothing is computed either, and a ratio of that would mean little.
        found.append(figures if case.target else msgspec.structs.replace(figures, best_peer=None, ratio=None))
    return tuple(found)


def judge(found: Sequence[ModelFigures]) -> list[Judged]:
    """Set each ratio, the geometric mean of the tiny models, and the time of the large one beside their targets."""
    by_name = {model.name: model for model in found}
    chosen = [case for case in CASES if case.name in by_name and case.target is not None]
    judged = []
    for case in chosen:
        model = by_name[case.name]
        ratio = None if model.ratio is None else model.ratio.median
        judged.append(Judged(case.name, ratio, case.target or 0.0, at_best=model.at_best))
    tiny = [by_name[case.name].ratio for case in chosen if case.group == "tiny"]
    if len(tiny) == sum(case.group == "tiny" for case in CASES):
        whole = [ratio.median for ratio in tiny if ratio is not None]
        mean = geometric_mean(whole) if len(whole) == len(tiny) else None
        judged.append(Judged("MLPerf Tiny, geometric mean", mean, TINY_TARGET))
    if (large := by_name.get("mobilenet_v2")) is not None:
        seconds = sum(large.compile_s.values()) if large.contestants[OURS].ms is not None else None
        judged.append(Judged("mobilenet_v2, compiling", seconds, COMPILE_TARGET_S, "s"))
    return judged


def scaling(one: Sequence[ModelFigures], many: Sequence[ModelFigures], threads: int) -> str:
    """Say how much faster more threads are, for everyone that ran on one and on more."""
    before = {model.name: model for model in one}
    lines = [f"Speed on {threads} threads, as a multiple of that on one:"]
    for model in many:
        parts = []
        for name, figure in model.contestants.items():
            single = before[model.name].contestants[name].ms if model.name in before else None
            if figure.ms is not None and single is not None:
                parts.append(f"{name} {single.median / figure.ms.median:.2f}")
        lines.append(f"  {model.name:<14} {', '.join(parts)}")
    return "\n".join(lines) + "\n"


def show(judged: Sequence[Judged]) -> str:
    """Return a line a target."""
    lines = []
    for one in judged:
        value = "none" if one.value is None else f"{one.value:.2f} {one.unit}"
        best = "" if one.at_best is None else f"   (at best {one.at_best:.2f})"
        lines.append(
            f"{one.name:<30}{value:>9}   <= {one.target:g} {one.unit:<3} {'met' if one.met else 'NOT MET'}{best}"
        )
    return "\n".join(lines) + "\n"


def run(names: Sequence[str], plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, print, and return what goes into the JSON."""
    shared = Path(os.environ.get("LISIERE_SHARED", REPOSITORY.parent / "shared")) / "data" / "models"
    cases = [case for case in CASES if not names or case.name in names]
    with tempfile.TemporaryDirectory(prefix="lisiere-bench-") as work:
        found = measure(cases, shared, Path(work), 1, plan, say)
        whole = report.document(found, tuple(PEERS), 1, plan)
        judged = judge(found)
        sys.stdout.write(report.table(whole) + "\n" + show(judged) + "\n")
        result = {
            **msgspec.to_builtins(whole),
            "targets": [{**asdict(one), "met": one.met} for one in judged],
            "threads_more": [],
        }
        for threads in (count for count in THREADS if count <= whole.machine.cpus):
            settled = msgspec.structs.replace(plan, settle=True)
            scaled = [case for case in cases if case.scales]
            more = measure(scaled, shared, Path(work), threads, settled, say)
            if more:
                sys.stdout.write(scaling(found, more, threads))
                result["threads_more"].append(
                    msgspec.to_builtins(report.document(more, tuple(PEERS), threads, settled))
                )
    return result


def main() -> int:
    """Run the table, or the named rows of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(case.name for case in CASES)}")
    parser.add_argument("--rounds", type=int, default=Plan().rounds)
    parser.add_argument("--seconds", type=float, default=Plan().seconds)
    args = parser.parse_args()
    if unknown := set(args.names) - {case.name for case in CASES}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    run(args.names, Plan(rounds=args.rounds, seconds=args.seconds), lambda text: print(text, file=sys.stderr))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
