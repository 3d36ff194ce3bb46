"""Classification: scores become labels with probabilities, whatever the model gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lisiere.backends import open_model
from lisiere.clock import ManualClock
from lisiere.errors import Permanent, Rejected
from lisiere.models import Manifest, Package, TensorSpec, open_package
from lisiere.models.manifest import Classification, ImageInput
from lisiere.settings.decision import DecisionConfig, EventsConfig
from lisiere.tasks import open_task
from lisiere.tasks.classification import ClassificationTask, best_classes, class_shares
from lisiere.tasks.conformal import write_scores
from lisiere.values import ClassificationBody, EventBody, Frame, Result
from support import tiny

LABELS = ("ash", "beech", "oak", "yew")
FRAME = Frame(np.zeros((8, 8, 3), np.uint8), 0.0, "camera", 0)


class Fake:
    """A model that gives what it is told to, and takes 3 ms of the clock for it."""

    def __init__(self, manifest: Manifest, output: NDArray[Any], clock: ManualClock) -> None:
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self.feeds: Mapping[str, NDArray[Any]] = {}
        self.output = output
        self._clock = clock

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.feeds = feeds
        self._clock.advance(0.003)
        return {self.outputs[0].name: self.output}

    def close(self) -> None:
        pass


def task(
    output: object,
    dtype: str = "float32",
    folder: Path = Path("nowhere"),
    labels: tuple[str, ...] = LABELS,
    decision: DecisionConfig | None = None,
    **what: Any,
) -> tuple[ClassificationTask, Fake]:
    manifest = Manifest(
        schema="lisiere.model/1",
        name="trees",
        version="1.0.0",
        inputs=(TensorSpec(name="image", shape=(1, 3, 8, 8)),),
        outputs=(TensorSpec(name="scores", shape=(1, len(labels))),),
        input=ImageInput(),
        task=Classification(labels="labels.txt", **what),
        files={},
    )

    class Labelled(Package):
        def labels(self) -> tuple[str, ...]:
            return labels

    clock = ManualClock()
    model = Fake(manifest, np.asarray(output, dtype).reshape(1, len(labels)), clock)
    return ClassificationTask(Labelled(folder, manifest, "sha256:"), model, clock, decision), model


def events(result: Result) -> list[EventBody]:
    return [one for one in result.messages if isinstance(one, EventBody)]


def body(output: object, dtype: str = "float32", **what: Any) -> ClassificationBody:
    found = task(output, dtype, **what)[0](FRAME).body
    assert isinstance(found, ClassificationBody)
    return found


def test_the_best_label_comes_first_and_the_rest_in_order() -> None:
    found = body([0.1, 0.6, 0.05, 0.25])
    assert (found.label, found.score) == ("beech", 0.6)
    assert [(one.label, one.score) for one in found.top] == [("beech", 0.6), ("yew", 0.25), ("ash", 0.1)]


@pytest.mark.parametrize(("top", "listed"), [(1, 1), (3, 3), (4, 4), (100, 4)])
def test_top_is_how_many_are_listed_at_most(top: int, listed: int) -> None:
    assert len(body([0.1, 0.2, 0.3, 0.4], top=top).top) == listed


def test_of_equals_the_first_label_goes_before() -> None:
    assert [one.label for one in body([0.25] * 4, top=4).top] == list(LABELS)
    assert [one.label for one in body([0, 9, 9, 1], "uint8", scores="uint8").top] == ["beech", "oak", "yew"]


def test_softmax_of_logits() -> None:
    logits = np.asarray([1.0, 3.0, -2.0, 0.5])
    shares = np.exp(logits) / np.exp(logits).sum()
    found = body(logits, scores="softmax", top=4)
    assert [one.score for one in found.top] == pytest.approx(sorted(shares, reverse=True), abs=1e-6)


@pytest.mark.parametrize(
    "logits", [[1000.0, 0.0, -1000.0, 0.0], [3.4e38, -3.4e38, 0.0, 3.0], [-1e30, -1e30, -1e30, -1e30], [0.0] * 4]
)
def test_softmax_of_large_logits_does_not_overflow(logits: list[float]) -> None:
    found = body(logits, scores="softmax", top=4)
    assert sum(one.score for one in found.top) == pytest.approx(1, abs=1e-5)


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=4, max_size=4))
def test_softmax_gives_shares_of_one_in_the_order_of_the_logits(logits: list[float]) -> None:
    found = body(logits, scores="softmax", top=4)
    assert sum(one.score for one in found.top) == pytest.approx(1, abs=1e-5)
    assert all(0 <= one.score <= 1 for one in found.top)
    assert logits[LABELS.index(found.label)] == pytest.approx(max(logits), abs=1e-4)


def test_quantised_scores_are_shares_of_255() -> None:
    found = body([0, 51, 255, 102], "uint8", scores="uint8")
    assert [(one.label, one.score) for one in found.top] == [("oak", 1.0), ("yew", 0.4), ("beech", 0.2)]


@pytest.mark.parametrize("scores", ["softmax", "probabilities"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_numbers_are_rejected(scores: str, wrong: float) -> None:
    with pytest.raises(Rejected, match="not numbers"):
        body([0.1, wrong, 0.2, 0.3], scores=scores)


@pytest.mark.parametrize("count", [4, 100])
@pytest.mark.parametrize("wrong", [7.3, -2.0, 1e30])
def test_shares_that_are_none_are_rejected(count: int, wrong: float) -> None:
    labels = tuple(f"label {at}" for at in range(count))
    for output in ([wrong, *[0.0] * (count - 1)], [*[0.0] * (count - 1), wrong]):
        with pytest.raises(Rejected, match=r"they are shares of one.*task\.scores: softmax"):
            task(output, labels=labels, scores="probabilities")[0](FRAME)
    assert isinstance(task([1.0005, *[0.0] * (count - 1)], labels=labels)[0](FRAME).body, ClassificationBody)


def test_scores_are_rounded_to_a_millionth_and_can_be_encoded() -> None:
    found = body([1 / 3, 1 / 7, 1 / 9, 0.4])
    assert found.top[1].score == 0.333333
    assert msgspec.json.decode(msgspec.json.encode(found))["top"][0] == {"label": "yew", "score": 0.4}


@pytest.mark.parametrize("count", [4, 100])
@pytest.mark.parametrize("scores", ["softmax", "probabilities", "uint8"])
def test_results_of_few_classes_and_of_many_can_be_encoded(count: int, scores: str) -> None:
    """NumPy's own numbers cannot."""
    labels = tuple(f"label {at}" for at in range(count))
    decision = DecisionConfig(threshold=0.5, events=EventsConfig(min_s=0.0))
    output = np.arange(count) % 7 / (6 if scores == "probabilities" else 1)
    what, _ = task(output, labels=labels, scores=scores, decision=decision)
    result = what(FRAME)
    found = msgspec.json.decode(msgspec.json.encode([result.body, *result.messages]))
    assert found[0]["label"] == f"label {6 if count > 6 else 3}"
    assert isinstance(found[0]["decided"], bool)


