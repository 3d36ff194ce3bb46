"""`make bench`: what the runtime, delivery and the laptop nucleus cost, in one run; then the compiler.

Each comparison alternates its two sides round by round, so that a noisy machine is unfair to neither, and reports
the median of the rounds' ratios. The figures go to bench/results.json, which git does not keep.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from bench import compiled, delivery, detector, inputs, nucleus, sensors, series
from bench.outcome import Outcome
from lisiere import health
from lisiere.backends import open_model
from lisiere.clock import SystemClock
from lisiere.config import PipelineConfig, SpoolConfig
from lisiere.models import Package, open_package
from lisiere.pipeline import Pipeline, model_engine
from lisiere.settings.sources import ImagesSource
from lisiere.spool import Spool
from lisiere.tasks.preprocess import ImagePreprocess
from lisiere.timeline import Timeline
from lisiere.values import Frame, Reading
from lisiere_compile.bench.rounds import Plan

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = ("runtime", "delivery", "inputs", "sensors", "detector", "series", "nucleus", "compiler")


class InMemory:
    """A source of frames that are in memory already."""

    def __init__(self, frames: list[Frame]) -> None:
        self._frames = frames

    def items(self, stop: threading.Event) -> Iterator[Frame | Reading]:
        """Yield them all; see `Source.items`."""
        for frame in self._frames:
            if stop.is_set():
                return
            yield frame


def main() -> int:
    """Run every benchmark, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="which parts; all without it")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "bench" / "results.json")
    args = parser.parse_args()
    # On the disk that the project lies on: a temporary folder may be in memory, where a sync costs nothing.
    (REPOSITORY / "bench").mkdir(exist_ok=True)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "bench") as folder:
        work = Path(folder)
        if "runtime" in args.only:
            artifact = next((REPOSITORY / "build" / "models").glob("digits-*/manifest.yaml")).parent
            outcomes += [
                overhead(open_package(artifact), args.rounds, work),
                memory(artifact, work),
            ]
        if "delivery" in args.only:
            outcomes += delivery.run(args.rounds, work)
        if "inputs" in args.only:
            data = Path(os.environ.get("LISIERE_SHARED", REPOSITORY.parent / "shared")) / "data"
            outcomes += inputs.run(args.rounds, data)
        if "sensors" in args.only:
            outcomes += sensors.run(args.rounds)
        if "detector" in args.only:
            outcomes += detector.run(args.rounds)
        if "series" in args.only:
            outcomes += series.run(args.rounds, work, REPOSITORY / "build" / "models")
        if "nucleus" in args.only:
            outcomes += nucleus.run(args.rounds, work, REPOSITORY / "build" / "models")
    for outcome in outcomes:
        verdict = "holds" if outcome.holds else "DOES NOT HOLD"
        print(f"{outcome.name:<42}{outcome.value:>9.3g} {outcome.unit:<6} {outcome.target:<10} {verdict}")
        print(f"    against {outcome.against}")
    print()
    measured = {}
    if "compiler" in args.only:
        measured = compiled.run([], Plan(), lambda text: print(text, file=sys.stderr, flush=True))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(
        json.dumps({"outcomes": [vars(outcome) for outcome in outcomes], "compiler": measured}, indent=2)
    )
    return 0


def timed(work: Callable[[], None]) -> float:
    """Return how many seconds something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def overhead(package: Package, rounds: int, work: Path) -> Outcome:
    """A pipeline with spool, against a bare loop of the same preprocessing and `DLRModel.run`."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (120, 160, 3), np.uint8) for _ in range(64)]
    frames = [Frame(images[at % 64], time.time(), "memory", at) for at in range(2000)]
    manifest = package.manifest
    preprocess = ImagePreprocess(manifest.input, manifest.inputs[0])  # type: ignore[arg-type]
    bare = dlr_model(package)

    def loop() -> None:
        for frame in frames:
            bare.run({manifest.inputs[0].name: preprocess(frame.image)})

    def pipeline(number: int) -> float:
        queue = Spool(SpoolConfig(path=str(work / f"pipeline{number}")), SystemClock())
        config = PipelineConfig(name="bench", source=ImagesSource(path="-"), model=str(package.path))
        whole = Pipeline(
            config,
            InMemory(frames),
            model_engine(package, open_model(package, "dlr"), SystemClock()),
            queue,
            Timeline(SystemClock()),
            health.PipelineHealth("bench"),
        )

        def read() -> None:
            whole.read()
            whole.end()

        def run() -> None:
            reader = threading.Thread(target=read)
            reader.start()
            whole.work()
            reader.join()
            if not queue.flush(60):
                raise RuntimeError("The spool did not commit.")

        seconds = timed(run)
        if queue.committed != len(frames):
            raise RuntimeError(f"{queue.committed} of {len(frames)} results were accepted.")
        queue.close()
        whole.close()
        return seconds

    loop()
    ratios = [pipeline(number) / timed(loop) for number in range(rounds)]
    ratio = statistics.median(ratios)
    return Outcome(
        "pipeline overhead",
        "a bare loop of the same cv2 preprocessing and DLRModel.run",
        ratio,
        "x",
        "<= 1.3",
        ratio <= 1.3,
    )


def dlr_model(package: Package) -> Any:
    """Load the artifact in the `dlr` package itself, with its reporting switched off first."""
    import importlib.util

    found = importlib.util.find_spec("dlr")
    if found is None or found.origin is None:
        raise SystemExit("The package dlr is not installed, so there is nothing to compare with.")
    (Path(found.origin).parent / "counter" / "ccm_config.json").write_text('{"enable_phone_home": false}')
    import dlr

    return dlr.DLRModel(str(package.path), "cpu", 0, use_default_dlr=True)


def memory(artifact: Path, work: Path) -> Outcome:
    """Resident memory of `lisiere run` with one DLR pipeline on a video, after some hundred frames."""
    import cv2

    film = cv2.VideoWriter(str(work / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (640, 480))  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for _ in range(25):
        film.write(rng.integers(0, 255, (480, 640, 3), np.uint8))
    film.release()
    source = {"type": "video", "path": "film.avi", "loop": True, "fps": 100}
    pipeline = {"name": "bench", "source": source, "model": str(artifact), "backend": "dlr"}
    (work / "device.yaml").write_text(yaml.safe_dump({"device": "bench", "pipelines": [pipeline]}))
    process = subprocess.Popen(
        [sys.executable, "-m", "lisiere", "run", str(work / "device.yaml")], stderr=subprocess.DEVNULL
    )
    try:
        most = 0.0
        for _ in range(50):
            time.sleep(0.1)
            most = max(most, psutil.Process(process.pid).memory_info().rss / 1e6)
    finally:
        process.terminate()
        process.wait(30)
    return Outcome("resident memory of lisiere run", "the bound of 120 MB", most, "MB", "< 120", most < 120)


if __name__ == "__main__":
    raise SystemExit(main())
