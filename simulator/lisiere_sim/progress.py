"""Progress on stderr: a live display on a terminal, one plain line an event elsewhere."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Line:
    """How one pipeline stands."""

    accepted: int
    delivered: int
    backlog: int
    answer: str


@dataclass(frozen=True)
class State:
    """How the run stands. `away` are the devices that were killed and are not back."""

    elapsed_s: float
    duration_s: float
    link: str
    away: tuple[str, ...] = ()
    lines: dict[str, Line] = field(default_factory=dict)


class Progress(AbstractContextManager["Progress"]):
    """Tells events as plain lines; states are for displays that can be redrawn."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def event(self, text: str, at_s: float | None = None) -> None:
        """Tell that something happened, `at_s` seconds into the scenario."""
        self._console.print(_stamped(text, at_s), soft_wrap=True, highlight=False, markup=False)

    def update(self, state: State) -> None:
        """Show how the run stands."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the display."""


class LiveProgress(Progress):
    """Redraws a time bar, the link and the pipelines in place, below the events."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._state: State | None = None
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._draw, transient=True)

    def __enter__(self) -> LiveProgress:
        """Begin to draw."""
        self._live.start()
        return self

    def update(self, state: State) -> None:
        """Show how the run stands."""
        self._state = state

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the display away; what remains to be said is the report's."""
        self._live.stop()

    def _draw(self) -> RenderableType:
        if (state := self._state) is None:
            return Text("starting")
        elapsed = min(state.elapsed_s, state.duration_s)
        away = f"{', '.join(state.away)} away" if state.away else "all running"
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=state.duration_s, completed=elapsed, width=40),
            f"{elapsed:.0f} of {state.duration_s:g} s",
            Text(f"link {state.link}", style="green" if state.link == "up" else "bold red"),
            Text(away, style="bold red" if state.away else "green"),
        )
        table = Table()
        table.add_column("pipeline")
        for heading in ("accepted", "delivered", "backlog"):
            table.add_column(heading, justify="right")
        table.add_column("last answer")
        for name, line in state.lines.items():
            backlog = Text(str(line.backlog), style="yellow" if line.backlog else "")
            table.add_row(name, str(line.accepted), str(line.delivered), backlog, line.answer)
        return Group(head, table)


def choose_progress(console: Console) -> Progress:
    """Return the display that suits where stderr goes."""
    return LiveProgress(console) if console.is_terminal else Progress(console)


def describe(task: str, answer: dict[str, Any]) -> str:
    """Put a result in a few words: `7 (0.98)`, `anomalous (3.1, threshold 1.2)`, `in 8 steps 421.3 (420.1 … 422.6)`."""
    if task == "detection" and "objects" in answer:
        found = Counter(one["label"] for one in answer["objects"])
        return ", ".join(f"{count} {label}" for label, count in found.most_common(3)) or "nothing"
    if task == "classification" and "label" in answer:
        return f"{answer['label']} ({answer.get('score', 0.0):.2f})"
    if task == "anomaly" and "state" in answer:
        score, threshold = answer.get("score"), answer.get("threshold")
        return f"{answer['state']}" + (f" ({score:.3g}, threshold {threshold:.3g})" if score is not None else "")
    if task == "forecasting" and answer.get("quantiles"):
        quantiles = sorted((float(key), values) for key, values in answer["quantiles"].items())
        low, high = quantiles[0][1][-1], quantiles[-1][1][-1]
        middle = min(quantiles, key=lambda item: abs(item[0] - 0.5))[1]
        return f"in {len(middle)} steps {middle[-1]:.1f} ({low:.1f} … {high:.1f})"
    return ""


def _stamped(text: str, at_s: float | None) -> str:
    return text if at_s is None else f"{at_s:6.1f} s  {text}"
