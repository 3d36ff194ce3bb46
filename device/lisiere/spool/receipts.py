"""Receipts: what was acknowledged and is still in the database, written down at once and never synced.

Deleting a row takes a commit, and rows go by the hundred. A kill in between leaves this file readable, so that what was
acknowledged is not delivered again. A power cut may take it, and then what was in it comes twice; nothing is lost.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

_FILE = "spool.acked"
_RECORD = struct.Struct("<qII")  # seq, whether it is yet to be counted as sent, checksum: 16 bytes, never on two pages
_MOST = 8192  # records; then the oldest go, whose rows are long deleted unless the disk refuses commits


class Receipts:
    """The last 8,192 acknowledgements of one epoch. For one thread at a time.

    An old record does no harm: a seq stands for one row as long as the epoch is the same.

    Args:
        folder: the spool's folder.
        epoch: of the spool; what was written for another one is passed over.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, epoch: str) -> None:
        self._descriptor = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._seed = zlib.crc32(epoch.encode())
        self._at = 0

    def read(self) -> dict[int, bool]:
        """Return the seqs that were acknowledged, and whether each is yet to be counted as sent."""
        try:
            data = os.pread(self._descriptor, _MOST * _RECORD.size, 0)
        except OSError:
            return {}
        whole = len(data) // _RECORD.size * _RECORD.size
        return {
            seq: bool(uncounted)
            for seq, uncounted, checksum in _RECORD.iter_unpack(data[:whole])
            if checksum == self._checksum(seq, uncounted)
        }

    def add(self, seqs: Sequence[int], uncounted: bool) -> None:
        """Write down that these rows were acknowledged."""
        records = [_RECORD.pack(seq, uncounted, self._checksum(seq, uncounted)) for seq in seqs[-_MOST:]]
        while records:
            lot = records[: _MOST - self._at]
            # Where the disk refuses, what is acknowledged comes twice after a kill, which is no reason to stop.
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, b"".join(lot), self._at * _RECORD.size)
            self._at = (self._at + len(lot)) % _MOST
            records = records[len(lot) :]

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def _checksum(self, seq: int, uncounted: int) -> int:
        return zlib.crc32(b"%d %d" % (seq, uncounted), self._seed)
