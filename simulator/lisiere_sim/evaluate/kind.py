"""What evaluating one kind of task takes: reading its labels, figures, and a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# One result as `lisiere replay` writes it: the envelope of docs/contract/result.schema.json, decoded.
Record = dict[str, Any]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of task, evaluated.

    Attributes:
        read_labels: what is true, from a file of the kind's own form. Raises ConfigError when it is not of that form.
        figures: results of one pipeline, in their order, and what is true, to figures by name; may nest.
        plot: draws the same into a file, PNG.
        compact: what to keep of a result once it is read, where that is less; None: all of it.
    """

    read_labels: Callable[[Path], Any]
    figures: Callable[[list[Record], Any], Figures]
    plot: Callable[[list[Record], Any, Path], None]
    compact: Callable[[Record], Record] | None = None
