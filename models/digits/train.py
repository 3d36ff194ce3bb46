"""Train `digits`: which handwritten digit a camera sees.

The pictures are rendered from scikit-learn's handwritten digits by the simulator's renderer, and go through the
device's own preprocessing. No digit that is trained on, in whatever rendering, is held out or the other way about.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HOME = Path(__file__).resolve().parent
sys.path.insert(0, str(HOME.parent))  # `models/` is no package; `training` lies in it

import training  # noqa: E402 - found by the line above

from lisiere.calibration.calibrate import calibrate, fit  # noqa: E402
from lisiere.models import Manifest, Package, TensorSpec  # noqa: E402
from lisiere.models.manifest import Classification, Data, ImageInput  # noqa: E402
from lisiere.tasks.preprocess import ImagePreprocess  # noqa: E402
from lisiere_sim.digits import GLYPH_MAX, render  # noqa: E402

SEED = 20_260_131
HELD_OUT = 0.25
RENDERINGS = 24  # for each training digit, each of another variation of it
HELD_OUT_RENDERINGS = 4
TOLERANCE = 0.005

Glyphs = NDArray[np.uint8]
Labels = NDArray[np.int64]

MANIFEST = Manifest(
    schema="lisiere.model/1",
    name="digits",
    version="1.0.0",
    description="Which handwritten digit, 0 to 9, the camera sees: a small convolutional network of about 1.3 M MACs.",
    licence="Apache-2.0",
    inputs=(TensorSpec(name="input", shape=(1, 1, 32, 32)),),
    outputs=(TensorSpec(name="logits", shape=(1, 10)),),
    input=ImageInput(fit="crop", interpolation="area", colour="gray", mean=(127.5,), scale=(1 / 64,)),
    task=Classification(labels="labels.txt", scores="softmax"),
    files={},
    onnx="model.onnx",
    data=Data(
        name="Optical Recognition of Handwritten Digits (test part, as shipped with scikit-learn)",
        licence="CC BY 4.0",
        source="https://archive.ics.uci.edu/dataset/80 (E. Alpaydin, C. Kaynak, 1998)",
        note="The handwriting is real; the frames are rendered from it, so paper, light and camera are synthetic.",
    ),
)


def split(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the original digits to train on and to hold out: a quarter of each class is held out."""
    rng = np.random.default_rng(SEED)
    held = []
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        held.append(indices[: round(len(indices) * HELD_OUT)])
    held_out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def load() -> tuple[Glyphs, Labels]:
    """Return all of scikit-learn's digits: uint8 [n, 8, 8] in 0 … 16, and their labels [n]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def tensors(glyphs: Glyphs, renderings: int, seed: int) -> training.Array:
    """Render every glyph `renderings` times and preprocess as the device does: float32 [n * renderings, 1, 1, 32, 32].

    All glyphs come once before any comes again.
    """
    rng = np.random.default_rng(seed)
    preprocess = ImagePreprocess(MANIFEST.input, MANIFEST.inputs[0])  # type: ignore[arg-type]
    return np.stack([preprocess(render(glyph, rng)) for _ in range(renderings) for glyph in glyphs])


def vary(glyphs: Glyphs, labels: Labels, rng: np.random.Generator) -> Glyphs:
    """Return as many digits that could have been written, made from training digits: uint8, [n, 8, 8].

    Each lies between a digit and one of the five nearest of its class, and is then bent a little.
    Sources: Chawla et al., SMOTE, 2002; Simard et al., Best Practices for Convolutional Neural Networks, 2003.
    """
    import cv2

    flat = glyphs.reshape(len(glyphs), -1).astype(np.float32)
    side = 80  # the glyph with a margin of one, eightfold
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    made = np.empty_like(glyphs)
    for index, (glyph, label) in enumerate(zip(flat, labels, strict=True)):
        peers = np.flatnonzero(labels == label)
        near = peers[np.argsort(((flat[peers] - glyph) ** 2).sum(1))[1:6]]
        between = glyph + (flat[rng.choice(near)] - glyph) * np.float32(rng.uniform(0, 0.7))
        large = cv2.resize(np.pad(between.reshape(8, 8), 1), (side, side), interpolation=cv2.INTER_CUBIC)
        down, across = (
            cv2.resize(rng.normal(0, 3, (3, 3)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
            for _ in range(2)
        )
        bent = cv2.remap(large, columns + across, rows + down, cv2.INTER_LINEAR)
        small = cv2.resize(bent, (10, 10), interpolation=cv2.INTER_AREA)[1:9, 1:9]
        made[index] = np.clip(np.rint(small), 0, GLYPH_MAX).astype(np.uint8)
    return made


def initial(rng: np.random.Generator) -> training.Params:
    """Draw the weights: a plain convolution, two depthwise-separable ones, a plain one, and the classes."""
    params: dict[str, Any] = {
        "first": training.dense(rng, 16, 1, 3, 3),
        "depth1": training.dense(rng, 16, 1, 3, 3),
        "point1": training.dense(rng, 32, 16, 1, 1),
        "middle": training.dense(rng, 48, 32, 3, 3),
        "depth2": training.dense(rng, 48, 1, 3, 3),
        "point2": training.dense(rng, 64, 48, 1, 1),
        "classes": training.dense(rng, 64, 10),
    }
    width = {"classes": 10} | {name: len(weight) for name, weight in params.items() if weight.ndim == 4}
    return params | {f"{name}_bias": np.zeros(size, np.float32) for name, size in width.items()}


def network(params: training.Params, x: Any) -> Any:
    """The same network as `export` writes, in JAX: [n, 1, 32, 32] to logits [n, 10].

    Convolutions are written as sums and products over shifted pictures, channels last: XLA's own, and their
    gradients, take twice as long on a CPU.
    """
    import jax
    from jax import numpy as jnp

    def shifts(x: Any) -> list[Any]:
        rows, columns = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]

    def finish(y: Any, name: str) -> Any:
        return jax.nn.relu(y + params[f"{name}_bias"])

    def plain(x: Any, name: str) -> Any:
        weight = params[name].transpose(2, 3, 1, 0)
        return finish(jnp.concatenate(shifts(x), -1) @ weight.reshape(-1, weight.shape[3]), name)

    def pointwise(x: Any, name: str) -> Any:
        return finish(x @ params[name][:, :, 0, 0].T, name)

    def depthwise(x: Any, name: str) -> Any:
        taps = params[name].reshape(-1, 9).T
        return finish(sum(part * tap for part, tap in zip(shifts(x), taps, strict=True)), name)

    def pool(x: Any) -> Any:
        rows = jnp.maximum(x[:, ::2], x[:, 1::2])
        return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])

    x = pool(plain(x.transpose(0, 2, 3, 1), "first"))
    x = pool(pointwise(depthwise(x, "depth1"), "point1"))
    x = pool(plain(x, "middle"))
    x = pointwise(depthwise(x, "depth2"), "point2")
    return x.mean((1, 2)) @ params["classes"] + params["classes_bias"]


def export(params: training.Params, file: Path) -> None:
    """Write the trained network as ONNX."""
    graph = training.OnnxGraph("digits", MANIFEST.inputs[0].shape)

    def conv(x: str, name: str) -> str:
        weight = params[name]
        size = weight.shape[2]
        group = len(weight) if name.startswith("depth") else 1
        y = graph.add(
            "Conv", x, weight, params[f"{name}_bias"], kernel_shape=[size, size], pads=[size // 2] * 4, group=group
        )
        return graph.add("Relu", y)

    def pool(x: str) -> str:
        return graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])

    x = pool(conv("input", "first"))
    x = pool(conv(conv(x, "depth1"), "point1"))
    x = pool(conv(x, "middle"))
    x = conv(conv(x, "depth2"), "point2")
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x), axis=1)
    x = graph.add("Gemm", x, params["classes"], params["classes_bias"])
    graph.save(file, x, "logits", MANIFEST.outputs[0].shape)


def measure(folder: Path, manifest: Manifest) -> training.Figures:
    """Measure the folder's model on renderings of its held-out digits, and what calibrates it, if that was done."""
    with np.load(folder / "heldout.npz") as held:
        glyphs, labels = held["glyphs"], held["labels"]
    logits = training.predict(folder / "model.onnx", tensors(glyphs, HELD_OUT_RENDERINGS, SEED + 1))
    right = (logits[:, 0].argmax(1) == np.tile(labels, HELD_OUT_RENDERINGS)).reshape(-1, len(labels))
    by_class = [float(right[:, labels == label].mean()) for label in range(10)]
    figures = {
        "held_out": {
            "accuracy": round(float(right.mean()), 4),
            "accuracy_worst_class": round(min(by_class), 4),
            "digits": len(glyphs),
            "frames": right.size,
        }
    }
    assert isinstance(manifest.task, Classification)  # noqa: S101 - as above
    if manifest.task.calibration is not None:
        figures["calibration"] = fit(*calibration_set(folder), "softmax", "lac").figures
    return figures


