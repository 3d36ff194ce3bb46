"""Forecasts and what became of them: against sums by hand, through holes and clocks, in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lisiere.clock import rfc3339
from lisiere.tasks.scoring import Asked, Keeper, season_rows, seasonal_naive, skill
from lisiere.values import ScoreBody, Window

T0 = 1_700_000_000.0
DAY = 86_400.0
Array = NDArray[np.float64]


def asked(**changes: Any) -> Asked:
    base: dict[str, Any] = {
        "horizon": 3,
        "stride": 1,
        "step_s": 60.0,
        "channels": ("level",),
        "columns": (0,),
        "levels": (0.1, 0.5, 0.9),
        "coverage": 0.9,
        "running": 10,
        "fallback": (0.0, 0.05),
        "patience": 10,
    }
    return Asked(**{**base, **changes})


def window(values: Array, end: int, real: NDArray[np.bool_] | None = None, length: int = 4) -> Window:
    """The window of the rows of `values` [rows, channels] that ends with row `end`; NaN before the first."""
    padded = np.concatenate([np.full((length, values.shape[1]), np.nan), values[: end + 1]])[-length:]
    mask = None
    if real is not None:
        mask = np.concatenate([np.zeros((length, values.shape[1]), np.bool_), real[: end + 1]])[-length:]
    at = T0 + end * 60.0
    return Window(padded.astype(np.float32), at - (length - 1) * 60, at, 60.0, 1.0, 0, "s", mask)


def fan(centre: object, half: float = 1.0, horizon: int = 3, channels: int = 1) -> Array:
    """Quantiles `centre` ± `half`: [horizon, channels, 3]."""
    middle = np.broadcast_to(np.asarray(centre, np.float64), (horizon, channels))
    return np.stack([middle - half, middle, middle + half], axis=-1)


def zeros(horizon: int = 3, channels: int = 1) -> Array:
    return np.zeros((horizon, channels))


def test_a_forecast_is_scored_when_its_last_step_has_come() -> None:
    values = np.array([[0.0], [0.0], [1.0], [2.0], [4.0], [5.0]])
    keeper = Keeper(asked())
    assert keeper.see(window(values, 1)) == ()
    answer = keeper.answer(fan(1.0), zeros())
    assert (answer.method, answer.quantiles[0, 0].tolist()) == ("model", [0, 1, 2])
    assert keeper.see(window(values, 2)) == ()
    assert keeper.see(window(values, 3)) == ()
    (score,) = keeper.see(window(values, 4))
    assert (score.made_ts, score.until_ts) == (rfc3339(T0 + 60), rfc3339(T0 + 240))
    assert (score.steps, score.method) == (3, "model")
    one = score.channels["level"]
    # Measured 1, 2, 4; said 1; naive 0.
    assert one.n == 3
    assert one.mae == one.model_mae == pytest.approx(4 / 3, rel=1e-5)
    assert one.naive_mae == pytest.approx(7 / 3, rel=1e-5)
    assert one.skill == pytest.approx(1 - 4 / 7, rel=1e-5)
    # 1 lies within 1 ± 1.28, as does 2; 4 does not.
    assert one.coverage == pytest.approx(2 / 3, rel=1e-5)
    by_hand = [
        max(level * (value - said), (level - 1) * (value - said))
        for value in (1, 2, 4)
        for level, said in ((0.1, 0), (0.5, 1), (0.9, 2))
    ]
    assert one.pinball == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert (score.running.forecasts, score.running.unscored) == (1, 0)
    assert [(lead.first, lead.last) for lead in score.running.leads] == [(1, 1), (2, 2), (3, 3)]
    assert keeper.open == 0


def test_what_was_interpolated_or_is_missing_is_not_scored() -> None:
    values = np.array([[0.0], [0.0], [1.0], [np.nan], [4.0]])
    real = np.array([[True], [True], [False], [True], [True]])
    keeper = Keeper(asked())
    keeper.see(window(values, 1, real))
    keeper.answer(fan(1.0), zeros())
    told = [score for end in (2, 3, 4) for score in keeper.see(window(values, end, np.isfinite(values) & real))]
    assert [score.channels["level"].n for score in told] == [1]
    assert told[0].channels["level"].mae == 3


def test_a_forecast_whose_time_passed_without_data_is_told_as_unscored() -> None:
    values = np.zeros((40, 1))
    keeper = Keeper(asked())
    keeper.see(window(values, 1))
    keeper.answer(fan(1.0), zeros())
    (score,) = keeper.see(window(values, 30))  # 26 rows were never seen
    assert score.channels["level"].n == 0
    assert (score.channels["level"].mae, score.channels["level"].skill, score.skill) == (None, None, None)
    assert (score.running.forecasts, score.running.unscored) == (0, 1)


def test_a_clock_that_is_set_back_leaves_forecasts_unscored_and_the_keeper_goes_on() -> None:
    values = np.zeros((40, 1))
    keeper = Keeper(asked())
    keeper.see(window(values, 20))
    keeper.answer(fan(0.0), zeros())
    (lost,) = keeper.see(window(values, 3))  # more than a window back
    assert lost.channels["level"].n == 0
    keeper.answer(fan(0.0), zeros())
    told = [score for end in (4, 5, 6) for score in keeper.see(window(values, end))]
    assert [score.channels["level"].n for score in told] == [3]
    assert told[0].made_ts == rfc3339(T0 + 180)


def test_a_window_that_comes_again_with_more_in_it_is_taken_for_what_is_new() -> None:
    """A silent sensor's windows are told by the clock, and again when what it measured comes late."""
    values = np.arange(12.0)[:, np.newaxis]
    late = values.copy()
    late[4:7] = np.nan
    keeper = Keeper(asked())
    keeper.see(window(values, 3))
    keeper.answer(fan(4.0), zeros())
    assert [score for end in (4, 5) for score in keeper.see(window(late, end))] == []
    assert keeper.see(window(values, 4)) == ()  # row 4 after all, while rows up to 5 were told
    assert keeper.see(window(values, 4)) == ()
    (score,) = keeper.see(window(values, 6))
    one = score.channels["level"]
    assert (one.n, one.mae) == (3, 1)  # 4, 5 and 6, each once


