"""Keeping TVM's C++ warnings, which go past Python to file descriptor 2, off the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Send file descriptor 2 nowhere during the body. What matters comes as an exception, which is not touched.

    The descriptor belongs to the whole process, so only the compiler's own stages are wrapped in this.
    """
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # it is closed: nothing to keep quiet
        yield
        return
    try:
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