def test_the_time_of_each_step_is_told_in_milliseconds() -> None:
    found = task([1, 0, 0, 0])[0](FRAME)
    assert (found.preprocess_ms, found.postprocess_ms) == (0, 0)
    assert found.infer_ms == pytest.approx(3)


def test_the_model_gets_the_preprocessed_tensor_by_its_name() -> None:
    what, model = task([1, 0, 0, 0])
    what(Frame(np.full((16, 16), 7, np.uint8), 0.0, "camera", 0))
    assert list(model.feeds) == ["image"]
    assert model.feeds["image"].shape == (1, 3, 8, 8)
    assert (model.feeds["image"] == 7).all()


def test_a_frame_that_cannot_be_used_is_rejected_before_the_model_is_asked() -> None:
    what, model = task([1, 0, 0, 0])
    with pytest.raises(Rejected):
        what(Frame(np.zeros((0, 0, 3), np.uint8), 0.0, "camera", 0))
    assert model.feeds == {}


def test_a_real_model_classifies_as_its_golden_vectors_say(tmp_path: Path) -> None:
    package = open_package(tiny.classifier(tmp_path))
    opened = open_model(package, "onnx")
    what = open_task(package, opened.model, ManualClock())
    image = np.random.default_rng(5).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    found = what(Frame(image, 0.0, "camera", 0))
    assert found is not None
    assert isinstance(found.body, ClassificationBody)
    tensor = (image[:, :, ::-1].astype(np.float32) / 255).transpose(2, 0, 1)[None]
    logits = opened.model.run({"image": tensor})["scores"][0]
    assert found.body.label == tiny.LABELS[int(logits.argmax())]
    assert found.body.score == pytest.approx(np.exp(logits.max()) / np.exp(logits).sum(), abs=1e-5)
    opened.model.close()
    with pytest.raises(Permanent, match="closed"):
        what(FRAME)


