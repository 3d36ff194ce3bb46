"""Detection: known boxes come out where they are in the frame, by each form of head, and nonsense does not come out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lisiere.backends import open_model
from lisiere.clock import ManualClock
from lisiere.errors import Rejected
from lisiere.models import TensorSpec, open_package, write_manifest
from lisiere.models.manifest import Detection, SsdHead, SsdRawHead, YoloHead
from lisiere.models.package import read_draft
from lisiere.settings.decision import DecisionConfig, EventsConfig
from lisiere.tasks import open_task
from lisiere.tasks.boxes import suppress
from lisiere.tasks.heads import HeadReader, read_priors
from lisiere.values import DetectionBody, EventBody, Frame
from support.detectors import SIZE, detector

SSD = SsdHead(boxes="boxes", classes="classes", scores="scores", count="count")
RAW = SsdRawHead(boxes="boxes", scores="scores", priors="priors.csv")
V5 = YoloHead(output="rows", layout="rows", objectness=True)
V8 = YoloHead(output="columns", layout="columns", objectness=False)
SIDES = st.integers(1, 300)
WIDE = np.zeros((60, 120, 3), np.uint8)


def floats(values: Any) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


def detect(folder: Path, image: Any = WIDE, decision: DecisionConfig | None = None) -> DetectionBody:
    package = open_package(folder)
    opened = open_model(package, "onnx")
    result = open_task(package, opened.model, ManualClock(), decision)(Frame(image, 0.0, "camera", 0))
    opened.model.close()
    assert result is not None
    assert isinstance(result.body, DetectionBody)
    return result.body


def told(body: DetectionBody) -> list[tuple[str, float, tuple[float, ...]]]:
    return [(one.label, round(one.score, 4), one.box) for one in body.objects]


def ssd(folder: Path, *rows: tuple[int, float, Any], count: float | None = None, **what: Any) -> Path:
    """A package of TFLite's form: class, score and (top, left, bottom, right), with two rows of rubbish behind."""
    boxes = [row[2] for row in rows] + [[math.nan] * 4] * 2
    outputs = {
        "boxes": floats([boxes]),
        "classes": floats([[*(row[0] for row in rows), 99, math.nan]]),
        "scores": floats([[*(row[1] for row in rows), math.inf, math.nan]]),
        "count": floats([len(rows) if count is None else count]),
    }
    return detector(folder, SSD, outputs, **what)


def test_an_ssd_s_boxes_come_back_from_the_letterbox(tmp_path: Path) -> None:
    # 120x60 in 32x32: 32x16, from row 8 to 24.
    folder = ssd(tmp_path, (1, 0.9, [0.25, 0.0, 0.75, 0.5]), (2, 0.8, [0.375, 0.5, 0.5, 0.75]), (0, 0.1, [0, 0, 1, 1]))
    body = detect(folder)
    assert told(body) == [("dog", 0.9, (0, 0, 60, 60)), ("owl", 0.8, (60, 15, 30, 15))]
    assert (body.width, body.height) == (120, 60)


@pytest.mark.parametrize(
    ("fit", "shape", "box"),
    [
        ("stretch", (60, 120, 3), (0, 0, 60, 30)),
        ("stretch", (64, 64), (0, 0, 32, 32)),
        ("crop", (60, 120, 3), (30, 0, 30, 30)),
        ("crop", (100, 50, 3), (0, 25, 25, 25)),
        ("letterbox", (60, 120, 3), (0, 0, 60, 30)),
        ("letterbox", (64, 32, 3), (0, 0, 16, 32)),
    ],
)
def test_each_fit_is_undone_exactly(tmp_path: Path, fit: Any, shape: Any, box: Any) -> None:
    folder = ssd(tmp_path, (0, 0.9, [0, 0, 0.5, 0.5]), fit=fit)
    assert told(detect(folder, np.zeros(shape, np.uint8))) == [("cat", 0.9, box)]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["stretch", "crop", "letterbox"]), st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32)
)
def test_what_is_seen_in_the_input_is_where_it_is_in_the_frame(fit: Any, height: int, width: int, seed: int) -> None:
    """A box of the frame, carried into the input by hand, comes back."""
    from lisiere.models.manifest import ImageInput, TensorSpec
    from lisiere.tasks.preprocess import ImagePreprocess

    preprocess = ImagePreprocess(ImageInput(fit=fit), TensorSpec(name="x", shape=(1, 3, 40, 24)))
    placement = preprocess.placement(np.zeros((height, width, 3), np.uint8))
    (top, left, rows, columns), (to_top, to_left, to_rows, to_columns) = placement.taken, placement.put
    assert 0 <= top <= top + rows <= height
    assert 0 <= left <= left + columns <= width
    x, y = np.random.default_rng(seed).random(2)
    box = np.asarray([[to_left + x * to_columns, to_top + y * to_rows, to_left + to_columns, to_top + to_rows]])
    wanted = [left + x * columns, top + y * rows, left + columns, top + rows]
    assert placement.undo(box)[0] == pytest.approx(wanted)


