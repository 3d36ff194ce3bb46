"""The heads of detectors: whether what a manifest declares of them fits its outputs."""

from __future__ import annotations

from pathlib import Path

from lisiere.errors import Rejected
from lisiere.models.manifest import Classification, Detection, Manifest, SsdHead, SsdRawHead, TensorSpec


def classes_of(manifest: Manifest) -> int | None:
    """Return how many classes a model's outputs tell apart; None where they do not say."""
    task = manifest.task
    if isinstance(task, Classification):
        return manifest.outputs[0].size
    if not isinstance(task, Detection) or isinstance(task.head, SsdHead):
        return None
    named = {spec.name: spec.shape for spec in manifest.outputs}
    if isinstance(task.head, SsdRawHead):
        return named[task.head.scores][2] - (task.head.background is not None)
    columns = named[task.head.output][2 if task.head.layout == "rows" else 1]
    return columns - (5 if task.head.objectness else 4)


def check_head(manifest: Manifest, task: Detection, file: Path) -> None:
    """Check that the outputs that a head names are there, and have the shapes that it needs.

    Raises:
        Rejected: one is not, or has not.
    """
    outputs = {spec.name: spec for spec in manifest.outputs}

    def output(key: str, *wanted: int | None, whole: bool = False) -> TensorSpec:
        name = getattr(task.head, key)
        spec = outputs.get(name)
        if spec is None:
            raise Rejected(f"{file}: `task.head.{key}` is {name!r}, and the model's outputs are {', '.join(outputs)}.")
        if len(spec.shape) != len(wanted) or any(w not in (None, s) for w, s in zip(wanted, spec.shape, strict=True)):
            form = ", ".join("…" if size is None else str(size) for size in wanted)
            raise Rejected(
                f"{file}: `task.head.{key}` takes an output of [{form}], and {name!r} is {list(spec.shape)}."
            )
        if not whole and not spec.dtype.startswith("float"):
            raise Rejected(
                f"{file}: `task.head.{key}` takes floating point numbers, and {name!r} gives {spec.dtype}. Let the "
                "model itself turn what is quantised back."
            )
        return spec

    if isinstance(task.head, SsdHead):
        count = output("boxes", 1, None, 4).shape[1]
        output("classes", 1, count, whole=True)
        output("scores", 1, count)
        if task.head.count is not None:
            output("count", 1, whole=True)
    elif isinstance(task.head, SsdRawHead):
        count = output("boxes", 1, None, 4).shape[1]
        classes = output("scores", 1, count, None).shape[2]
        if task.head.background is not None and task.head.background >= classes:
            raise Rejected(
                f"{file}: `task.head.background` is {task.head.background}, and there are {classes} classes."
            )
    else:
        output("output", 1, None, None)
        if (found := classes_of(manifest)) is not None and found < 1:
            raise Rejected(f"{file}: {list(outputs[task.head.output].shape)} leaves no room for classes beside a box.")