def calibration_set(folder: Path) -> tuple[training.Array, Labels]:
    """Return the logits of every other held-out digit, [n, 10], and their labels: each once, in one rendering.

    Several renderings of one digit would be alike, and sets of labels promise nothing where that is so. The digits in
    between are left for measuring what the promise is worth.
    """
    with np.load(folder / "heldout.npz") as held:
        glyphs, labels = held["glyphs"][::2], held["labels"][::2].astype(np.int64)
    return training.predict(folder / "model.onnx", tensors(glyphs, 1, SEED + 4))[:, 0], labels


def train(folder: Path, quick: bool) -> Package:
    """Train, and write the package into `folder`."""
    import jax
    import optax

    glyphs, labels = load()
    chosen, held = split(labels)
    np.savez_compressed(
        folder / "heldout.npz", glyphs=glyphs[held], labels=labels[held].astype(np.uint8), index=held.astype(np.uint16)
    )
    (folder / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)), encoding="utf-8")
    chosen, renderings = (chosen[::4], 1) if quick else (chosen, RENDERINGS)
    rng = np.random.default_rng(SEED)
    varied = [vary(glyphs[chosen], labels[chosen], rng) for _ in range(renderings)]
    x = tensors(np.concatenate(varied), 1, SEED + 2)[:, 0]
    y = np.tile(labels[chosen], renderings)

    def loss(params: training.Params, x: Any, y: Any) -> Any:
        # A little smoothing keeps the scores honest about what is seen for the first time.
        wanted = optax.smooth_labels(jax.nn.one_hot(y, 10), 0.05)
        return optax.softmax_cross_entropy(network(params, x), wanted).mean()

    params = training.fit(
        loss,
        initial(rng),
        (x, y),
        epochs=1 if quick else 16,
        batch=128,
        rate=8e-3,
        decay=0.1,
        seed=SEED,
    )
    export(params, folder / "model.onnx")
    golden = tensors(glyphs[held[:8]], 1, SEED + 3)
    package = training.seal(folder, MANIFEST, golden, measure, rtol=1e-4, atol=1e-4)
    # What was trained for a moment knows nothing that a temperature could put right.
    return package if quick else calibrate(folder, *calibration_set(folder))


if __name__ == "__main__":
    sys.exit(training.main(__doc__ or "", HOME, train, measure, TOLERANCE))
