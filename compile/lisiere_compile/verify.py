"""The gate: an artifact must give what its reference gives before anyone sees it.

The reference is ONNX Runtime; of an ensemble of trees it is the library that made it, by way of the golden vectors.

It runs in a process of its own (`python -m lisiere_compile.verify FOLDER [MODEL.onnx]`), so that compiled code that
crashes takes down neither the compiler nor what it has to clean up.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lisiere.backends import open_backend
from lisiere.backends.dlr import find_library
from lisiere.backends.golden import load_golden
from lisiere.errors import LisiereError, Rejected
from lisiere.models import Manifest, TensorSpec, open_package

RANDOM_CASES = 4
GOLDEN_CASES = 64
TIMEOUT_S = 600
# Of the largest number of the output, or of one: float32 sums in another order differ by far less.
TOLERANCE = 1e-4
Tensors = dict[str, NDArray[Any]]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate found. `backend` is what ran the artifact; `refusal` is empty when it held."""

    backend: str = ""
    cases: int = 0
    max_difference: float = 0.0
    refusal: str = ""


def verify_apart(folder: Path, onnx: Path | None) -> Verdict:
    """Verify an artifact in another process.

    Raises:
        Rejected: the artifact does not give what its reference gives, or crashes.
    """
    command = [sys.executable, "-m", "lisiere_compile.verify", str(folder), *([str(onnx)] if onnx else [])]
    try:
        done = subprocess.run(  # noqa: S603 - this module
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Rejected(f"The compiled model did not finish its check within {TIMEOUT_S} seconds.") from error
    if done.returncode < 0:
        raise Rejected(
            f"The compiled model was ended by {signal.Signals(-done.returncode).name} in its check. When the job names "
            "a CPU, this machine must be able to run its code."
        )
    try:
        verdict = msgspec.json.decode(done.stdout, type=Verdict)
    except msgspec.DecodeError as error:
        last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise Rejected(f"The check of the compiled model failed: {last}.") from error
    if verdict.refusal:
        raise Rejected(verdict.refusal)
    return verdict


def verify(folder: Path, onnx: Path | None) -> Verdict:
    """Run an artifact on random and golden inputs and compare it with ONNX Runtime and the golden outputs.

    Without an ONNX file, the golden vectors are all there is to compare with.

    Raises:
        LisiereError: it cannot be loaded or run.
    """
    package = open_package(folder)
    backend = "dlr" if find_library() is not None else "graph"
    model = open_backend(backend, package)  # type: ignore[arg-type]
    cases, worst = 0, 0.0
    try:
        reference = _reference(onnx) if onnx else None
        golden = load_golden(package)[:GOLDEN_CASES] if package.manifest.golden is not None else []
        feeds: list[tuple[Tensors, Tensors | None]] = list(golden)
        feeds += [(feed, None) for feed in random_inputs(package.manifest.inputs)] if onnx else []
        for feed, expected in feeds:
            found = model.run(feed)
            wanted = run_reference(reference, package.manifest, feed) if reference else expected or {}
            for spec in package.manifest.outputs:
                difference, bound = _compare(found[spec.name], wanted[spec.name])
                worst = max(worst, difference)
                if not difference <= bound:
                    what = "ONNX Runtime" if reference else "the golden vectors"
                    return _refuse(backend, spec, difference, bound, f"from {what}")
                if expected is not None and package.manifest.golden is not None:
                    tolerance = package.manifest.golden
                    if not np.allclose(found[spec.name], expected[spec.name], tolerance.rtol, tolerance.atol, True):
                        difference, _ = _compare(found[spec.name], expected[spec.name])
                        return _refuse(backend, spec, difference, tolerance.atol, "from the golden vectors")
            cases += 1
    finally:
        model.close()
    return Verdict(backend=backend, cases=cases, max_difference=worst)


def random_inputs(specs: tuple[TensorSpec, ...], count: int = RANDOM_CASES) -> list[Tensors]:
    """Return the same inputs on every machine: zeros, numbers from 0 to 1, normal ones; any integers."""
    random = np.random.default_rng(20)
    cases = []
    for case in range(count):
        feed: Tensors = {}
        for spec in specs:
            if spec.dtype.startswith("float"):
                drawn = random.random(spec.shape) if case == 1 else random.normal(size=spec.shape)
                feed[spec.name] = (drawn * (case > 0)).astype(spec.dtype)
            elif spec.dtype in ("int8", "uint8"):
                limits = np.iinfo(spec.dtype)
                feed[spec.name] = random.integers(limits.min, limits.max + 1, spec.shape, spec.dtype)
            else:
                # They may be positions in something: zero and one are the safe ones.
                feed[spec.name] = random.integers(0, 2, spec.shape, spec.dtype)
        cases.append(feed)
    return cases


def _reference(onnx: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its bindings raise classes that they do not export
        first = (str(error).splitlines() or ["it gave no reason"])[0]
        raise Rejected(f"ONNX Runtime refuses {onnx.name}, so there is nothing to compare with: {first}.") from error


def reference_outputs(onnx: Path, manifest: Manifest, feeds: list[Tensors]) -> list[Tensors]:
    """Return what ONNX Runtime gives for each feed.

    Raises:
        Rejected: ONNX Runtime refuses the model or a feed.
    """
    session = _reference(onnx)
    return [run_reference(session, manifest, feed) for feed in feeds]


def run_reference(session: Any, manifest: Manifest, feed: Tensors) -> Tensors:
    """Run one feed; see `reference_outputs`."""
    names = [spec.name for spec in manifest.outputs]
    try:
        values = session.run(names, feed)
    except Exception as error:  # its bindings raise classes that they do not export
        first = (str(error).splitlines() or ["it gave no reason"])[0]
        raise Rejected(f"ONNX Runtime fails on the model with these shapes: {first}.") from error
    return {spec.name: value for spec, value in zip(manifest.outputs, values, strict=True)}


def _compare(found: NDArray[Any], wanted: NDArray[Any]) -> tuple[float, float]:
    """Return the largest difference and how large it may be; NaN where both have NaN is no difference."""
    if found.shape != wanted.shape:
        return float("inf"), 0.0
    if found.dtype.kind != "f":
        difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
        return float(np.max(difference, initial=0.0)), allowed(wanted)
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0.0, np.abs(found.astype(np.float64) - wanted))
    worst = float(np.max(difference, initial=0.0))
    return (worst if not np.isnan(worst) else float("inf")), allowed(wanted)


def allowed(wanted: NDArray[Any]) -> float:
    """Return how far an output may be from what is wanted."""
    if wanted.dtype.kind != "f":
        # A quantised output may round to the neighbour; positions may not.
        return 1.0 if wanted.dtype.itemsize == 1 else 0.0
    finite = np.abs(wanted[np.isfinite(wanted)])
    return TOLERANCE * max(1.0, float(np.max(finite, initial=0.0)))


def _refuse(backend: str, spec: TensorSpec, difference: float, bound: float, what: str) -> Verdict:
    return Verdict(
        backend=backend,
        max_difference=min(difference, sys.float_info.max),
        refusal=f"The compiled model is wrong and was not kept: its output {spec.name!r} differs by {difference:.3g} "
        f"{what} under {backend}, where {bound:.3g} is allowed.",
    )


def main(arguments: list[str]) -> int:
    """Verify the folder and print the verdict as JSON."""
    try:
        verdict = verify(Path(arguments[0]), Path(arguments[1]) if len(arguments) > 1 else None)
    except LisiereError as error:
        verdict = Verdict(refusal=f"The compiled model does not run: {error}")
    sys.stdout.write(msgspec.json.encode(verdict).decode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