def test_yolo_v5_multiplies_what_is_there_by_what_it_is(tmp_path: Path) -> None:
    rows = floats([[[16, 16, 8, 4, 0.8, 0.1, 0.9, 0.2], [4, 12, 8, 8, 0.3, 0.9, 0, 0], [28, 20, 8, 8, 0.9, 0, 0, 1]]])
    folder = detector(tmp_path, V5, {"rows": rows})
    assert told(detect(folder)) == [("owl", 0.9, (90, 30, 30, 30)), ("dog", 0.72, (45, 22.5, 30, 15))]


def test_yolo_v8_has_a_column_a_box(tmp_path: Path) -> None:
    columns = floats([[[16, 4], [16, 12], [8, 8], [4, 8], [0.1, 0.2], [0.7, 0.1], [0.2, 0.4]]])
    folder = detector(tmp_path, V8, {"columns": columns})
    assert told(detect(folder)) == [("dog", 0.7, (45, 22.5, 30, 15)), ("owl", 0.4, (0, 0, 30, 30))]


def test_yolo_in_fractions_and_logits(tmp_path: Path) -> None:
    head = YoloHead(output="rows", layout="rows", objectness=True, activation="sigmoid", unit="fraction")
    folder = detector(tmp_path, head, {"rows": floats([[[0.5, 0.5, 0.25, 0.125, math.log(4), -99, math.log(9), 0]]])})
    assert told(detect(folder)) == [("dog", 0.72, (45, 22.5, 30, 15))]


def test_a_raw_ssd_is_decoded_from_its_priors(tmp_path: Path) -> None:
    (tmp_path / "priors.csv").write_text("0.5,0.5,0.25,0.125\n0.125,0.375,0.25,0.25\n\n")
    # The first moves by a tenth of its width, and doubles its height; the second stays.
    boxes = floats([[[1.0, 0, 0, math.log(2) / 0.2], [0, 0, 0, 0]]])
    scores = floats([[[0, math.log(8), 0, 0], [math.log(5), 0, 0, math.log(13)]]])
    folder = detector(tmp_path, RAW, {"boxes": boxes, "scores": scores})
    # Of background and three classes: 8 / 11 of the first, and 13 / 20 of the second.
    assert told(detect(folder)) == [("cat", 0.7273, (48, 15, 30, 30)), ("owl", 0.65, (0, 0, 30, 30))]
    other = SsdRawHead(boxes="boxes", scores="scores", priors="priors.csv", order="cycxhw")
    turned = {"boxes": np.ascontiguousarray(boxes[:, :, [1, 0, 3, 2]]), "scores": scores}
    assert told(detect(detector(tmp_path, other, turned))) == told(detect(folder))


def test_a_raw_ssd_without_a_background_may_give_a_box_two_classes(tmp_path: Path) -> None:
    (tmp_path / "priors.csv").write_text("0.5,0.5,0.25,0.125\n")
    head = SsdRawHead(boxes="boxes", scores="scores", priors="priors.csv", activation="none", background=None)
    outputs = {"boxes": floats([[[0, 0, 0, 0]]]), "scores": floats([[[0.9, 0.1, 0.8]]])}
    box = (45, 22.5, 30, 15)
    assert told(detect(detector(tmp_path, head, outputs))) == [("cat", 0.9, box), ("owl", 0.8, box)]
    assert told(detect(detector(tmp_path, head, outputs, suppress="all"))) == [("cat", 0.9, box)]


