"""Runs `lisiere` in forks of one process that has imported everything, so that a start costs milliseconds.

A program for a test: it reads lines of JSON from standard input. A list is the arguments of a new `lisiere`, whose
process id it prints; `{"kill": PID}` kills one and `{"end": PID}` waits for its end, and prints how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import onnxruntime  # noqa: F401 - imported for the forks

import lisiere.runtime
import lisiere.sync.transports.mqtt  # noqa: F401 - imported for the forks
from lisiere.cli import main


def serve() -> None:
    """Do what the test says until it ends standard input."""
    for line in sys.stdin:
        order = json.loads(line)
        if isinstance(order, list):
            answer = os.fork()
            if answer == 0:
                os.close(0)
                try:
                    os._exit(main(order))
                except SystemExit as end:
                    os._exit(int(end.code or 0))
        else:
            if "kill" in order:
                os.kill(order["kill"], signal.SIGKILL)
            answer = os.waitstatus_to_exitcode(os.waitpid(order.get("kill", order.get("end")), 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