def test_the_same_window_again_changes_nothing() -> None:
    values = np.zeros((10, 1))
    keeper = Keeper(asked())
    keeper.see(window(values, 1))
    keeper.answer(fan(1.0), zeros())
    for _ in range(3):
        assert keeper.see(window(values, 2)) == ()
    (score,) = [score for end in (3, 4) for score in keeper.see(window(values, end))]
    assert score.channels["level"].n == 3


@settings(max_examples=40, deadline=None)
@given(
    horizon=st.integers(1, 9),
    stride=st.integers(1, 5),
    steps=st.lists(st.integers(1, 12), min_size=1, max_size=25),
    channels=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_scores_are_those_of_a_reference_that_keeps_everything(
    horizon: int, stride: int, steps: list[int], channels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ends = np.cumsum(np.array(steps) * stride) + 3
    values = rng.normal(0, 1, (int(ends[-1]) + 1, channels)).astype(np.float32).astype(np.float64)
    real = rng.random(values.shape) < 0.8
    names = tuple(f"c{at}" for at in range(channels))
    keeper = Keeper(
        asked(horizon=horizon, stride=stride, channels=names, columns=tuple(range(channels)), fallback=None)
    )
    made: dict[str, tuple[int, Array]] = {}
    seen = np.zeros(len(values), np.bool_)
    told: list[ScoreBody] = []
    first = True
    for end in ends.tolist():
        told += keeper.see(window(values, end, real, length=8))
        if not first:
            seen[max(0, end - 7) : end + 1] = True
        first = False
        seen[: end + 1] |= np.arange(end + 1) > end  # what was before the first window is of no forecast
        centre = rng.normal(0, 1, (horizon, channels)).astype(np.float32).astype(np.float64)
        keeper.answer(fan(centre, 0.5, horizon, channels), zeros(horizon, channels))
        made[rfc3339(T0 + end * 60.0)] = (end, centre)
        assert keeper.open <= horizon // stride + 2
    assert len({score.made_ts for score in told}) == len(told)
    assert len(told) + keeper.open == len(made)
    for score in told:
        end, centre = made[score.made_ts]
        for at, name in enumerate(names):
            rows = np.arange(end + 1, end + 1 + horizon)
            known = real[rows, at] & seen[rows]
            assert score.channels[name].n == known.sum()
            if known.any():
                error = np.abs(values[rows, at] - centre[:, at])[known].mean()
                assert score.channels[name].mae == pytest.approx(error, rel=1e-4, abs=1e-6)


def test_a_long_horizon_is_held_in_bounded_memory() -> None:
    names = tuple(f"c{at}" for at in range(32))
    keeper = Keeper(asked(horizon=720, channels=names, columns=tuple(range(32)), levels=(0.1, 0.5, 0.9)))
    held = sum(value.nbytes for value in vars(keeper).values() if isinstance(value, np.ndarray))
    assert held < 40 << 20
    values = np.zeros((200, 32))
    for end in range(3, 60):
        keeper.see(window(values, end))
        keeper.answer(fan(0.0, 1.0, 720, 32), zeros(720, 32))
    # Every n-th alone is held, none takes the place of another, and the scores say so.
    held = keeper.open
    assert 1 <= held < 20
    told = keeper.see(window(values, 150))
    assert told == ()
    lost = keeper.see(window(values, 3, length=4))
    assert len(lost) == held
    assert held == -(-57 // lost[0].running.every)


def test_running_figures_are_of_the_last_forecasts() -> None:
    values = np.concatenate([np.zeros((20, 1)), np.full((40, 1), 2.0)])
    keeper = Keeper(asked(horizon=1, running=10))
    scores: list[ScoreBody] = []
    for end in range(60):
        scores += keeper.see(window(values, end))
        keeper.answer(fan(0.0, 1.0, 1), np.full((1, 1), 4.0))
    assert scores[10].running.channels["level"].mae == 0
    assert scores[-1].running.channels["level"].mae == 2
    assert scores[-1].running.forecasts == 10


def run(errors: Array, naive_errors: Array, **changes: Any) -> list[str]:
    """Forecast one step ahead with given errors; the method of each forecast."""
    keeper = Keeper(asked(horizon=1, **changes))
    values = np.zeros((len(errors) + 1, 1))
    methods: list[str] = []
    for end, (error, naive) in enumerate(zip(errors, naive_errors, strict=True)):
        keeper.see(window(values, end))
        methods.append(keeper.answer(fan(error, 1.0, 1), np.full((1, 1), naive)).method)
    return methods


def test_naive_is_sent_while_the_model_is_worse_for_long_and_no_sooner() -> None:
    errors = np.concatenate([np.full(30, 0.1), np.full(60, 3.0), np.full(90, 0.1)])
    methods = run(errors, np.ones(180))
    changes = [at for at in range(1, 180) if methods[at] != methods[at - 1]]
    assert len(changes) == 2
    assert 30 < changes[0] <= 60
    assert 90 < changes[1] <= 150
    assert methods[-1] == "model"
    assert set(run(errors, np.ones(180), fallback=None)) == {"model"}


def test_a_skill_that_wavers_around_zero_does_not_flutter() -> None:
    rng = np.random.default_rng(3)
    methods = run(1 + rng.normal(0, 0.02, 1000), np.ones(1000), patience=50)
    changes = sum(methods[at] != methods[at - 1] for at in range(1, 1000))
    assert changes <= 1


def test_the_naive_forecast_has_an_interval_and_quantiles_of_its_own() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(0, 5, (900, 1))
    keeper = Keeper(asked(horizon=1))
    keeper.method = "seasonal_naive"
    inside = []
    for end in range(899):
        keeper.see(window(values, end))
        answer = keeper.answer(fan(100.0, 1.0, 1), zeros(1))
        assert answer.method == "seasonal_naive"
        assert answer.low is not None
        assert answer.high is not None
        inside.append(bool(answer.low[0, 0] <= values[end + 1, 0] <= answer.high[0, 0]))
    assert answer.quantiles[0, 0, 1] == 0
    assert np.mean(inside[200:]) == pytest.approx(0.9, abs=0.03)


def test_a_model_with_one_quantile_gets_an_interval_once_its_errors_are_known() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(0, 2, (900, 1))
    keeper = Keeper(asked(horizon=2, levels=(0.5,)))
    inside = []
    for end in range(897):
        keeper.see(window(values, end))
        answer = keeper.answer(np.zeros((2, 1, 1)), zeros(2))
        assert (answer.low is None) == (end < 2)
        if answer.low is not None and answer.high is not None:
            after = values[end + 1 : end + 3]
            inside.append(((answer.low <= after) & (after <= answer.high)).mean())
    assert np.mean(inside) == pytest.approx(0.9, abs=0.03)


def test_a_median_that_is_not_told_lies_between_its_neighbours() -> None:
    values = np.array([[0.0], [0.0], [2.0], [2.0]])
    keeper = Keeper(asked(horizon=1, levels=(0.25, 0.75)))
    keeper.see(window(values, 1))
    keeper.answer(np.array([[[1.0, 4.0]]]), zeros(1))
    (score,) = keeper.see(window(values, 2))
    assert score.channels["level"].mae == 0.5


def test_skill_is_one_less_the_geometric_mean_of_ratios() -> None:
    sums = np.zeros((3, 7))
    sums[:2, 0] = 1  # the third was never measured
    sums[:2, 2], sums[:2, 3] = [1.0, 1.0], [2.0, 8.0]
    assert skill(sums) == pytest.approx(1 - (1 / 2 * 1 / 8) ** 0.5)
    sums[:2, 2] = sums[:2, 3] = 0.0
    assert skill(sums) == 0
    assert np.isnan(skill(np.zeros((2, 7))))
    sums[0, 2] = 1.0  # a naive forecast that was never wrong decides, but not for ever
    assert skill(sums) == pytest.approx(1 - 1e3**0.5)


@pytest.mark.parametrize(
    ("step_s", "length", "rows"),
    [
        (3600.0, 336, 24),
        (3600.0, 23, 1),
        (DAY, 14, 7),
        (DAY, 6, 1),
        (7 * DAY, 104, 1),
        (300.0, 288, 288),
        (7.0, 80_000, 1),
    ],
)
def test_the_season_is_a_day_or_a_week_where_it_fits(step_s: float, length: int, rows: int) -> None:
    assert season_rows(step_s, length, None) == rows


def test_a_season_that_is_given_must_fit() -> None:
    assert season_rows(7 * DAY, 104, 52 * 7 * DAY) == 52
    with pytest.raises(ValueError, match="not a whole number of steps"):
        season_rows(7 * DAY, 104, 365 * DAY)
    with pytest.raises(ValueError, match="104 rows does not fit into a window of 52"):
        season_rows(7 * DAY, 52, 104 * 7 * DAY)


def test_the_seasonal_naive_forecast_repeats_the_last_season() -> None:
    rows = np.arange(10.0)[:, np.newaxis]
    assert seasonal_naive(rows, 5, 3)[:, 0].tolist() == [7, 8, 9, 7, 8]
    assert seasonal_naive(rows, 3, 1)[:, 0].tolist() == [9, 9, 9]
