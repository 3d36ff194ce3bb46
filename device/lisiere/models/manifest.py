"""The manifest of a model folder, schema `lisiere.model/1`.

One schema serves both forms of a model: `model.yaml` in a package as authored (an ONNX file), and `manifest.yaml`
in a compiled artifact (a Neo artifact, and usually the ONNX file too). It says what the tensors are, how
an input becomes a tensor, what the outputs mean, and the SHA-256 of every file, so that its own digest
stands for the whole model.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from lisiere.models.encoding import Covariates, Normalise

SCHEMA: Final = "lisiere.model/1"

# `$(?!\n)` is the very end, in Python and in JSON Schema: `$` alone lets a last newline pass.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$(?!\n)")]
# A bare file name: no folder, no parent, nothing hidden.
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$(?!\n)")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Dtype = Literal["float32", "float64", "int8", "uint8", "int32", "int64"]


class _Part(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What all parts share: unknown keys are errors. Type checkers want the rest said at each class."""


class TensorSpec(_Part, frozen=True, kw_only=True):
    """One input or output tensor: its name in the graph, its static shape and its dtype."""

    name: str
    shape: tuple[Count, ...]
    dtype: Dtype = "float32"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class ImageInput(_Part, tag="image", frozen=True, kw_only=True):
    """How a frame becomes the input tensor: fit, colour, then `(pixel - mean) * scale`, then layout and dtype.

    Attributes:
        fit: `stretch` to the size; `crop` the centre after scaling the shorter side; `letterbox` with `fill`.
        mean, scale: one number for all channels or one a channel, in the order of `colour`.
        interpolation: of the resize; `area` is the best when shrinking.
    """

    fit: Literal["stretch", "crop", "letterbox"] = "stretch"
    interpolation: Literal["area", "linear", "nearest"] = "area"
    colour: Literal["rgb", "bgr", "gray"] = "rgb"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    fill: Annotated[int, Meta(ge=0, le=255)] = 0


class WindowInput(_Part, tag="window", frozen=True, kw_only=True):
    """How readings become the input tensor: `length` rows on a grid of `step_s` seconds, one column a channel.

    Attributes:
        stride: a window is made every `stride` rows.
        max_gap: gaps of at most this many rows are interpolated; longer ones make the window incomplete.
        normalise: what the model sees of raw readings; None: the readings themselves.
        covariates: what its second input is, if it has one.
    """

    channels: Annotated[tuple[Name, ...], Meta(min_length=1)]
    length: Annotated[int, Meta(ge=2, le=1_000_000)]
    step_s: Positive
    stride: Count = 1
    max_gap: Annotated[int, Meta(ge=0)] = 0
    normalise: Normalise | None = None
    covariates: Covariates | None = None


class Classification(_Part, tag="classification", frozen=True, kw_only=True):
    """Output: scores by class. `labels` names the file with one label a line.

    Attributes:
        scores: `softmax` when the model gives logits, `probabilities` when it gives shares of one, and
            `uint8` when it gives quantised shares of 255.
        top: how many labels a result lists.
        temperature: what logits, or the logarithms of shares, are divided by, so that the scores are as sure as the
            model is right. 1 leaves them as they are. `lisiere models calibrate` finds it.
        calibration: the file that sets of labels are made from, by the same command.
    """

    labels: FileName
    scores: Literal["softmax", "probabilities", "uint8"] = "probabilities"
    top: Count = 3
    temperature: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    calibration: FileName | None = None


Order = Literal["xyxy", "yxyx", "cxcywh"]
Unit = Literal["fraction", "pixel"]


class SsdHead(_Part, tag="ssd", frozen=True, kw_only=True):
    """Outputs of a model that decodes and suppresses by itself, as TFLite's SSD does: the names of four outputs.

    Attributes:
        boxes: [1, N, 4].
        classes: [1, N], whole numbers, of which `first_class` is the first label.
        scores: [1, N], in 0 … 1.
        count: [1], how many of the N hold something; all, unless there is such an output.
        order: of a box: `yxyx` is top, left, bottom, right; `cxcywh` the centre and the size.
        unit: fractions of the model's input, or its pixels.
    """

    boxes: str
    classes: str
    scores: str
    count: str | None = None
    first_class: Annotated[int, Meta(ge=0, le=1000)] = 0
    order: Order = "yxyx"
    unit: Unit = "fraction"