def test_boxes_suppress_each_other_by_class_or_all(tmp_path: Path) -> None:
    rows = [[16, 16, 8, 8, 1, 0.9, 0, 0], [17, 16, 8, 8, 1, 0.8, 0, 0], [16, 17, 8, 8, 1, 0, 0.7, 0]]
    outputs = {"rows": floats([rows])}
    assert [one[0] for one in told(detect(detector(tmp_path, V5, outputs)))] == ["cat", "dog"]
    assert [one[0] for one in told(detect(detector(tmp_path, V5, outputs, suppress="all")))] == ["cat"]
    assert len(detect(detector(tmp_path, V5, outputs, iou_threshold=0.99)).objects) == 3
    assert len(detect(detector(tmp_path, V5, outputs, iou_threshold=0.99, top=2)).objects) == 2
    assert len(detect(detector(tmp_path, V5, outputs, iou_threshold=0.99, candidates=1)).objects) == 1


def test_an_ssd_is_not_suppressed_a_second_time_unless_asked(tmp_path: Path) -> None:
    rows: Any = [(0, 0.9, [0.25, 0, 0.75, 0.5]), (0, 0.8, [0.25, 0, 0.75, 0.5])]
    assert len(detect(ssd(tmp_path, *rows)).objects) == 2
    assert len(detect(ssd(tmp_path, *rows, iou_threshold=0.5)).objects) == 1


def test_a_pipeline_s_threshold_and_top_go_before_the_manifest_s(tmp_path: Path) -> None:
    folder = ssd(tmp_path, (0, 0.9, [0.25, 0, 0.5, 0.5]), (1, 0.6, [0.25, 0, 0.5, 0.5]), (2, 0.2, [0.25, 0, 0.5, 0.5]))
    assert len(detect(folder).objects) == 2
    assert len(detect(folder, decision=DecisionConfig(threshold=0.1)).objects) == 3
    assert len(detect(folder, decision=DecisionConfig(threshold=0.7)).objects) == 1
    assert len(detect(folder, decision=DecisionConfig(threshold=0.1, top=2)).objects) == 2


@pytest.mark.parametrize("smoothing", ["ewma", "majority"])
def test_each_class_that_is_there_is_an_event_of_its_own(tmp_path: Path, smoothing: Any) -> None:
    folder = ssd(tmp_path, (1, 0.9, [0.25, 0, 0.75, 0.5]), (1, 0.8, [0.5, 0, 0.75, 1]), (2, 0.75, [0.25, 0, 0.75, 1]))
    package = open_package(folder)
    opened = open_model(package, "onnx")
    how = EventsConfig(smoothing=smoothing, min_s=0.0)
    task = open_task(package, opened.model, ManualClock(), DecisionConfig(events=how))
    result = task(Frame(WIDE, 5.0, "camera", 0))
    assert result is not None
    assert isinstance(result.body, DetectionBody)
    assert result.body.steady == ["dog", "owl"]
    score = {"ewma": (0.9, 0.75), "majority": (1.0, 1.0)}[smoothing]
    news = [one for one in result.messages if isinstance(one, EventBody)]
    assert [(one.phase, one.label, one.score) for one in news] == [("new", "dog", score[0]), ("new", "owl", score[1])]
    ends = [one for one in task.end() if isinstance(one, EventBody)]
    assert [(one.phase, one.event) for one in ends] == [("end", one.event) for one in news]
    opened.model.close()


def test_boxes_are_kept_inside_the_frame_and_need_an_area_there(tmp_path: Path) -> None:
    rows: Any = [
        (0, 0.9, [-9, -9, 9, 9]),
        (0, 0.8, [0, 0, 0.2, 1]),  # in the margin of the letterbox
        (0, 0.7, [0.5, 0.5, 0.5, 0.9]),  # no height
        (0, 0.6, [0.6, 0.6, 0.5, 0.5]),  # negative sizes
        (0, 0.5, [-3e38, -3e38, 3e38, 3e38]),
    ]
    assert told(detect(ssd(tmp_path, *rows))) == [("cat", 0.9, (0, 0, 120, 60)), ("cat", 0.5, (0, 0, 120, 60))]


