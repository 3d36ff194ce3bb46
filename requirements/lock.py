"""Pin the versions: one lock for the demo; for development, the C compiler and the Greengrass component what agrees.

The locks hold for every platform and Python that the project supports, carry hashes, and name no index.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEVICE = ("dlr", "camera", "greengrass", "sensors")
DEMO = ("dlr", "onnx", "camera", "compile", "evaluate", "greengrass", "sensors", "simulator")
# All but torch, whose builds for GPUs take gigabytes.
DEV = (*DEMO, "bench", "cc", "cloud", "dev", "train", "trees", "zstd")


def lock(name: str, *inputs: str) -> None:
    """Write requirements/<name>.txt from the inputs, which are arguments of `uv pip compile`."""
    form = ["--universal", "--python-version=3.10", "--generate-hashes"]
    quiet = ["--no-emit-index-url", "--no-annotate", "--no-header", "--quiet"]
    command = [sys.executable, "-m", "uv", "pip", "compile", "--upgrade", *form, *quiet, f"--output-file={name}.txt"]
    subprocess.run([*command, *inputs], check=True, cwd=HERE)  # noqa: S603 - arguments of our own


if __name__ == "__main__":
    demo = (f"--extra={extra}" for extra in DEMO)
    lock("demo", "../pyproject.toml", "build.in", *demo, "--constraint=constraints.in")
    lock(
        "dev",
        "../pyproject.toml",
        "build.in",
        *(f"--extra={extra}" for extra in DEV),
        "--constraint=demo.txt",
        "--constraint=constraints.in",
    )
    lock("cc", "cc.in", "--constraint=dev.txt")
    lock("device", "../pyproject.toml", *(f"--extra={extra}" for extra in DEVICE), "--constraint=demo.txt")