class SsdRawHead(_Part, tag="ssd_raw", frozen=True, kw_only=True):
    """Outputs of an SSD before decoding: offsets from prior boxes, and scores by class.

    Attributes:
        boxes: the output [1, N, 4]: offsets of centre and size in the order of `order`, divided by `variances`.
        scores: the output [1, N, C], where C is the number of labels, and one more where there is a `background`.
        priors: a file of N lines `cx,cy,width,height`, in fractions of the model's input.
        variances: of the centre and of the size, as in training; Liu et al., SSD, 2016.
        order: `cxcywh`, or `cycxhw` as TensorFlow has it.
        activation: what makes the scores shares of one.
        background: the index of the class that is none, if there is one.
    """

    boxes: str
    scores: str
    priors: FileName
    variances: tuple[Positive, Positive] = (0.1, 0.2)
    order: Literal["cxcywh", "cycxhw"] = "cxcywh"
    activation: Literal["none", "sigmoid", "softmax"] = "softmax"
    background: Annotated[int, Meta(ge=0)] | None = 0


class YoloHead(_Part, tag="yolo", frozen=True, kw_only=True):
    """One output of boxes with scores: centre, size, objectness where there is one, and a score a class.

    Attributes:
        output: its name.
        layout: `rows` is [1, N, 5 + C], as YOLOv5 has it; `columns` is [1, 4 + C, N], as YOLOv8 has it.
        objectness: whether each box has a score of its own, by which those of its classes are multiplied.
        activation: what makes the scores shares of one; exported models have done it.
        unit: fractions of the model's input, or its pixels.
    """

    output: str
    layout: Literal["rows", "columns"]
    objectness: bool
    activation: Literal["none", "sigmoid"] = "none"
    unit: Unit = "pixel"


