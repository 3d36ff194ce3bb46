"""Neo artifacts of the tiny models, compiled once a test run by the project's own compiler."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from support import tiny
from support.ensembles import saved

MAKERS = {"classifier": tiny.classifier, "forecaster": tiny.forecaster, "detector": tiny.detector}
TREES = "trees"

# Removed when the interpreter ends.
_FOLDER = tempfile.TemporaryDirectory(prefix="lisiere-tests-")


@functools.cache
def compiled(kind: str) -> Path:
    """Return the artifact of a tiny model: `classifier`, `forecaster`, `detector` or `trees`. Never written to."""
    from lisiere_compile.compiler import compile_job
    from lisiere_compile.job import load_job, parse_job

    if kind == TREES:
        model = {"S3Uri": str(saved("xgb-multi")), "Framework": "XGBOOST"}
        native = {"S3OutputLocation": str(Path(_FOLDER.name) / "out"), "TargetDevice": "native"}
        document = {"CompilationJobName": "tiny-trees", "InputConfig": model, "OutputConfig": native}
        return compile_job(parse_job(json.dumps(document).encode()), Path(_FOLDER.name))
    source = MAKERS[kind](Path(_FOLDER.name) / kind)
    spec = {
        "classifier": ("image", [1, 3, 8, 8]),
        "forecaster": ("window", [1, 6, 1]),
        "detector": ("window", [1, 4, 1]),
    }
    name, shape = spec[kind]
    job = source / "job.json"
    job.write_text(
        json.dumps(
            {
                "CompilationJobName": f"tiny-{kind}",
                "RoleArn": "arn:aws:iam::000000000000:role/none",
                "InputConfig": {"S3Uri": ".", "DataInputConfig": json.dumps({name: shape}), "Framework": "ONNX"},
                "OutputConfig": {"S3OutputLocation": "../out", "TargetDevice": "native"},
                "StoppingCondition": {"MaxRuntimeInSeconds": 900},
            }
        )
    )
    return compile_job(load_job(job), source)
