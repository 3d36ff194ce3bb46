"""What the three `train.py` share: the fit, the ONNX graph, the sealing of a package, and the check of its figures.

Not part of the distribution. JAX is imported only where something is trained, so that a package can be checked with
ONNX Runtime alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lisiere.models import Manifest, Package, open_package, write_manifest
from lisiere.models.manifest import Golden
from lisiere_sim.training.onnx_graph import OnnxGraph, predict

__all__ = ["OnnxGraph", "check", "dense", "fit", "main", "predict", "seal"]

Array = NDArray[np.float32]
Params = dict[str, Any]
Figures = dict[str, Any]

EXIT_CHECK_FAILED = 3


def dense(rng: np.random.Generator, *shape: int) -> Array:
    """Draw the weights of a layer that a ReLU follows: float32, [inputs, outputs] or [outputs, inputs, rows, columns].

    Source: He et al., Delving Deep into Rectifiers, 2015, equation 10.
    """
    fan_in = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
    weights: Array = (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
    return weights


def fit(
    loss: Callable[..., Any],
    params: Params,
    arrays: tuple[NDArray[Any], ...],
    *,
    epochs: int,
    batch: int,
    rate: float,
    decay: float = 0.0,
    seed: int = 0,
) -> Params:
    """Minimise `loss(params, *batch)` by AdamW with a one-cycle learning rate; return the trained params.

    Args:
        loss: the mean loss of a batch, in JAX.
        params: arrays by name, where it starts from.
        arrays: what batches are taken from, all with the same number of rows. A last short batch is left out.
        epochs: times that every row is seen.
        batch: rows a step.
        rate: the highest learning rate.
        decay: weight decay.
        seed: of the order of the rows.

    Sources: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019; Smith and Topin, Super-Convergence,
    2018 (the learning rate).
    """
    import jax
    import optax

    rows = len(arrays[0])
    batch = min(batch, rows)
    steps = epochs * (rows // batch)
    optimiser = optax.adamw(optax.cosine_onecycle_schedule(steps, rate, pct_start=0.2), weight_decay=decay)

    @jax.jit  # type: ignore[untyped-decorator, unused-ignore]
    def step(params: Params, state: Any, parts: tuple[Any, ...]) -> tuple[Params, Any]:
        gradients = jax.grad(loss)(params, *parts)
        updates, state = optimiser.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(seed)
    state = optimiser.init(params)
    for _ in range(epochs):
        order = rng.permutation(rows)
        for start in range(0, rows - batch + 1, batch):
            chosen = order[start : start + batch]
            params, state = step(params, state, tuple(array[chosen] for array in arrays))
    return {name: np.asarray(value) for name, value in params.items()}


def seal(
    folder: Path,
    manifest: Manifest,
    golden: Array,
    measure: Callable[[Path, Manifest], Figures],
    rtol: float,
    atol: float,
) -> Package:
    """Finish a package: golden vectors, the compile job, the measured figures and the manifest; return it opened.

    Args:
        folder: holds what the manifest refers to, but for the golden vectors.
        manifest: without `files`, `golden` and `figures`.
        golden: inputs [cases, *shape] for the golden vectors.
        measure: gives the figures from the folder.
        rtol: how exact another backend must be, relative to the golden output.
        atol: the same, absolute; the two add up.
    """
    assert manifest.onnx is not None  # noqa: S101 - these packages are ONNX packages
    spec = manifest.inputs[0]
    vectors: dict[str, Any] = {
        f"inputs/{spec.name}": golden,
        f"outputs/{manifest.outputs[0].name}": predict(folder / manifest.onnx, golden),
    }
    np.savez_compressed(folder / "golden.npz", **vectors)
    job = {
        "CompilationJobName": f"lisiere-{manifest.name}",
        # A placeholder: a compilation in the cloud needs the account's own role.
        "RoleArn": "arn:aws:iam::000000000000:role/lisiere-compile",
        "InputConfig": {
            "S3Uri": ".",
            "DataInputConfig": json.dumps({spec.name: list(spec.shape)}),
            "Framework": "ONNX",
        },
        "OutputConfig": {"S3OutputLocation": "../../build/models", "TargetDevice": "native"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 900},
    }
    (folder / "job.json").write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
    complete = msgspec.structs.replace(
        manifest,
        golden=Golden(file="golden.npz", rtol=rtol, atol=atol),
        figures=measure(folder, manifest),
    )
    write_manifest(complete, folder / "model.yaml")
    return open_package(folder)


def differences(stated: Mapping[str, Any], measured: Mapping[str, Any], tolerance: float, where: str = "") -> list[str]:
    """List the figures that do not hold, a sentence each.

    A float holds when it is within `tolerance` of the stated one, as an absolute or a relative difference, whichever
    is the more lenient: libraries and processors round differently. All else must be equal.
    """
    if stated.keys() != measured.keys():
        return [f"figures{where} has {sorted(stated)}, but {sorted(measured)} was measured."]
    found = []
    for name, value in stated.items():
        path, now = f"{where}.{name}", measured[name]
        if isinstance(value, Mapping):
            found += differences(value, now, tolerance, path)
        elif isinstance(value, float) and isinstance(now, float):
            if abs(value - now) > tolerance * max(1.0, abs(value)):
                found.append(f"figures{path} is {value}, but {now} was measured.")
        elif value != now:
            found.append(f"figures{path} is {value!r}, but {now!r} was measured.")
    return found


def check(folder: Path, measure: Callable[[Path, Manifest], Figures], tolerance: float) -> list[str]:
    """Measure a package again and list the figures of its manifest that do not hold."""
    manifest = open_package(folder).manifest
    return differences(manifest.figures, measure(folder, manifest), tolerance)


def main(
    description: str,
    home: Path,
    train: Callable[[Path, bool], Package],
    measure: Callable[[Path, Manifest], Figures],
    tolerance: float,
) -> int:
    """Be the command line of a `train.py`; return its exit code: 0 done, 2 usage, 3 a figure does not hold."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--output", type=Path, default=home, help="folder to write or check (default: this one)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="train very briefly, for tests; needs --output")
    mode.add_argument("--check", action="store_true", help="measure the ONNX file again and compare with model.yaml")
    options = parser.parse_args()
    if options.check:
        wrong = check(options.output, measure, tolerance)
        sys.stdout.write("\n".join(wrong or ["The figures hold."]) + "\n")
        return EXIT_CHECK_FAILED if wrong else 0
    if options.quick and options.output == home:
        parser.error("--quick would overwrite the trained model: name another folder by --output.")
    options.output.mkdir(parents=True, exist_ok=True)
    package = train(options.output, options.quick)
    sys.stdout.write(json.dumps(package.manifest.figures, indent=2) + "\n")
    return 0
