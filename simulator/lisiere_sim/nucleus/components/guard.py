"""A small process beside the nucleus that ends the components when the nucleus is killed and cannot do so itself."""

from __future__ import annotations

import contextlib
import subprocess

# It reads `+ GROUP` and `- GROUP` until its input ends, which it does when the nucleus does, however that happens.
_SCRIPT = """
trap '' INT TERM HUP
groups=
while read -r what group; do
  if [ "$what" = + ]; then groups="$groups $group"; continue; fi
  left=
  for one in $groups; do [ "$one" = "$group" ] || left="$left $one"; done
  groups=$left
done
for one in $groups; do kill -s TERM -- "-$one" 2>/dev/null; done
turn=0
for one in $groups; do
  while [ "$turn" -lt 50 ] && kill -s 0 -- "-$one" 2>/dev/null; do sleep 0.1; turn=$((turn + 1)); done
  kill -s KILL -- "-$one" 2>/dev/null
done
"""
_STOP_S = 10.0


class Guard:
    """Knows the process groups of the components, and ends those that the nucleus leaves behind.

    What has left its group it does not find; the next nucleus in the same root does.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start; it survives the nucleus for as long as it has something to end."""
        self._child = subprocess.Popen(  # noqa: S603 - the script above
            ["/bin/sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )

    def add(self, group: int) -> None:
        """Watch over a process group."""
        self._tell(f"+ {group}\n")

    def remove(self, group: int) -> None:
        """Forget a process group: nothing of it is left."""
        self._tell(f"- {group}\n")

    def stop(self) -> None:
        """End. Calling it twice does no harm."""
        child, self._child = self._child, None
        if child is not None and child.stdin is not None:
            child.stdin.close()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _tell(self, line: str) -> None:
        if self._child is not None and self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # somebody has killed it; the record on disk is there still
                self._child.stdin.write(line.encode())
