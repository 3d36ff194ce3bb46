from __future__ import annotations

from pathlib import Path

import pytest

from bench.compiled import CASES, judge, measure, scaling, show
from lisiere_compile.bench.rounds import Plan, spread
from lisiere_compile.bench.run import OURS, Figure, ModelFigures

QUICK = Plan(rounds=2, seconds=0, batch_ms=0.1)
TINY = ("ic01_fp32", "vww01_fp32", "kws01_fp32", "ad01_fp32")


def figures(name: str, ratio: float | None, seconds: float = 1.0) -> ModelFigures:
    ours = Figure(absent="not compiled") if ratio is None else Figure(ms=spread([ratio]))
    return ModelFigures(
        name=name,
        contestants={OURS: ours, "onnxruntime": Figure(ms=spread([1.0]))},
        ratio=None if ratio is None else spread([ratio]),
        compile_s={"import": seconds / 2, "build": seconds / 2},
    )


def test_each_ratio_and_the_mean_of_the_tiny_ones_stand_beside_their_targets() -> None:
    found = {
        one.name: one for one in judge([figures(name, ratio) for name, ratio in zip(TINY, (1, 1, 0.5, 2), strict=True)])
    }
    assert [found[name].met for name in TINY] == [True, True, True, False]
    mean = found["MLPerf Tiny, geometric mean"]
    assert mean.value == pytest.approx(1.0)
    assert not mean.met


@pytest.mark.parametrize("ratios", [(1, 1, 1), (1, 1, 1, None)])
def test_a_mean_that_lacks_a_model_is_not_met(ratios: tuple[float | None, ...]) -> None:
    judged = judge([figures(name, ratio) for name, ratio in zip(TINY, ratios, strict=False)])
    means = [one for one in judged if "mean" in one.name]
    assert [one.met for one in means] == ([False] if len(ratios) == 4 else [])


@pytest.mark.parametrize(("ratio", "seconds", "met"), [(1.0, 59, True), (1.0, 61, False), (None, 1, False)])
def test_the_time_of_the_large_model_counts_when_it_was_compiled(
    ratio: float | None, seconds: float, met: bool
) -> None:
    (time,) = [one for one in judge([figures("mobilenet_v2", ratio, seconds)]) if one.unit == "s"]
    assert time.met is met
    assert ("NOT MET" in show([time])) is not met


def test_a_model_that_is_not_here_is_left_out_by_name_and_the_overhead_has_no_ratio(tmp_path: Path) -> None:
    said: list[str] = []
    chosen = [case for case in CASES if case.name in ("overhead", "ic01_fp32")]
    found = measure(chosen, tmp_path, tmp_path, 1, QUICK, said.append)
    assert [model.name for model in found] == ["overhead"]
    assert found[0].ratio is None
    assert found[0].contestants[OURS].ms is not None
    assert any("ic01_fp32" in line and "LISIERE_SHARED" in line for line in said)


def test_every_case_has_its_files_or_a_maker() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert (case.make is not None) != bool(case.onnx and case.tflite), case.name
    assert {case.name for case in CASES if case.group == "tiny"} == set(TINY)


def test_scaling_is_the_time_on_one_thread_by_that_on_more() -> None:
    one, more = figures("resnet18", 3.0), figures("resnet18", 2.0)
    assert "resnet18       lisiere 1.50, onnxruntime 1.00" in scaling([one], [more], 2)
    # Whoever did not run on both has nothing to say.
    assert "lisiere" not in scaling([one], [figures("resnet18", None)], 2)
