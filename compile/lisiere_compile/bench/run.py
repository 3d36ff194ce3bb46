"""One model against its peers: everyone set up, compared, measured in turns, and the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from msgspec import Struct

from lisiere.backends import Tensor
from lisiere.errors import LisiereError, Permanent
from lisiere_compile.bench.peers import PEERS, Contestant, LiteRt, OnnxRuntime, OpenVino, missing
from lisiere_compile.bench.rounds import Plan, Spread, measure, ratio_by_round, spread
from lisiere_compile.bench.subject import Compiled, Made, Subject, make_artifact, open_subject

OURS = "lisiere"
# Two runtimes that compute the same model in float32 differ by far less, in shares of the largest output.
TOLERANCE = 1e-3
# Quantised ones (of one byte) round to a neighbour here and there, which adds up over the layers; positions do not.
STEPS = 8
Say = Callable[[str], None]


class Figure(Struct, frozen=True, kw_only=True):
    """How one contestant did.

    Attributes:
        ms: of one call; None when it did not run.
        absent: why it did not run.
        difference: the largest from the reference's outputs; None for the reference itself.
        agrees: whether that is what rounding explains.
    """

    ms: Spread | None = None
    absent: str = ""
    difference: float | None = None
    agrees: bool = True


class ModelFigures(Struct, frozen=True, kw_only=True):
    """How all did on one model.

    Attributes:
        contestants: name -> figures, the compiled model first.
        reference: whose outputs the others were compared with.
        best_peer: the fastest that gives the same answer.
        ratio: ours to the best peer's, by rounds; below one is faster.
        at_best: the same of the fastest rounds alone.
        backend: what ran the compiled model.
        compile_s: stage -> seconds.
        kernels, unscheduled: as the compiler reports them.
    """

    name: str
    contestants: dict[str, Figure]
    reference: str | None = None
    best_peer: str | None = None
    ratio: Spread | None = None
    at_best: float | None = None
    backend: str = ""
    compile_s: dict[str, float] = {}
    kernels: int = 0
    unscheduled: tuple[str, ...] = ()


def check_peers(peers: Sequence[str]) -> None:
    """Check that peers which were asked for are here.

    Raises:
        Permanent: one is not; the message says what to install.
    """
    reasons = [reason for peer in peers if (reason := missing(peer))]
    if reasons:
        raise Permanent("; ".join(reasons) + ".")


def bench_model(
    model: Path,
    work: Path,
    *,
    tflite: Path | None = None,
    name: str | None = None,
    against: Sequence[str] = tuple(PEERS),
    threads: int = 1,
    plan: Plan | None = None,
    say: Say = lambda _text: None,
) -> ModelFigures:
    """Measure one model against its peers; whoever cannot run it is reported with the reason.

    Args:
        model: an ONNX file, a TFLite file, or the folder of an artifact with its ONNX file inside.
        tflite: the same model for LiteRT; a TFLite model is its own.
        name: in the table, in place of the file's.
        work: an empty folder.
        against: peers, by name.
        threads: how many each may use for one call.
        plan: how long.
        say: where progress goes, a line at a time.

    Raises:
        LisiereError: the model cannot be read at all.
    """
    subject = open_subject(model, work, tflite, name)
    figures: dict[str, Figure] = {}
    running: dict[str, Contestant] = {}
    made, backend = Made(work), ""
    with ExitStack() as stack:
        try:
            made = make_artifact(subject, work, threads, say)
            compiled = stack.enter_context(closing(Compiled(made.folder, subject.feeds, threads)))
            running[OURS], backend = compiled, compiled.backend
        except LisiereError as error:
            figures[OURS] = Figure(absent=f"not compiled: {error}")
        for peer in against:
            try:
                running[peer] = stack.enter_context(closing(_start(peer, subject, threads)))
            except LisiereError as error:
                figures[peer] = Figure(absent=str(error))
        say(f"{subject.name}: measuring {', '.join(running) or 'nothing'}")
        answers = {}
        for each, contestant in running.items():
            contestant.call()
            answers[each] = contestant.outputs()
        times = measure({each: contestant.call for each, contestant in running.items()}, plan or Plan())
    reference = next((each for each in (*PEERS, OURS) if each in answers), None)
    for each, ms in times.items():
        difference, agrees = (
            (None, True) if each == reference or reference is None else compare(answers[each], answers[reference])
        )
        figures[each] = Figure(ms=spread(ms), difference=difference, agrees=agrees)
    honest = [each for each in times if each != OURS and figures[each].agrees]
    best = min(honest, key=lambda each: spread(times[each]).median, default=None)
    both = best is not None and OURS in times
    return ModelFigures(
        name=subject.name,
        contestants={each: figures[each] for each in (OURS, *against)},
        reference=reference,
        best_peer=best,
        ratio=ratio_by_round(times[OURS], times[best or ""]) if both else None,
        at_best=min(times[OURS]) / min(times[best or ""]) if both else None,
        backend=backend,
        compile_s=made.seconds,
        kernels=made.kernels,
        unscheduled=made.unscheduled,
    )


def compare(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[float | None, bool]:
    """Return the largest difference between two answers, and whether rounding explains it.

    Answers of different shapes have no difference, and do not agree.
    """
    worst, agrees = 0.0, True
    if len(found) != len(wanted):
        return None, False
    for ours, theirs in zip(found, wanted, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return None, False
        difference = float(np.max(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)), initial=0.0))
        scale = float(np.max(np.abs(theirs.astype(np.float64)), initial=0.0))
        bound = TOLERANCE * max(1.0, scale) if ours.dtype.kind == "f" else STEPS if ours.dtype.itemsize == 1 else 0.0
        worst, agrees = max(worst, difference), agrees and difference <= bound
    return worst, agrees


def _start(peer: str, subject: Subject, threads: int) -> Contestant:
    if reason := missing(peer):
        raise Permanent(reason)
    if peer == "onnxruntime":
        return OnnxRuntime(subject.onnx, subject.feeds, threads)
    if peer == "openvino":
        return OpenVino(subject.onnx, subject.feeds, threads)
    if subject.tflite is None:
        raise Permanent("no .tflite of this model was given (--tflite MODEL=FILE)")
    return LiteRt(subject.tflite, subject.feeds, threads)