def test_no_boxes_are_no_objects(tmp_path: Path) -> None:
    assert detect(ssd(tmp_path, count=0)) == DetectionBody(objects=[], width=120, height=60)


@pytest.mark.parametrize(
    ("row", "count", "why"),
    [
        ((3, 0.9, [0, 0, 1, 1]), None, "the class 3, and there are 3 labels"),
        ((-1, 0.9, [0, 0, 1, 1]), None, "the class -1"),
        ((0.5, 0.9, [0, 0, 1, 1]), None, "the class 0.5"),
        ((math.nan, 0.9, [0, 0, 1, 1]), None, "the class nan"),
        ((0, math.nan, [0, 0, 1, 1]), None, "not all numbers"),
        ((0, math.inf, [0, 0, 1, 1]), None, "not all numbers"),
        ((0, 7.5, [0, 0, 1, 1]), None, "shares of one. If it gives logits"),
        ((0, -0.5, [0, 0, 1, 1]), None, "from -0.5"),
        ((0, 0.9, [0, 0, math.nan, 1]), None, "not all numbers"),
        ((0, 0.9, [0, -math.inf, 1, 1]), None, "not all numbers"),
        ((0, 0.9, [0, 0, 1, 1]), 4, "has found 4 objects, of at most 3"),
        ((0, 0.9, [0, 0, 1, 1]), -1, "has found -1"),
        ((0, 0.9, [0, 0, 1, 1]), math.nan, "has found nan"),
    ],
)
def test_nonsense_is_rejected_and_named(tmp_path: Path, row: Any, count: float | None, why: str) -> None:
    with pytest.raises(Rejected, match=why):
        detect(ssd(tmp_path, row, count=count))


@pytest.mark.parametrize(
    ("objectness", "score", "why"),
    [(math.nan, 0.9, "not all numbers"), (7.0, 0.1, "from .* to 7"), (0.4, 2.0, "to 2"), (0.9, math.nan, "not all")],
)
def test_each_factor_of_a_yolo_s_score_is_a_share(tmp_path: Path, objectness: float, score: float, why: str) -> None:
    rows = floats([[[16, 16, 8, 8, objectness, 0, score, 0]]])
    with pytest.raises(Rejected, match=why):
        detect(detector(tmp_path, V5, {"rows": rows}))


def test_a_score_that_rounding_has_made_more_than_one_is_one(tmp_path: Path) -> None:
    assert detect(ssd(tmp_path, (0, 1.0005, [0.25, 0, 0.75, 0.5]))).objects[0].score == 1.0


def test_a_box_that_is_below_the_threshold_may_be_anything(tmp_path: Path) -> None:
    assert detect(ssd(tmp_path, (99, 0.1, [math.nan] * 4))).objects == []


ANY = hnp.arrays(np.float32, (1, 6, 8), elements=st.floats(width=32))


@settings(max_examples=60, deadline=None)
@given(ANY, st.sampled_from(["none", "sigmoid"]), st.booleans(), st.sampled_from(["pixel", "fraction"]))
def test_whatever_a_yolo_gives_is_objects_or_rejected(rows: Any, activation: Any, objectness: bool, unit: Any) -> None:
    head = YoloHead(output="x", layout="rows", objectness=objectness, activation=activation, unit=unit)
    count = 3 if objectness else 4
    check_reader(HeadReader(Detection(labels="l", head=head, candidates=4), count, (SIZE, SIZE)), {"x": rows}, count)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, (1, 5, 4), elements=st.floats(width=32)),
    hnp.arrays(np.float32, (1, 5, 4), elements=st.floats(width=32)),
    st.sampled_from(["none", "sigmoid", "softmax"]),
)
def test_whatever_a_raw_ssd_gives_is_objects_or_rejected(boxes: Any, scores: Any, activation: Any) -> None:
    head = SsdRawHead(boxes="b", scores="s", priors="p", activation=activation)
    reader = HeadReader(Detection(labels="l", head=head, candidates=4), 3, (SIZE, SIZE), np.full((5, 4), 0.5))
    check_reader(reader, {"b": boxes, "s": scores}, 3)


