"""Reading YAML (and so JSON) documents: bounded, and with every way of failing in one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lisiere.errors import Rejected

MAX_BYTES = 1 << 20


def read_text(file: Path) -> str:
    """Return a file's text.

    Raises:
        Rejected: it cannot be read, is larger than 1 MiB, or is not in UTF-8.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise Rejected(f"{file} is larger than {MAX_BYTES} bytes.")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise Rejected(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise Rejected(f"{file} is not YAML or JSON in UTF-8: {error}") from error


def read_yaml(file: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        Rejected: it cannot be read, is larger than 1 MiB, or is not YAML in UTF-8.
    """
    text = read_text(file)
    try:
        return yaml.safe_load(text)
    except Exception as error:  # PyYAML lets out whatever its constructors run into: ValueError, KeyError, …
        raise Rejected(f"{file} is not YAML: {error}") from error
