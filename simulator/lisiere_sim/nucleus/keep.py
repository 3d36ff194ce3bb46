"""Files that the nucleus keeps: written whole or not at all, and set aside when they are damaged."""

from __future__ import annotations

from pathlib import Path


def write_whole(file: Path, data: bytes) -> None:
    """Replace a file's content. Whoever is killed meanwhile leaves what was there before."""
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_bytes(data)
    fresh.replace(file)


def set_aside(file: Path, error: Exception, instead: str) -> str:
    """Rename a damaged file and return a sentence that says so.

    Args:
        file: which; its new name ends with `.damaged`.
        error: what is wrong with it.
        instead: what happens now, as in "so … and the configuration is empty".
    """
    aside = file.with_name(f"{file.name}.damaged")
    file.replace(aside)
    return f"{file} is damaged ({error}), so it was set aside as {aside.name} and {instead}."