@pytest.mark.parametrize("place", [1e308, -1e308])
def test_boxes_beyond_all_bounds_are_brought_near(place: float) -> None:
    head = YoloHead(output="x", layout="rows", objectness=True, unit="fraction")
    reader = HeadReader(Detection(labels="l", head=head), 1, (SIZE, SIZE))
    found = reader({"x": np.asarray([[[place, place, 1e308, 1e308, 1, 1]]])}, 0.1)
    assert np.isfinite(found.boxes).all()
    assert suppress(found.boxes, found.scores, found.classes, 0.5, 9, True).tolist() == [0]


def check_reader(reader: HeadReader, outputs: Any, labels: int) -> None:
    try:
        found = reader(outputs, 0.1)
    except Rejected:
        return
    assert len(found.scores) <= 4
    assert np.isfinite(found.boxes).all()
    assert ((found.scores >= 0.1) & (found.scores <= 1)).all()
    assert (np.diff(found.scores) <= 0).all()
    assert ((found.classes >= 0) & (found.classes < labels)).all()


@pytest.mark.parametrize(
    "text",
    ["0.5,0.5,0.5\n", "0.5,0.5,0.5,x\n", "0.5,0.5,0,0.5\n", "nan,0.5,0.5,0.5\n", "0.5,0.5,1,1\n" * 2, "", "1\n1,2\n"],
)
def test_priors_that_are_none_are_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "priors.csv").write_text(text)
    with pytest.raises(Rejected, match=r"priors\.csv"):
        read_priors(tmp_path / "priors.csv", 1)


@pytest.mark.parametrize(
    ("head", "outputs", "why"),
    [
        (V8, {"rows": np.zeros((1, 7, 5))}, "`task.head.output` is 'columns', and the model's outputs are rows"),
        (V8, {"columns": np.zeros((7, 5))}, r"takes an output of \[1, …, …\]"),
        (V8, {"columns": np.zeros((1, 4, 5))}, "leaves no room for classes"),
        (V8, {"columns": np.zeros((1, 8, 5))}, "has 3 labels, but the model's output has 4 classes"),
        (V5, {"rows": np.zeros((1, 5, 7))}, "has 3 labels, but the model's output has 2 classes"),
        (RAW, {"boxes": np.zeros((1, 2, 4)), "scores": np.zeros((1, 3, 4))}, r"takes an output of \[1, 2, …\]"),
        (RAW, {"boxes": np.zeros((1, 2, 4)), "scores": np.zeros((1, 2, 3))}, "has 3 labels, .* has 2 classes"),
        (
            SsdRawHead(boxes="boxes", scores="scores", priors="priors.csv", background=4),
            {"boxes": np.zeros((1, 2, 4)), "scores": np.zeros((1, 2, 4))},
            "`task.head.background` is 4, and there are 4 classes",
        ),
        (SSD, {"boxes": np.zeros((1, 2, 5))}, r"takes an output of \[1, …, 4\]"),
        (SSD, {"boxes": np.zeros((1, 2, 4)), "classes": np.zeros((1, 2)), "scores": np.zeros((1, 3))}, "scores"),
    ],
)
def test_a_head_must_fit_the_outputs(tmp_path: Path, head: Any, outputs: Any, why: str) -> None:
    (tmp_path / "priors.csv").write_text("0.5,0.5,0.5,0.5\n" * 2)
    with pytest.raises(Rejected, match=why):
        open_package(detector(tmp_path, head, {name: floats(array) for name, array in outputs.items()}))


def test_what_is_quantised_must_be_turned_back(tmp_path: Path) -> None:
    folder = detector(tmp_path, V5, {"rows": np.zeros((1, 2, 8), np.float32)})
    manifest = read_draft(folder / "model.yaml")
    outputs = (TensorSpec(name="rows", shape=(1, 2, 8), dtype="int8"),)
    with pytest.raises(Rejected, match="takes floating point numbers, and 'rows' gives int8"):
        write_manifest(msgspec.structs.replace(manifest, outputs=outputs), folder / "model.yaml")
