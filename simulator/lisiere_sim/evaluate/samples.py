"""The sample models on their held-out data, through the same tasks as on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lisiere.backends import open_model
from lisiere.clock import SystemClock, parse_ts, rfc3339
from lisiere.errors import ConfigError
from lisiere.models import open_package
from lisiere.models.manifest import WindowInput
from lisiere.settings.anomaly import DetectorConfig
from lisiere.settings.decision import DecisionConfig
from lisiere.settings.forecast import ForecastConfig
from lisiere.tasks import open_task
from lisiere.tasks.streaming import StreamingTask
from lisiere.values import Frame, Reading, Window
from lisiere.windows import WindowBuilder
from lisiere_sim.evaluate.forecasting import read_truth
from lisiere_sim.evaluate.kind import Record
from lisiere_sim.evaluate.runs import Run
from lisiere_sim.models import SOURCE_ROOT

Say = Callable[[int, int], None]  # how many of how many items are done
# As in the train.py of each: what its model has not seen.
_DIGITS_SEED, _DIGITS_RENDERINGS = 20_260_132, 4
_DIGITS_DECISION = DecisionConfig(threshold=0.8, top=10, coverage=0.99)
_PUMPS, _HEALTHY, _FAULTY = range(2000, 2020), 500, 50
MODELS = ("digits", "co2", "pump")
_RECORDINGS = 34
_YEAR_S = 52 * 604_800.0  # of weekly rows
_SEVERITIES = (0.25, 0.5, 1.0)


def find_samples(folder: Path | None) -> Path:
    """Return the folder of sample models: the given one, `models` here, or that of the source tree.

    Raises:
        ConfigError: there is none.
    """
    for base in (folder,) if folder else (Path("models"), SOURCE_ROOT / "models"):
        if base.is_dir() and all((base / name / "model.yaml").is_file() for name in MODELS):
            return base
    raise ConfigError(f"There are no sample models ({', '.join(MODELS)}) in {folder or 'models'}: name their folder.")


class _Model:
    """A sample model, loaded; a call gives the result's record."""

    def __init__(
        self, folder: Path, decision: DecisionConfig | None = None, forecast: ForecastConfig | None = None
    ) -> None:
        self.package = open_package(folder)
        self.opened = open_model(self.package, "auto")
        self._task = open_task(self.package, self.opened.model, SystemClock(), decision, forecast)

    def __call__(self, item: Frame | Window, ts: float) -> Record | None:
        result = self._task(item)
        if result is None or result.body is None:
            return None
        record: Record = {"pipeline": self.package.manifest.name, "ts": rfc3339(ts)}
        if isinstance(item, Window):
            record["window"] = {"start": rfc3339(item.start), "end": rfc3339(item.end), "step_s": item.step_s}
        return record | {"result": msgspec.to_builtins(result.body)}

    @property
    def window(self) -> WindowInput:
        how = self.package.manifest.input
        assert isinstance(how, WindowInput)  # noqa: S101 - co2 and pump take windows
        return how


def digits(folder: Path, say: Say) -> Iterator[Run]:
    """Frames of digits that training has not seen; labels: one a result, in order.

    The second run is of those that the calibration has not seen either: every other one.
    """
    from lisiere_sim.digits import render

    model = _Model(folder, _DIGITS_DECISION)
    with np.load(folder / "heldout.npz") as held:
        glyphs, labels = held["glyphs"], held["labels"]
    rng = np.random.default_rng(_DIGITS_SEED)
    results: list[Record] = []
    total = _DIGITS_RENDERINGS * len(glyphs)
    for at in range(total):
        found = model(Frame(render(glyphs[at % len(glyphs)], rng), float(at), "digits", at), float(at))
        results.append(found or {})
        say(at + 1, total)
    model.opened.model.close()
    told = [str(label) for label in labels] * _DIGITS_RENDERINGS
    yield Run("digits", "classification", results, told)
    unseen = [at for at in range(total) if at % len(glyphs) % 2]
    yield Run("digits-unseen", "classification", [results[at] for at in unseen], [told[at] for at in unseen])


def co2(folder: Path, say: Say) -> Iterator[Run]:
    """The held-out years, a forecast each week; labels: the record itself.

    Weeks that were not measured end no window: interpolation has looked past them.
    """
    model = _Model(folder, forecast=ForecastConfig(season_s=_YEAR_S))
    truth = read_truth(folder)
    times, (values,) = truth.times, truth.values.values()
    builder = WindowBuilder(model.window, "co2")
    results = []
    for at, (ts, value) in enumerate(zip(times, values, strict=True)):
        for window in builder.add(Reading(float(ts), (float(value),), "co2")):
            found = model(window, window.end) if window.end == ts else None
            results += [found] if found is not None else []
        say(at + 1, len(times))
    model.opened.model.close()
    yield Run("co2", "forecasting", results, truth)


def pump(folder: Path, say: Say) -> Iterator[Run]:
    """Pumps that training has not seen: healthy, then with one fault; a run for each fault and severity."""
    from lisiere_sim.pump import FAULTS, Pump

    model = _Model(folder)
    length, step_s = model.window.length, model.window.step_s
    total = len(_PUMPS) * (_HEALTHY + len(FAULTS) * len(_SEVERITIES) * _FAULTY)
    done = 0

    def scored(pump: Pump, each: int, first: int) -> Iterator[Record]:
        nonlocal done
        for at, values in enumerate(pump.samples(each * length).reshape(each, length, 1), start=first):
            start = at * length * step_s
            window = Window(values, start, start + (length - 1) * step_s, step_s, 1.0, 0, "pump")
            found = model(window, window.end)
            assert found is not None  # noqa: S101 - an anomaly task always answers
            done += 1
            say(done, total)
            yield found

    healthy = [
        record for number, seed in enumerate(_PUMPS) for record in scored(Pump(seed), _HEALTHY, number * _HEALTHY)
    ]
    for fault in FAULTS:
        for severity in _SEVERITIES:
            faulty: list[Record] = []
            for seed in _PUMPS:
                machine = Pump(seed)
                machine.set_fault(fault, severity)
                faulty += scored(machine, _FAULTY, len(healthy) + len(faulty))
            labels = [(parse_ts(faulty[0]["window"]["start"]), parse_ts(faulty[-1]["window"]["end"]))]
            yield Run(f"pump-{fault}-{severity:g}", "anomaly", healthy + faulty, labels)
    model.opened.model.close()


def plant(_folder: Path, say: Say) -> Iterator[Run]:
    """The built-in detector on recordings of a pump's circuit, each from its first row, one behind the other."""
    from lisiere_sim.plant import CHANNELS, record

    results: list[Record] = []
    labels = []
    start = 0.0
    for number in range(_RECORDINGS):
        recording = record(number)
        task = StreamingTask(DetectorConfig(channels=CHANNELS, step_s=1.0), None, SystemClock())
        for at, row in enumerate(recording.values.astype(np.float32)):
            found = task(Window(row[None], start + at, start + at, 1.0, 1.0, 0, "plant"))
            stamp = rfc3339(start + at)
            results.append({"pipeline": "plant", "ts": stamp, "result": msgspec.to_builtins(found.body)})
        labels.append((start + recording.first, start + recording.last))
        start += len(recording.values)
        say(number + 1, _RECORDINGS)
    yield Run("plant", "anomaly", results, labels)


SAMPLES: dict[str, Callable[[Path, Say], Iterator[Run]]] = {"digits": digits, "co2": co2, "pump": pump, "plant": plant}
TASKS: dict[str, Any] = {"digits": "classification", "co2": "forecasting", "pump": "anomaly", "plant": "anomaly"}