class Detection(_Part, tag="detection", frozen=True, kw_only=True):
    """Outputs: boxes with a class and a score each. `labels` names the file with one label a line.

    Attributes:
        head: the form in which the model gives them.
        score_threshold: what has a lower score is none.
        iou_threshold: of two boxes that overlap by more (intersection over union) only the better one is kept. An `ssd`
            head has done so already, and is left as it is unless this is given.
        suppress: whether boxes of one class alone suppress each other, or those of all.
        top: how many objects a result lists at most.
        candidates: how many boxes are looked at, the best ones.
    """

    labels: FileName
    head: SsdHead | SsdRawHead | YoloHead
    score_threshold: Annotated[float, Meta(gt=0, le=1)] = 0.3
    iou_threshold: Annotated[float, Meta(gt=0, le=1)] | None = None
    suppress: Literal["class", "all"] = "class"
    top: Annotated[int, Meta(ge=1, le=1000)] = 100
    candidates: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class Forecasting(_Part, tag="forecasting", frozen=True, kw_only=True):
    """Output: [1, horizon, channels, quantiles], in the units of the window's channels or as `normalise` has them.

    Of one channel, or of one quantile, the axis may be left out. Exactly one of `channel` and `channels` is given: what
    is forecast. A model without quantiles has one, 0.5.
    """

    horizon: Count
    quantiles: Annotated[tuple[Annotated[float, Meta(gt=0, lt=1)], ...], Meta(min_length=1)]
    channel: Name | None = None
    channels: tuple[Name, ...] = ()
    unit: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The channels that are forecast, in the order of the output."""
        return self.channels or ((self.channel,) if self.channel else ())


class Anomaly(_Part, tag="anomaly", frozen=True, kw_only=True):
    """Output: a score ([1] or [1, 1]), or a `reconstruction` of the input whose mean squared error is the score.

    Or a `residual`: the output is a forecast of the rows that follow, [rows, channels] in the channels' units, and
    the score its mean squared error once they have come; until then there is no score.

    A window is anomalous when its score exceeds `threshold`.
    """

    threshold: float
    output: Literal["score", "reconstruction", "residual"] = "score"


class FileEntry(_Part, frozen=True, kw_only=True):
    """What a file of the folder must be."""

    sha256: Sha256
    bytes: Annotated[int, Meta(ge=0)]


class NeoFiles(_Part, frozen=True, kw_only=True):
    """The files of a Neo artifact that the runtime loads, and libdlr's own description of it, if any.

    A graph of tensors has a graph, parameters and a library of kernels; an ensemble of trees is a library alone.
    """

    library: FileName
    graph: FileName | None = None
    params: FileName | None = None
    meta: FileName | None = None


class Golden(_Part, frozen=True, kw_only=True):
    """Golden vectors: an .npz with `inputs/<name>` and `outputs/<name>`, each [cases, *shape]."""

    file: FileName
    rtol: Annotated[float, Meta(ge=0)] = 1e-4
    atol: Annotated[float, Meta(ge=0)] = 1e-5


class Verified(_Part, frozen=True, kw_only=True):
    """How an artifact was checked against its reference before it was kept.

    Attributes:
        by: what ran it: a backend of this runtime on this machine, qemu-user, or nothing.
        reference: what it was compared with, such as onnxruntime.
        cases: how many inputs.
        note: why it was not run, or what was left out.
    """

    by: Literal["dlr", "graph", "qemu-user", "nothing"]
    reference: str = "onnxruntime"
    cases: Annotated[int, Meta(ge=0)] = 0
    note: str = ""


class Build(_Part, frozen=True, kw_only=True):
    """How an artifact was made: for which machine, from which bytes, by which tools, and how it was checked.

    Attributes:
        target: as the job names it, such as rasp4b.
        triple: LLVM's, such as aarch64-linux-gnu.
        arch: as `platform.machine()` says on the target.
        cpu: LLVM's name of the CPU.
        features: the CPU's features that the code may use, in LLVM's names, sorted.
        min_glibc: the oldest glibc that has all that the library asks for; None when it asks for none.
        threads: the most threads that a run uses.
        peak_activation_bytes: the most memory that activations take, inputs and outputs included.
    """

    target: str
    arch: str
    cpu: str
    source_sha256: Sha256
    tools: dict[str, str]
    triple: str = ""
    features: tuple[str, ...] = ()
    min_glibc: str | None = None
    threads: Count = 1
    peak_activation_bytes: Annotated[int, Meta(ge=0)] | None = None
    verified: Verified | None = None


class Data(_Part, frozen=True, kw_only=True):
    """Where the training data come from and under which licence."""

    name: str
    licence: str
    source: str
    note: str = ""


class Manifest(_Part, frozen=True, kw_only=True):
    """A model folder, described. `files` lists every file that may be read, with its digest.

    `input` and `task` go together. A model without them is tensors alone: it can be compiled, verified and measured,
    but no pipeline knows what to feed it.
    """

    schema: Literal["lisiere.model/1"]
    name: Name
    version: Annotated[str, Meta(pattern=r"^\d+\.\d+\.\d+([-+][0-9A-Za-z.-]+)?$(?!\n)")]
    description: str = ""
    licence: str = ""
    inputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1)]
    input: ImageInput | WindowInput | None = None
    task: Classification | Detection | Forecasting | Anomaly | None = None
    files: Annotated[dict[FileName, FileEntry], Meta(min_length=1)]
    onnx: FileName | None = None
    neo: NeoFiles | None = None
    golden: Golden | None = None
    build: Build | None = None
    data: Data | None = None
    figures: dict[str, Any] = msgspec.field(default_factory=dict)

    def roles(self) -> dict[str, str]:
        """Map what the manifest refers to, such as `neo.graph`, to file names."""
        found: dict[str, str] = {}
        if self.onnx:
            found["onnx"] = self.onnx
        if self.neo:
            parts = {part: getattr(self.neo, part) for part in ("graph", "params", "library", "meta")}
            found |= {f"neo.{part}": name for part, name in parts.items() if name}
        if self.golden:
            found["golden.file"] = self.golden.file
        if isinstance(self.task, Classification | Detection):
            found["task.labels"] = self.task.labels
        if isinstance(self.task, Classification) and self.task.calibration:
            found["task.calibration"] = self.task.calibration
        if isinstance(self.task, Detection) and isinstance(self.task.head, SsdRawHead):
            found["task.head.priors"] = self.task.head.priors
        return found
