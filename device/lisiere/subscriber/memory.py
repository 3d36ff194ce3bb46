"""What was seen, kept in a small file, so that a subscriber that starts again neither repeats nor forgets."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from lisiere.documents import write_durably
from lisiere.errors import Rejected, Retryable

_MAX_BYTES = 64 << 20


class Seen(Struct, frozen=True, kw_only=True):
    """One device's epoch: inclusive ranges of seq that came, and of those that came, were explained, or told."""

    device: str
    epoch: str
    arrived: list[tuple[int, int]]
    known: list[tuple[int, int]]


class _Document(Struct, frozen=True, kw_only=True):
    schema: str
    seen: list[Seen]


def load(file: Path) -> list[Seen]:
    """Return what a file says; nothing if there is none.

    Raises:
        Rejected: it is not a file of a subscriber.
    """
    try:
        if not file.exists():
            return []
        if file.stat().st_size > _MAX_BYTES:
            raise Rejected(f"{file} is larger than {_MAX_BYTES} bytes, which no subscriber writes.")
        found = msgspec.json.decode(file.read_bytes(), type=_Document)
    except OSError as error:
        raise Rejected(f"{file} cannot be read: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise Rejected(f"{file} is not what a subscriber wrote: {error}. Move it away to start anew.") from error
    return found.seen


def save(file: Path, seen: list[Seen]) -> None:
    """Write the file whole or not at all.

    Raises:
        Retryable: the disk refuses.
    """
    try:
        write_durably(file, msgspec.json.encode(_Document(schema="lisiere.seen/1", seen=seen)))
    except OSError as error:
        raise Retryable(f"{file} cannot be written: {error.strerror}.") from error
