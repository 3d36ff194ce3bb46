"""The gate: an artifact must give what its reference gives before anyone sees it.

The reference is ONNX Runtime; for an ensemble of trees it is the library that trained it, by way of the golden vectors.
It runs in a process of its own (`python -m lisiere_compile.verify FOLDER [MODEL.onnx]`), so that compiled code that
crashes takes down neither the compiler nor what it has to clean up.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from lisiere.backends import Backend, open_backend
from lisiere.backends.dlr import find_library
from lisiere.backends.golden import load_golden
from lisiere.backends.requirements import obstacles
from lisiere.errors import LisiereError, Rejected
from lisiere.machine import this_machine
from lisiere.models import Manifest, Package, TensorSpec, open_package
from lisiere.models.manifest import Classification
from lisiere_compile.emulate import Emulator, find_emulator
from lisiere_compile.tolerance import Tolerance, largest_of, output_tolerances

RANDOM_CASES = 4
GOLDEN_CASES = 64
TIMEOUT_S = 600
EMULATED_CASES = 2  # of each kind
_SEED = 21  # other inputs than those of golden vectors that this compiler makes
Tensors = dict[str, NDArray[Any]]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate found.

    Attributes:
        backend: what ran the artifact.
        cases: how many inputs.
        max_difference: the largest from the reference, in the output's own unit.
        golden_atol: what golden vectors need beyond what their author allows, for what quantised numbers leave open.
        note: why it was not run, or what was left out.
        refusal: why the artifact must not be kept; empty when it held.
    """

    backend: Literal["dlr", "graph", "qemu-user", "nothing"] = "nothing"
    cases: int = 0
    max_difference: float = 0.0
    golden_atol: float = 0.0
    note: str = ""
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

    Without an ONNX file, the golden vectors are all there is to compare with, and all that is run anywhere.
    It runs on this machine where this machine can, else under qemu-user, on fewer inputs. Where neither can run it, the
    verdict is that of `nothing`, with a note.

    Raises:
        LisiereError: it cannot be loaded or run.
    """
    package = open_package(folder)
    manifest, build = package.manifest, package.manifest.build
    emulator: Emulator | None = None
    if build is not None and obstacles(build, this_machine()):
        found_emulator = find_emulator(build)
        if isinstance(found_emulator, str):
            return Verdict(note=found_emulator)
        emulator = found_emulator
    golden = load_golden(package) if manifest.golden is not None else []
    random = random_inputs(manifest.inputs, seed=_SEED) if onnx else []
    count = EMULATED_CASES if emulator and onnx else GOLDEN_CASES
    cases: list[tuple[Tensors, Tensors | None]] = list(golden[:count])
    # Zeros tell the least.
    cases += [(feed, None) for feed in (random[1 : 1 + EMULATED_CASES] if emulator else random)]
    feeds = [feed for feed, _ in cases]
    wanted = reference_outputs(onnx, manifest, feeds) if onnx else [expected or {} for _, expected in cases]
    backend: Literal["dlr", "graph", "qemu-user"] = "dlr" if find_library() is not None else "graph"
    if emulator is not None:
        backend, found = "qemu-user", emulator.run(package, feeds)
    else:
        found = _run_here(backend, package, feeds)  # type: ignore[arg-type]
    tolerances = _tolerances(onnx) if onnx else {spec.name: Tolerance() for spec in manifest.outputs}
    reference = "ONNX Runtime" if onnx else "the golden vectors"
    difference, refusal = _judge(package, tolerances, [expected for _, expected in cases], found, wanted, reference)
    return Verdict(
        backend=backend,
        cases=len(found),
        max_difference=min(difference, sys.float_info.max),  # JSON has no infinity
        golden_atol=max((_open_part(tolerances, expected) for _, expected in golden), default=0.0),
        note="" if len(found) == len(feeds) else f"the time was enough for {len(found)} of {len(feeds)} inputs",
        refusal=f"The compiled model is wrong and was not kept: under {backend}, {refusal}." if refusal else "",
    )


def _open_part(tolerances: Mapping[str, Tolerance], outputs: Tensors) -> float:
    """Return the most that quantised numbers leave open in some outputs."""
    rounded = {name: one for name, one in tolerances.items() if one.rounds and name in outputs}
    return max(
        (float(np.max(one.allowed(outputs[name], largest_of([outputs[name]])))) for name, one in rounded.items()),
        default=0.0,
    )


def _run_here(backend: Backend, package: Package, feeds: list[Tensors]) -> list[Tensors]:
    model = open_backend(backend, package)
    try:
        return [model.run(feed) for feed in feeds]
    finally:
        model.close()


def _judge(
    package: Package,
    tolerances: Mapping[str, Tolerance],
    golden: list[Tensors | None],
    found: list[Tensors],
    wanted: list[Tensors],
    reference: str,
) -> tuple[float, str]:
    """Return the largest difference from the reference, which has a name, and what is wrong, if anything."""
    manifest, worst = package.manifest, 0.0
    for spec in manifest.outputs:
        tolerance = tolerances[spec.name]
        largest = largest_of(case[spec.name] for case in wanted)
        # There may be fewer results than cases: time may have run out.
        for one, right, expected in zip(found, wanted, golden, strict=False):
            mine, given = one[spec.name], right[spec.name]
            allowed = tolerance.allowed(given, largest)
            difference, excess = compare(mine, given, allowed)
            worst = max(worst, difference)
            if excess > 0:
                return worst, _differs(spec, difference, excess, f"from {reference}")
            if _is_classifier(manifest) and not _same_choice(mine, given, allowed):
                return worst, f"its first choice is class {np.argmax(mine)}, that of {reference} {np.argmax(given)}"
            if expected is not None and manifest.golden is not None:
                declared = manifest.golden.atol + manifest.golden.rtol * np.abs(expected[spec.name].astype(np.float64))
                # Their author may not have thought of what quantised numbers leave open.
                bound = np.maximum(declared, allowed) if tolerance.rounds else declared
                difference, excess = compare(mine, expected[spec.name], bound)
                if excess > 0:
                    return worst, _differs(spec, difference, excess, "from the golden vectors")
    return worst, ""


def golden_tolerance(onnx: Path, outputs: Mapping[str, NDArray[Any]]) -> float:
    """Return how far a correct artifact may be from golden vectors: the most that is allowed for any of their numbers.

    Args:
        onnx: the model.
        outputs: what the reference gives, name -> [cases, *shape].
    """
    tolerances = _tolerances(onnx)
    return max(float(np.max(tolerances[name].allowed(one, largest_of([one])))) for name, one in outputs.items())


def _tolerances(onnx: Path) -> dict[str, Tolerance]:
    import onnx as onnx_format

    return output_tolerances(onnx_format.load(str(onnx), load_external_data=False))


def random_inputs(specs: tuple[TensorSpec, ...], count: int = RANDOM_CASES, seed: int = 20) -> list[Tensors]:
    """Return the same inputs on every machine: zeros, numbers from 0 to 1, normal ones; any integers."""
    random = np.random.default_rng(seed)
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


def compare(found: NDArray[Any], wanted: NDArray[Any], allowed: float | NDArray[np.float64]) -> tuple[float, float]:
    """Return the largest difference, and by how much the worst number is beyond what is allowed, if it is.

    NaN where both have NaN is no difference, and an infinity where both have it.
    """
    if found.shape != wanted.shape:
        return float("inf"), float("inf")
    same = (found == wanted) | ((found != found) & (wanted != wanted))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0.0, np.abs(found.astype(np.float64) - wanted.astype(np.float64)))
    difference = np.where(np.isnan(difference), np.inf, difference)
    if not difference.size:
        return 0.0, 0.0
    return float(np.max(difference)), float(np.max(np.where(same, -np.inf, difference - allowed), initial=-np.inf))


def _is_classifier(manifest: Manifest) -> bool:
    if manifest.task is not None:
        return isinstance(manifest.task, Classification)
    shape = manifest.outputs[0].shape
    return len(manifest.outputs) == 1 and len(shape) == 2 and shape[0] == 1 and shape[1] > 1


def _same_choice(found: NDArray[Any], wanted: NDArray[Any], allowed: NDArray[np.float64]) -> bool:
    """Whether the same class comes first, or one that the reference has as near as is allowed for either."""
    scores = wanted.astype(np.float64).ravel()
    chosen, right = int(np.argmax(found)), int(np.argmax(scores))
    return bool(scores[chosen] >= scores[right] - max(allowed.flat[chosen], allowed.flat[right]))


def _differs(spec: TensorSpec, difference: float, excess: float, what: str) -> str:
    bound = max(difference - excess, 0.0) if np.isfinite(difference) else 0.0
    return f"its output {spec.name!r} differs by {difference:.3g} {what}, where {bound:.3g} is allowed"


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