@given(
    st.integers(1, 200).flatmap(lambda n: st.lists(st.floats(-50, 50, width=32), min_size=n, max_size=n)),
    st.sampled_from(["softmax", "probabilities"]),
    st.integers(1, 5),
    st.sampled_from([1.0, 0.5, 3.0]),
)
@example([0.0, 1.1754943508222875e-38], "softmax", 1, 1.0)  # apart, but not by their shares
def test_few_classes_and_many_are_counted_alike(values: list[float], scores: Any, top: int, temperature: float) -> None:
    output = np.asarray(values, np.float32)
    top = min(top, len(values))
    found = best_classes(output, top)
    padded = np.concatenate([output, np.full(100, -np.float32(1e30))])  # enough to be many, and never the best
    assert found == best_classes(padded, top) == sorted(range(len(values)), key=lambda at: (-output[at], at))[:top]
    if scores == "softmax":
        shares = class_shares(output, scores, temperature)
        assert np.asarray(shares) == pytest.approx(np.asarray(class_shares(padded, scores, temperature))[: len(values)])


@pytest.mark.parametrize("count", [3, 300])
def test_quantised_shares_are_of_255(count: int) -> None:
    output = np.zeros(count, np.uint8)
    output[1], output[2] = 255, 51
    assert best_classes(output, 2) == [1, 2]
    shares = class_shares(output, "uint8")
    assert (shares[1], shares[2]) == pytest.approx((1.0, 0.2))


@pytest.mark.parametrize("count", [5, 500])
@pytest.mark.parametrize("scores", ["softmax", "probabilities", "uint8"])
def test_a_temperature_divides_logits_or_the_logarithms_of_shares(count: int, scores: Any) -> None:
    logits = np.random.default_rng(3).normal(0, 2, count)
    wanted = np.exp(logits / 2.5) / np.exp(logits / 2.5).sum()
    shares = np.exp(logits) / np.exp(logits).sum()
    output = {"softmax": logits, "probabilities": shares, "uint8": np.rint(shares * 255).astype(np.uint8)}[scores]
    found = np.asarray(class_shares(output, scores, 2.5))
    assert found.sum() == pytest.approx(1)
    if scores != "uint8":
        assert found == pytest.approx(wanted)
    assert best_classes(output, 3) == np.argsort(-found, kind="stable")[:3].tolist()


def test_a_share_of_zero_stays_next_to_nothing_at_any_temperature() -> None:
    shares = class_shares(np.asarray([1.0, 0.0, 0.0]), "probabilities", 2.0)
    assert shares == pytest.approx([1, 0, 0], abs=1e-5)
    assert class_shares(np.zeros(3), "probabilities", 2.0) == pytest.approx([1 / 3] * 3)


