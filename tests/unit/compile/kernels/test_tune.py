"""What tuning takes and leaves, on a clock of its own; and once for real."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from lisiere.cli import main as lisiere
from lisiere.errors import ConfigError
from lisiere.models import open_package
from lisiere_compile import lower
from lisiere_compile.compiler import Log, compile_job
from lisiere_compile.frontends import onnx as onnx_frontend
from lisiere_compile.kernels.rules import Scheduled, constant_arguments, pack_weights, schedule, schedule_one
from lisiere_compile.kernels.tune import Bench, Timer, Tuned, tune
from lisiere_compile.program import Program
from lisiere_compile.target import Target, describe_cpu

from ..conftest import make_job, make_model, parse, write_package


def two_convolutions() -> Any:
    """The second has sixteen times as much to do."""
    random = np.random.default_rng(1)
    weights = {
        "a": random.normal(0, 0.1, (16, 8, 1, 1)).astype(np.float32),
        "b": random.normal(0, 0.1, (32, 16, 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["m"]),
        helper.make_node("Conv", ["m", "b"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    return make_model(nodes, {"x": (1, 8, 12, 12)}, {"y": (1, 32, 12, 12)}, weights)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Target, dict[str, Scheduled]]:
    target = describe_cpu()
    folder = write_package(tmp_path_factory.mktemp("model"), two_convolutions())
    model = onnx_frontend.read_onnx(folder / "m.onnx", {})
    program = lower.to_program(lower.legalise(onnx_frontend.to_relax(model, "m"), model, target), model)
    return program, target, schedule(program, target)


class Fake:
    """A machine on which the schedules of a kernel take the seconds that it is told, and time passes by them alone."""

    def __init__(self, seconds: Callable[[str, int, int], float], compiling: float = 0.0) -> None:
        self.now, self.compiling, self.seconds = 0.0, compiling, seconds
        self.prepared: list[list[tuple[str, int]]] = []

    def prepare(self, rivals: Sequence[tuple[str, Scheduled]]) -> list[Timer | None]:
        self.now += self.compiling
        self.prepared.append([(name, one.choice) for name, one in rivals])
        when = len(self.prepared)

        def timer(name: str, choice: int) -> Timer:
            def run() -> float:
                took = self.seconds(name, choice, when)
                self.now += took
                return took

            return run

        return [timer(name, one.choice) for name, one in rivals]

    def tune(self, lowered: tuple[Program, Target, dict[str, Scheduled]], seconds: float = 1e6) -> Tuned:
        program, target, scheduled = lowered
        said: list[str] = []
        found = tune(program, scheduled, target, seconds, said.append, prepare=self.prepare, clock=lambda: self.now)
        assert said[-1] == f"tune: {found}"
        return found


Lowered = tuple[Program, Target, dict[str, Scheduled]]


def choices(found: Tuned) -> set[int]:
    return {one.choice for one in found.scheduled.values()}


def test_another_plan_is_taken_when_it_is_faster_beyond_doubt(lowered: Lowered) -> None:
    fake = Fake(lambda _name, choice, _when: 0.9 if choice == 2 else 1.0)
    found = fake.tune(lowered)
    assert found.tried == found.improved == found.kernels == 2
    assert all(one.choice == 2 for one in found.scheduled.values() if one.plans)


@pytest.mark.parametrize("rival", [0.98, 1.0, 1.5])
def test_what_is_slower_or_hardly_faster_is_not_taken(lowered: Lowered, rival: float) -> None:
    found = Fake(lambda _name, choice, _when: rival if choice else 1.0).tune(lowered)
    assert (found.tried, found.improved, choices(found)) == (2, 0, {0})


def test_what_was_faster_once_only_is_not_taken(lowered: Lowered) -> None:
    # The first to be prepared is all kernels for their cost; then each is tried, and what was faster once more.
    found = Fake(lambda _name, choice, when: 0.5 if choice and when in (2, 4) else 1.0).tune(lowered)
    assert (found.improved, choices(found)) == (0, {0})


def test_a_few_slow_runs_of_the_rules_own_gain_a_rival_nothing(lowered: Lowered) -> None:
    runs = iter(range(1_000_000))
    found = Fake(lambda _name, choice, _when: 1.0 if choice or next(runs) % 3 == 0 else 3.0).tune(lowered)
    assert found.improved == 0


def test_the_costliest_kernel_comes_first(lowered: Lowered) -> None:
    names = [name for name, one in lowered[2].items() if one.plans]
    for slow in names:
        fake = Fake(lambda name, _choice, _when, slow=slow: 2.0 if name == slow else 1.0)  # type: ignore[misc]
        fake.tune(lowered)
        assert {name for name, _ in fake.prepared[1]} == {slow}


def test_it_stops_when_the_time_is_used_up(lowered: Lowered) -> None:
    fake = Fake(lambda _name, choice, _when: 0.5 if choice else 1.0, compiling=10.0)
    found = fake.tune(lowered, seconds=20.0)
    assert found.tried <= 1
    assert found.improved == 0  # there was no time to measure it twice
    assert fake.now < 20.0 + 10.0 + 16 * 1.0


def test_kernels_that_do_not_compile_are_left_alone(lowered: Lowered) -> None:
    program, target, scheduled = lowered
    found = tune(
        program,
        scheduled,
        target,
        10,
        lambda _text: None,
        prepare=lambda rivals: [None] * len(rivals),
        clock=lambda: 0.0,
    )
    assert (found.tried, found.scheduled) == (0, scheduled)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bench_times_every_plan_that_compiles(lowered: Lowered, threads: int) -> None:
    program, target, scheduled = lowered
    rivals: list[tuple[str, Scheduled]] = []
    for name, one in scheduled.items():
        rivals.append((name, one))
        wider = [choice for choice, plan in enumerate(one.plans) if plan.tile.channels != one.plans[0].tile.channels]
        for choice in wider[:1]:  # whose weights lie in another order
            other = schedule_one(program.functions[name], target, constant_arguments(program)[name], choice)
            assert other is not None
            rivals.append((name, other))
    assert len(rivals) > len(scheduled)
    bench = Bench(program, scheduled, dataclasses.replace(target, threads=threads))
    timers = bench([*rivals, (rivals[0][0], Scheduled(None))])
    assert timers[-1] is None
    assert all(timer is not None and 0 < timer() < 1 for timer in timers[:-1])


def test_every_plan_packs_its_own_weights(lowered: Lowered) -> None:
    program, target, scheduled = lowered
    others = {name: one for name, one in scheduled.items() if one.plans}
    for choice in range(8):
        packed = pack_weights(program, {name: one.packs for name, one in others.items()})
        for call in packed.calls:
            if call.kernel in others:
                shapes = [tuple(map(int, one.ty.shape)) for one in others[call.kernel].function.params]
                assert [value.shape for value in (*call.tensors, *call.outputs)] == shapes
        constant = constant_arguments(program)
        for name in others:
            other = schedule_one(program.functions[name], target, constant[name], choice)
            assert other is not None
            assert (other.choice, other.plans) == (choice, scheduled[name].plans)
            others[name] = other


def test_a_tuned_artifact_passes_its_gate_and_says_what_was_tried(tmp_path: Path) -> None:
    source, said = write_package(tmp_path / "source", two_convolutions()), list[str]()
    log = Log(said=said.append)
    folder = compile_job(parse(make_job(source)), tmp_path, tune_s=3, log=log)
    assert log.verdict.cases > 0
    tried = re.fullmatch(r"([12]) of 2 kernels, [012] improved", log.tuned)
    assert tried, log.tuned
    assert said[-1] == f"tune: {log.tuned}"
    build = open_package(folder).manifest.build
    assert build is not None
    assert build.tools["tune"] == f"3 s, {log.tuned}"


def test_an_interrupt_ends_tuning(tmp_path: Path) -> None:
    log = Log()
    log.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        log.say("tune: 1 of 2 kernels")


def test_another_machine_is_not_tuned_for(tmp_path: Path) -> None:
    source = write_package(tmp_path / "source", two_convolutions())
    device = "rasp4b" if describe_cpu().arch == "x86_64" else "ml_c5"
    with pytest.raises(ConfigError, match="Tune on the device itself"):
        compile_job(parse(make_job(source, TargetDevice=device)), tmp_path, tune_s=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "86401", "soon"])
def test_the_command_line_takes_seconds_up_to_a_day(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        lisiere(["compile", "m.onnx", f"--tune={seconds}"])
    assert "no number of seconds" in capsys.readouterr().err


def test_the_cloud_does_not_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_package(tmp_path / "source", two_convolutions())
    document = tmp_path / "job.json"
    document.write_text(json.dumps(make_job(source)))
    assert lisiere(["compile", str(document), "--cloud", "--tune", "1"]) == 2
    assert "--tune" in capsys.readouterr().err
