"""Golden vectors: known inputs and outputs that every backend must reproduce."""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from lisiere.backends import BACKENDS, open_backend
from lisiere.errors import Permanent, Rejected
from lisiere.models import Package


class Outcome(Struct, frozen=True):
    """What one backend made of the golden vectors; `holds` is None where it cannot run here."""

    holds: bool | None
    worst: float | None
    sentence: str


def load_golden(package: Package) -> list[tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
    """Return the cases of a package: (inputs, outputs) by tensor name, each of the tensor's shape.

    Raises:
        Rejected: the package has none, or they are not of the manifest's tensors.
    """
    manifest = package.manifest
    if manifest.golden is None:
        raise Rejected(f"{package.path} holds no golden vectors.")
    file = package.file(manifest.golden.file)
    try:
        with np.load(file, allow_pickle=False) as archive:
            inputs = {spec.name: archive[f"inputs/{spec.name}"] for spec in manifest.inputs}
            outputs = {spec.name: archive[f"outputs/{spec.name}"] for spec in manifest.outputs}
        cases = len(next(iter(inputs.values())))
        for spec, array in (
            *zip(manifest.inputs, inputs.values(), strict=True),
            *zip(manifest.outputs, outputs.values(), strict=True),
        ):
            if array.shape != (cases, *spec.shape) or array.dtype.name != spec.dtype:
                raise Rejected(
                    f"{file} holds {array.dtype.name} {list(array.shape)} for {spec.name!r}, not {spec.dtype} "
                    f"{[cases, *spec.shape]}."
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Rejected(f"{file} does not hold golden vectors: {error}.") from error
    return [
        ({name: values[at] for name, values in inputs.items()}, {name: values[at] for name, values in outputs.items()})
        for at in range(cases)
    ]


def check_golden(package: Package) -> dict[str, Outcome]:
    """Run the golden vectors by each backend.

    Raises:
        Rejected: the package holds none.
    """
    golden = package.manifest.golden
    cases = load_golden(package)
    assert golden is not None  # noqa: S101 - load_golden looked
    outcomes: dict[str, Outcome] = {}
    for name in BACKENDS:
        try:
            model = open_backend(name, package)
        except (Rejected, Permanent) as error:
            outcomes[name] = Outcome(None, None, f"cannot run here: {error}")
            continue
        worst, holds = 0.0, True
        for inputs, expected in cases:
            found = model.run(inputs)
            for key, value in expected.items():
                worst = max(worst, float(np.max(np.abs(found[key].astype(np.float64) - value))))
                holds = holds and bool(np.allclose(found[key], value, golden.rtol, golden.atol))
        model.close()
        verdict = "reproduces" if holds else "does NOT reproduce"
        outcomes[name] = Outcome(holds, worst, f"{verdict} {len(cases)} golden vectors, worst difference {worst:.2g}")
    return outcomes