def test_the_manifest_s_temperature_is_used() -> None:
    cool, warm = body([0.0, 2.0, 0, 0], scores="softmax"), body([0.0, 2.0, 0, 0], scores="softmax", temperature=2.0)
    assert cool.label == warm.label
    assert warm.score == pytest.approx(math.e / (math.e + 3), abs=1e-6)
    assert warm.score < cool.score


@pytest.mark.parametrize(("threshold", "decided"), [(None, True), (0.59, True), (0.6, True), (0.601, False)])
def test_below_its_threshold_a_pipeline_does_not_decide_and_keeps_the_scores(
    threshold: float | None, decided: bool
) -> None:
    found = body([0.1, 0.6, 0.05, 0.25], decision=DecisionConfig(threshold=threshold))
    assert found.decided is decided
    assert (found.label, found.score, len(found.top)) == ("beech", 0.6, 3)


def test_a_pipeline_s_top_goes_before_the_manifest_s() -> None:
    assert len(body([0.1, 0.2, 0.3, 0.4], top=3, decision=DecisionConfig(top=2)).top) == 2


def test_a_set_of_labels_is_made_from_the_model_s_calibration(tmp_path: Path) -> None:
    # Of 9 scores, a coverage of 0.5 takes the 5th: labels with a share of 0.25 or more belong to the set.
    write_scores(tmp_path / "calibration.scores", np.asarray([0.1, 0.2, 0.3, 0.5, 0.75, 0.8, 0.9, 0.95, 1.0]), "lac")
    what: Any = {"calibration": "calibration.scores", "folder": tmp_path, "decision": DecisionConfig(coverage=0.5)}
    assert body([0.1, 0.5, 0.1, 0.3], **what).set == ["beech", "yew"]
    assert body([0.24, 0.26, 0.25, 0.25], **what).set == ["beech", "oak", "yew"]
    assert body([0.24, 0.24, 0.24, 0.2], **what).set == ["ash"]  # the best one always belongs to it
    del what["decision"]
    assert body([0.1, 0.5, 0.1, 0.3], **what).set is msgspec.UNSET


@pytest.mark.parametrize("smoothing", ["ewma", "majority"])
def test_a_steady_label_is_an_event_until_the_task_ends(smoothing: Any) -> None:
    how = EventsConfig(smoothing=smoothing, span_s=1.0, min_s=0.5)
    what, model = task([0.0, 0.9, 0.1, 0.0], decision=DecisionConfig(threshold=0.5, events=how))
    told: list[Any] = []
    for at in range(3):
        result = what(Frame(FRAME.image, at * 0.25, "camera", at))
        assert isinstance(result.body, ClassificationBody)
        told.append((result.body.steady, [(one.phase, one.label, one.count) for one in events(result)]))
    assert told == [(None, []), (None, []), ("beech", [("new", "beech", 3)])]
    model.output = np.asarray([[0.3, 0.3, 0.4, 0.0]], np.float32)  # decides nothing
    result = what(Frame(FRAME.image, 2.0, "camera", 3))
    if smoothing == "majority":
        assert [(one.phase, one.label) for one in events(result)] == [("end", "beech")]
        assert what.end() == ()
    else:
        (end,) = what.end()
        assert isinstance(end, EventBody)
        assert (end.phase, end.label, end.until, end.count) == ("end", "beech", "1970-01-01T00:00:02.000Z", 4)
    assert what.end() == ()


def test_without_events_nothing_is_steady() -> None:
    found = task([1, 0, 0, 0])[0](FRAME)
    assert isinstance(found.body, ClassificationBody)
    assert (found.body.steady, found.messages) == (msgspec.UNSET, ())


def test_sets_need_a_calibration_that_is_large_enough(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="has no calibration"):
        body([1, 0, 0, 0], decision=DecisionConfig(coverage=0.9))
    write_scores(tmp_path / "calibration.scores", np.linspace(0, 1, 8), "lac")
    with pytest.raises(Rejected, match="takes at least 9 calibration images, and the model has 8"):
        body([1, 0, 0, 0], calibration="calibration.scores", folder=tmp_path, decision=DecisionConfig(coverage=0.9))
