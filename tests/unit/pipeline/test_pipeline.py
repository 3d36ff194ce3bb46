"""Pipelines: bounded between source and model, every item a result or counted, faults kept to one item."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jsonschema
import msgspec
import numpy as np
import pytest

from lisiere.backends import Tensor, open_model
from lisiere.clock import ManualClock, SystemClock, rfc3339
from lisiere.config import Config, DeliveryConfig, PipelineConfig, QueueConfig, Source, SpoolConfig
from lisiere.errors import ConfigError, Permanent, Rejected
from lisiere.health import PipelineHealth
from lisiere.models import TensorSpec, open_package
from lisiere.pipeline import Pipeline, check_models, check_pairing, model_engine, open_pipeline
from lisiere.schema import json_schema
from lisiere.settings.checks import ChecksConfig, CommandTrigger
from lisiere.settings.forecast import ForecastConfig
from lisiere.settings.sensors import CsvSource
from lisiere.settings.sources import CameraSource, ImagesSource
from lisiere.settings.view import ViewConfig
from lisiere.settings.window import WindowConfig
from lisiere.spool import Spool, SpoolReader
from lisiere.tasks.forecasting import ForecastingTask
from lisiere.timeline import Timeline
from lisiere.values import ClassificationBody, EventBody, Frame, Reading, Result, RunningScore, ScoreBody
from support import tiny


class Listed:
    """A source that yields what it is given."""

    def __init__(self, items: list[Frame] | list[Reading]) -> None:
        self._items = items

    def items(self, stop: threading.Event) -> Iterator[Frame | Reading]:
        for item in self._items:
            if stop.is_set():
                return
            yield item


class Rig:
    """One pipeline over listed items, run to its end in this thread."""

    def __init__(self, folder: Path, package: Path, source: Source, items: Any, **changes: Any) -> None:
        self.folder = folder
        self.spool = Spool(SpoolConfig(path=str(folder), linger_ms=0), ManualClock())
        self.health = PipelineHealth("dock")
        config = PipelineConfig(name="dock", source=source, model=str(package), **changes)
        opened = open_package(package)
        self.pipeline = Pipeline(
            config,
            Listed(items),
            model_engine(opened, open_model(opened, "onnx"), ManualClock()),
            self.spool,
            Timeline(ManualClock()),
            self.health,
        )

    def run(self) -> list[dict[str, Any]]:
        def read() -> None:
            self.pipeline.read()
            self.pipeline.end()

        reader = threading.Thread(target=read)
        reader.start()
        self.pipeline.work()
        reader.join(10)
        self.spool.close()
        self.pipeline.close()
        rows = SpoolReader(self.folder)
        found = [json.loads(row.body) for row in rows.after(0, 10_000)]
        rows.close()
        return found

    @property
    def counters(self) -> dict[str, int]:
        return self.health.snapshot()[2]


def frames(count: int, shape: tuple[int, ...] = (12, 16, 3)) -> list[Frame]:
    rng = np.random.default_rng(3)
    return [Frame(rng.integers(0, 255, shape, np.uint8), 1.7e9 + at, "camera", at) for at in range(count)]


def readings(values: list[float], step: float = 1.0) -> list[Reading]:
    return [Reading(1.7e9 + at * step, (value,), "csv") for at, value in enumerate(values)]


def test_every_frame_becomes_a_result_in_order(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", tiny.classifier(tmp_path / "m"), ImagesSource(path="x"), frames(50))
    results = rig.run()
    assert [result["ts"] for result in results] == [f"2023-11-14T22:{13 + (20 + at) // 60}:{(20 + at) % 60:02d}.000Z" for at in range(50)]  # fmt: skip  # noqa: E501
    first = results[0]
    assert first["pipeline"] == "dock"
    assert first["source"] == "images"
    assert first["task"] == "classification"
    assert first["ts_quality"] == "synced"
    assert first["model"] == {
        "name": "tiny",
        "version": "1.0.0",
        "digest": open_package(tmp_path / "m").digest,
        "backend": "onnx",
        "backend_why": "configured",
        "target": "any",
    }
    assert first["result"]["label"] in tiny.LABELS
    assert first["result"]["top"][0] == {"label": first["result"]["label"], "score": first["result"]["score"]}
    assert "window" not in first
    assert rig.counters == {"read": 50, "results": 50}


def test_a_frame_that_cannot_be_used_costs_only_itself(tmp_path: Path) -> None:
    items = frames(3)
    items[1] = Frame(np.zeros((4, 4, 2), np.uint8), 0.0, "camera", 1)
    rig = Rig(tmp_path / "spool", tiny.classifier(tmp_path / "m"), ImagesSource(path="x"), items)
    assert len(rig.run()) == 2
    assert rig.counters == {"read": 3, "results": 2, "input_rejected": 1}


@pytest.mark.parametrize("policy", ["mark", "withhold"])
def test_frames_of_a_dark_camera_are_marked_or_withheld(policy: Literal["mark", "withhold"], tmp_path: Path) -> None:
    items = [Frame(np.zeros((16, 12, 3), np.uint8), float(second), "camera", second) for second in range(6)]
    source, package = CameraSource(device="/dev/video0"), tiny.classifier(tmp_path / "m")
    checks, queue = ChecksConfig(policy=policy), QueueConfig(policy="all")
    rig = Rig(tmp_path / "spool", package, source, items, checks=checks, queue=queue)
    found = [body["input"]["faults"] for body in rig.run()]
    # The first frame could be one bad frame; a second later it is a dark camera.
    assert found == ([[]] + [["dark", "covered"]] * 5 if policy == "mark" else [[]])
    assert rig.counters["input_dark"] == 5
    assert rig.counters.get("withheld", 0) == (0 if policy == "mark" else 5)


def test_a_frame_that_was_asked_for_names_the_command(tmp_path: Path) -> None:
    class Asked(Listed):
        """Asks for a frame before the third."""

        def items(self, stop: threading.Event) -> Iterator[Frame | Reading]:
            for number, item in enumerate(super().items(stop)):
                if number == 2:
                    rig.pipeline.ask("a1")
                yield item

    source, queue = CameraSource(device="/dev/video0"), QueueConfig(policy="all")
    rig = Rig(tmp_path / "spool", tiny.classifier(tmp_path / "m"), source, [], trigger=CommandTrigger(), queue=queue)
    rig.pipeline._source = Asked(frames(5))
    with pytest.raises(Rejected, match="has no frames now: it is starting"):
        rig.pipeline.ask("early")
    (body,) = rig.run()
    assert body["input"]["command"] == "a1"
    assert rig.counters == {"read": 5, "results": 1, "not_asked": 4}


def test_readings_are_not_asked_for(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", tiny.detector(tmp_path / "m"), CsvSource(path="x"), [])
    with pytest.raises(Rejected, match="has readings"):
        rig.pipeline.ask("a1")
    rig.run()


def test_a_camera_that_changes_its_size_is_told_and_goes_on(tmp_path: Path) -> None:
    items = [*frames(3), *frames(2, (24, 32, 3)), *frames(1, (6, 8, 3)), *frames(2)]
    source, view = CameraSource(device="/dev/video0"), ViewConfig(region=(4, 2, 8, 8))
    rig = Rig(
        tmp_path / "spool", tiny.classifier(tmp_path / "m"), source, items, view=view, queue=QueueConfig(policy="all")
    )
    assert len(rig.run()) == 7
    assert rig.counters == {"read": 8, "results": 7, "frame_size_changed": 3, "view_unfit": 1}


def test_the_model_sees_the_view(tmp_path: Path) -> None:
    whole = frames(1)[0]
    part = dataclasses.replace(whole, image=np.ascontiguousarray(whole.image[2:10, 4:12]))
    package = tiny.classifier(tmp_path / "m")
    source, view = ImagesSource(path="x"), ViewConfig(region=(4, 2, 8, 8))
    (seen,) = Rig(tmp_path / "a", package, source, [whole], view=view).run()
    (expected,) = Rig(tmp_path / "b", package, source, [part]).run()
    assert seen["result"] == expected["result"]


def test_a_slow_model_sees_the_newest_frame_and_says_how_old_it_is(tmp_path: Path) -> None:
    clock = ManualClock()

    class Live:
        """A hundred frames, a tenth of a second apart."""

        def items(self, stop: threading.Event) -> Iterator[Frame]:
            for frame in [] if stop.is_set() else frames(100):
                clock.advance(0.1)
                yield dataclasses.replace(frame, captured=clock.monotonic())

    spool = Spool(SpoolConfig(path=str(tmp_path / "spool"), linger_ms=0), clock)
    opened = open_package(tiny.classifier(tmp_path / "m"))
    config = PipelineConfig(name="dock", source=CameraSource(device="/dev/video0"), model=str(opened.path))
    health = PipelineHealth("dock")
    engine = model_engine(opened, open_model(opened, "onnx"), clock)
    pipeline = Pipeline(config, Live(), engine, spool, Timeline(clock), health)
    pipeline.read()  # the model is busy all the while
    clock.advance(0.03)
    pipeline.end()
    pipeline.work()
    spool.close()
    pipeline.close()
    reader = SpoolReader(tmp_path / "spool")
    (result,) = [json.loads(row.body) for row in reader.after(0, 100)]
    reader.close()
    assert result["ts"] == rfc3339(frames(100)[-1].ts)
    assert result["input"]["age_ms"] == pytest.approx(30.0)
    assert health.snapshot()[2] == {"read": 100, "dropped_queue_full": 99, "results": 1}


def test_windows_say_how_much_of_them_is_real(tmp_path: Path) -> None:
    series = readings([1, 2, 3, 4, 5, 6, 7, 8, 9])
    del series[4]
    rig = Rig(tmp_path / "spool", tiny.forecaster(tmp_path / "m"), CsvSource(path="x"), series)
    results = [one for one in rig.run() if "result" in one]
    assert [result["window"]["imputed"] for result in results] == [1, 1, 1, 1]
    assert results[0]["window"] == {
        "start": "2023-11-14T22:13:20.000Z",
        "end": "2023-11-14T22:13:25.000Z",
        "step_s": 1.0,
        "n": 6,
        "coverage": 0.8333,
        "imputed": 1,
        "imputed_rows": [[4, 1]],
    }
    assert results[0]["result"]["quantiles"] == {"0.1": [5, 5], "0.5": [6, 6], "0.9": [7, 7]}
    assert results[0]["result"]["horizon"] == ["2023-11-14T22:13:26.000Z", "2023-11-14T22:13:27.000Z"]


def test_a_hole_gives_no_forecast_and_is_counted(tmp_path: Path) -> None:
    series = readings([float(at) for at in range(20)])
    del series[7:12]
    rig = Rig(tmp_path / "spool", tiny.forecaster(tmp_path / "m"), CsvSource(path="x"), series)
    told = rig.run()
    results = [one for one in told if "result" in one]
    assert all(result["window"]["coverage"] == 1.0 for result in results)
    # Those whose time came in the hole are told all the same, as far as they were measured.
    measured = [one["score"]["channels"]["level"]["n"] for one in told if "score" in one]
    assert measured == [1, 0, 2]
    assert rig.counters["window_incomplete"] > 0
    assert rig.counters["results"] == len(results)


def test_a_hole_is_no_data_for_a_detector(tmp_path: Path) -> None:
    series = readings([0.1] * 4 + [0.1] * 4 + [9.0] * 4, step=0.1)
    del series[5:7]
    rig = Rig(tmp_path / "spool", tiny.detector(tmp_path / "m"), CsvSource(path="x"), series)
    results = [result["result"] for result in rig.run()]
    assert [result["state"] for result in results] == ["normal", "no_data", "anomalous"]
    assert results[1]["score"] is None
    assert results[2]["score"] == pytest.approx(81, rel=1e-5)


@pytest.mark.parametrize(
    ("delivery", "classes"),
    [
        (DeliveryConfig(), [1, 0]),
        (DeliveryConfig(importance="metric"), [3, 3]),
        (DeliveryConfig(ttl_s=60), [1, 0]),
    ],
)
def test_what_is_anomalous_is_an_alarm_unless_the_configuration_says_otherwise(
    delivery: DeliveryConfig, classes: list[int], tmp_path: Path
) -> None:
    series = readings([0.1] * 4 + [9.0] * 4, step=0.1)
    Rig(tmp_path / "spool", tiny.detector(tmp_path / "m"), CsvSource(path="x"), series, delivery=delivery).run()
    reader = SpoolReader(tmp_path / "spool")
    kept = [(rank, expires) for _, rank, expires, _ in reader.every()]
    reader.close()
    assert kept == [(rank, ManualClock().now() + 60 if delivery.ttl_s else None) for rank in classes]


def test_readings_that_are_wrong_are_counted_by_name(tmp_path: Path) -> None:
    series = readings([1.0, 2.0, 3.0])
    series += [series[1], series[2], Reading(1.7e9 + 3, (float("nan"),), "csv")]
    rig = Rig(tmp_path / "spool", tiny.forecaster(tmp_path / "m"), CsvSource(path="x"), series)
    rig.run()
    assert rig.counters == {
        "read": 6,
        "reading_duplicate": 1,
        "reading_out_of_order": 1,
        "reading_not_a_number": 1,
        "window_unfinished": 3,
    }


class Broken:
    """A model that fails."""

    inputs: tuple[TensorSpec, ...] = (TensorSpec(name="image", shape=(1, 3, 8, 8)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec(name="scores", shape=(1, 3)),)

    def run(self, _feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise Permanent("The runtime gave up.")

    def close(self) -> None:
        pass


def test_a_model_that_fails_ends_the_unit_with_its_reason(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", tiny.classifier(tmp_path / "m"), ImagesSource(path="x"), frames(1))
    rig.pipeline._engine.task._model = Broken()  # type: ignore[attr-defined]
    rig.pipeline.read()
    with pytest.raises(Permanent, match="gave up"):
        rig.pipeline.work()
    rig.spool.close()


class Talkative:
    """A task that has more to tell than results: a score with the second item, without a result, and an end."""

    EVENT = EventBody(event="1", phase="new", label="7", score=0.9, since="s", until="u", count=1)
    SCORE = ScoreBody(
        made_ts="m",
        until_ts="u",
        method="model",
        steps=2,
        skill=None,
        channels={},
        running=RunningScore(forecasts=0, every=1, unscored=1, skill=None, channels={}, leads=[]),
    )

    def __init__(self) -> None:
        self._asked = 0

    def __call__(self, item: Any) -> Result:  # noqa: ARG002
        self._asked += 1
        if self._asked == 2:
            return Result(None, messages=(self.SCORE,))
        return Result(ClassificationBody(label="7", score=0.9, top=[]), messages=(self.EVENT,))

    def end(self) -> tuple[EventBody, ...]:
        return (msgspec.structs.replace(self.EVENT, phase="end"),)


def test_what_a_task_tells_beside_its_results_follows_them_in_order(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", tiny.classifier(tmp_path / "m"), ImagesSource(path="x"), frames(2))
    rig.pipeline._engine = dataclasses.replace(rig.pipeline._engine, task=Talkative())
    told = rig.run()
    assert [next(key for key in ("result", "event", "score") if key in one) for one in told] == [
        "result", "event", "score", "event",
    ]  # fmt: skip
    assert [told[1]["event"]["phase"], told[3]["event"]["phase"]] == ["new", "end"]
    assert rig.counters == {"read": 2, "results": 1}
    for one in told:
        kind = next(key for key in ("result", "event", "score") if key in one)
        identity = {"schema": f"lisiere.{kind}/1", "id": "a:b:1", "device": "a", "epoch": "b", "seq": 1}
        jsonschema.validate({**one, **identity, "published_ts": "p", "replay": False}, json_schema(kind))


def test_a_model_that_gives_no_numbers_is_counted(tmp_path: Path) -> None:
    class NotNumbers(Broken):
        def run(self, _feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"scores": np.full((1, 3), np.nan, np.float32)}

    rig = Rig(tmp_path / "spool", tiny.classifier(tmp_path / "m"), ImagesSource(path="x"), frames(2))
    rig.pipeline._engine.task._model = NotNumbers()  # type: ignore[attr-defined]
    assert rig.run() == []
    assert rig.counters["input_rejected"] == 2


def test_a_spool_that_takes_nothing_is_counted_and_the_pipeline_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", tiny.classifier(tmp_path / "m"), ImagesSource(path="x"), frames(3))
    rig.spool.close()
    rig.pipeline.read()
    rig.pipeline.end()
    rig.pipeline.work()
    assert rig.counters == {"read": 3, "spool_unavailable": 3}


def test_an_event_whose_end_no_spool_takes_is_counted(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", tiny.classifier(tmp_path / "m"), ImagesSource(path="x"), frames(3))
    rig.pipeline._engine = dataclasses.replace(rig.pipeline._engine, task=Talkative())
    rig.spool.close()
    rig.pipeline.read()
    rig.pipeline.end()
    rig.pipeline.work()
    assert rig.counters == {"read": 3, "spool_unavailable": 4}
    rig.pipeline.close()


def test_a_source_must_fit_the_model(tmp_path: Path) -> None:
    manifest = open_package(tiny.forecaster(tmp_path)).manifest
    config = PipelineConfig(name="dock", source=CameraSource(device="/dev/video9"), model="m")
    with pytest.raises(ConfigError, match=r"^\$\.x: The source gives frames, which the forecasting model 'tide'"):
        check_pairing(config, manifest, "$.x")
    series = PipelineConfig(name="dock", source=CsvSource(path="x"), model="m")
    assert check_pairing(series, manifest, "$.x") == ("level",)


def test_a_model_is_verified_before_a_pipeline_is_made(tmp_path: Path) -> None:
    package = tiny.classifier(tmp_path / "m")
    (package / "labels.txt").write_text("a\nb\nc\nd\n")
    spool = Spool(SpoolConfig(path=str(tmp_path / "spool")), SystemClock())
    config = PipelineConfig(name="dock", source=ImagesSource(path="x"), model=str(package))
    with pytest.raises(Rejected, match=r"labels\.txt"):
        open_pipeline(config, "$.pipelines[0]", spool, SystemClock(), Timeline(SystemClock()), PipelineHealth("dock"))
    spool.close()


def test_opening_warms_the_model_up_and_says_which_backend_runs(tmp_path: Path) -> None:
    spool = Spool(SpoolConfig(path=str(tmp_path / "spool")), SystemClock())
    health = PipelineHealth("dock")
    config = PipelineConfig(
        name="dock", source=ImagesSource(path="x"), model=str(tiny.classifier(tmp_path / "m")), backend="onnx"
    )
    pipeline = open_pipeline(config, "$.pipelines[0]", spool, SystemClock(), Timeline(SystemClock()), health)
    assert health.backend == "onnx"
    assert pipeline.model.backend == "onnx"
    pipeline.close()
    spool.close()


@pytest.mark.parametrize(
    ("source", "queue", "policy", "size"),
    [
        (CameraSource(device="/dev/video0"), QueueConfig(), "latest", 1),
        (ImagesSource(path="x"), QueueConfig(), "all", 64),
        (ImagesSource(path="x"), QueueConfig(policy="latest", size=5), "latest", 5),
    ],
)
def test_the_default_queue_fits_the_source(
    tmp_path: Path, source: Source, queue: QueueConfig, policy: str, size: int
) -> None:
    rig = Rig(tmp_path / "spool", tiny.classifier(tmp_path / "m"), source, [], queue=queue)
    assert rig.pipeline._queue._latest == (policy == "latest")
    assert rig.pipeline._queue._size == size
    rig.spool.close()
    rig.pipeline.close()


def test_a_mask_that_is_no_image_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"no image")
    package, view = tiny.classifier(tmp_path / "m"), ViewConfig(mask=str(tmp_path / "mask.png"))
    config = PipelineConfig(name="dock", source=ImagesSource(path="x"), model=str(package), view=view)
    with pytest.raises(Rejected, match=r"The mask .*mask\.png is not"):
        check_models(Config(device="gate", pipelines=(config,)))


def test_settings_of_forecasts_are_for_forecasting_models_whose_season_fits(tmp_path: Path) -> None:
    tide, hum = (
        open_package(tiny.forecaster(tmp_path / "t")).manifest,
        open_package(tiny.detector(tmp_path / "h")).manifest,
    )
    series = PipelineConfig(name="dock", source=CsvSource(path="x"), model="m", forecast=ForecastConfig(season_s=3.0))
    assert check_pairing(series, tide, "$.pipelines[0].source") == ("level",)
    with pytest.raises(ConfigError, match="for forecasting models, which 'hum' is not") as wrong:
        check_pairing(series, hum, "$.pipelines[0].source")
    assert wrong.value.path == "$.pipelines[0].forecast"
    long = msgspec.structs.replace(series, forecast=ForecastConfig(season_s=7.0))
    with pytest.raises(ConfigError, match="a season of 7 rows does not fit into a window of 6") as wrong:
        check_pairing(long, tide, "$.pipelines[0].source")
    assert wrong.value.path == "$.pipelines[0].forecast.season_s"


def test_forecasts_are_judged_by_how_often_the_configuration_has_them_made(tmp_path: Path) -> None:
    spool = Spool(SpoolConfig(path=str(tmp_path / "spool")), SystemClock())
    model = str(tiny.forecaster(tmp_path / "m", horizon=6))
    config = PipelineConfig(name="dock", source=CsvSource(path="x"), model=model, window=WindowConfig(stride=3))
    pipeline = open_pipeline(config, "$.p", spool, SystemClock(), Timeline(SystemClock()), PipelineHealth("dock"))
    task = pipeline._engine.task
    assert isinstance(task, ForecastingTask)
    assert task._keeper._asked.stride == 3
    pipeline.close()
    spool.close()
