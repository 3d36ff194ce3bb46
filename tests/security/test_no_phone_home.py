"""DLR never phones home here: no socket is made while it is found, loaded and run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from lisiere.backends.dlr import find_library
from support import require
from support.artifacts import compiled

# Runs in a fresh interpreter, where any use of a socket or of another program ends in an error. Python raises
# these audit events for every socket call, whoever makes it.
SCRIPT = """
import json, sys
from pathlib import Path

seen = []
def refuse(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.system", "os.posix_spawn"):
        seen.append(event)
        raise RuntimeError(event)
sys.addaudithook(refuse)

from lisiere.backends import open_backend
from lisiere.backends.golden import load_golden
from lisiere.models import open_package

package = open_package(Path(sys.argv[1]))
model = open_backend("dlr", package)
for inputs, _ in load_golden(package):
    model.run(inputs)
model.close()

#EXTRA

print(json.dumps({"events": seen, "dlr": "dlr" in sys.modules}))
"""


def run(folder: Path, extra: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("#EXTRA", extra), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_import_load_and_run_make_no_socket_call() -> None:
    require(find_library(), "libdlr")
    done = run(compiled("classifier"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"events": [], "dlr": False}
    assert "neo-ai-dlr" not in done.stderr.lower(), "the banner of the package was printed, so its code ran"


def test_the_guard_itself_notices_a_socket_call() -> None:
    require(find_library(), "libdlr")
    done = run(compiled("classifier"), "import socket; socket.create_connection(('127.0.0.1', 9))")
    assert done.returncode != 0
    assert "socket." in done.stderr


def test_the_package_s_own_import_would_have_been_noticed() -> None:
    """The reason for all this: importing `dlr` as it comes does use the network."""
    require(find_library(), "libdlr")
    done = run(compiled("classifier"), "import dlr")
    assert done.returncode != 0 or json.loads(done.stdout)["events"]
