"""Run ONNX's own node tests through the front end and write what holds into docs/operators.md.

`python tests/conformance/operators.py` takes some minutes; it is run when the front end or TVM changes. Each test's
model is imported, lowered as for an artifact and run by TVM without schedules, and its outputs compared with those that
ONNX ships. A test counts when it passes with all inputs given at run time, or with all but the first built in.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "operators.md"
DTYPES = {"float32", "int8", "uint8", "int32", "int64", "float64"}
HEAD = """\
# Operators

What the front ends take. An operator that is not here is named in the error, with all others of the model and their
nodes, before any work is done. Written by `python tests/conformance/operators.py`.

## TFLite

Float, and quantised to int8 or uint8 (by tensor or by channel) where TFLite has it so. Each is held against LiteRT's
own kernels by `tests/unit/compile/frontends/test_tflite_operators.py`.

{tflite}

Shapes are those in the file. Refused: sparse weights, 16-bit activations, strings, control flow, custom operators,
shapes that are known only at run time.

## PyTorch

What `torch.onnx.export` gives for a `torch.export` program (.pt2, static shapes) or TorchScript (.pt, .pth) is taken as
ONNX. TorchScript needs DataInputConfig. Pickled modules and state_dicts are refused, since a pickle is code.

## ONNX

Opsets 9 to 21. Forms that changed between opsets are held against ONNX Runtime by
`tests/unit/compile/frontends/test_onnx_passes.py`. Constants and shapes of shapes are computed away first; `Identity`
and `Dropout` vanish; quantised weights stay integers behind `DequantizeLinear`, and `QLinear...` operators become the
same operators between `DequantizeLinear` and `QuantizeLinear`. LSTM and GRU have tests of their own.

ONNX {version} ships {all} node tests; {skipped} are about element types, sequences or optional values that no artifact
has. Of the other {run}, **{passed} pass**, {refused} are refused with a message, and {wrong} give other numbers (they
are listed, and the gate of every compilation refuses such an artifact). By operator, for tests of one operator:

| operator | passed | of | not taken |
|---|---|---|---|
"""


def tests() -> list[Any]:
    """ONNX's node tests, the same order each time."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [test for test in load_model_tests(kind="node") if test.model is not None]


def plain(test: Any) -> bool:
    """Whether all inputs and outputs are tensors of known shape and of types that an artifact can have."""
    values = [*test.model.graph.input, *test.model.graph.output]
    arrays = [array for side in test.data_sets[0] for array in side]
    fixed = all(value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape") for value in values)
    known = DTYPES | {"bool"}
    return fixed and all(isinstance(one, np.ndarray | np.generic) and str(one.dtype) in known for one in arrays)


def variants(test: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The model with all inputs, and with all but the first built in."""
    import onnx
    from onnx import numpy_helper

    names = [value.name for value in test.model.graph.input]
    arrays = dict(zip(names, test.data_sets[0][0], strict=True))
    yield test.model, arrays
    if len(names) > 1:
        model = onnx.ModelProto()
        model.CopyFrom(test.model)
        for value in list(model.graph.input)[1:]:
            model.graph.input.remove(value)
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(arrays[name]), name) for name in names[1:])
        yield model, {names[0]: arrays[names[0]]}


def attempt(model: Any, feed: dict[str, Any], test: Any, file: Path) -> str:
    """Import, lower and run one model: `passed`, `wrong`, or the reason of a refusal."""
    import onnx
    import tvm
    from tvm import relax

    from lisiere.errors import Rejected
    from lisiere_compile import lower
    from lisiere_compile.frontends.onnx import read_onnx, to_relax
    from lisiere_compile.job import parse_job
    from lisiere_compile.quiet import quiet
    from lisiere_compile.target import resolve_target

    job = {
        "CompilationJobName": "nodes",
        "InputConfig": {"S3Uri": "m", "Framework": "ONNX"},
        "OutputConfig": {"S3OutputLocation": "out", "TargetDevice": "x86_64"},
    }
    target = resolve_target(parse_job(json.dumps(job).encode()))
    onnx.save(model, str(file))
    try:
        read = read_onnx(file, {})
        with quiet():
            module = lower.legalise(to_relax(read, file.name), read, target)
            lower.to_program(module, read)
            machine = relax.VirtualMachine(tvm.compile(module, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
            found = machine["main"](*(tvm.runtime.tensor(np.asarray(feed[spec.name])) for spec in read.inputs))
    except Rejected as error:
        return str(error)
    results = [found] if isinstance(found, tvm.runtime.Tensor) else list(found)
    return "passed" if all(map(_same, results, test.data_sets[0][1], [test] * len(results))) else "wrong"


def _same(found: Any, wanted: Any, test: Any) -> bool:
    found, wanted = found.numpy(), np.asarray(wanted)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if wanted.dtype.kind == "f":
        return np.allclose(found, wanted, max(test.rtol, 1e-3), max(test.atol, 1e-5), equal_nan=True)
    # A quantised number may round to its neighbour.
    quantum = 1 if wanted.dtype.itemsize == 1 and "antize" in test.name + str(test.model.graph.node) else 0
    return bool(np.abs(found.astype(float) - wanted.astype(float)).max(initial=0) <= quantum)


def work(start: int) -> None:
    """Print one JSON line a test, from a position on; the position first, in case the test ends the process."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index, test in enumerate(tests()[start:], start):
            print(json.dumps({"begun": index}), flush=True)
            operators = [node.op_type for node in test.model.graph.node]
            said = []
            for model, feed in variants(test) if plain(test) else ():
                try:
                    said.append(attempt(model, feed, test, Path(folder) / "m.onnx"))
                except Exception as error:  # noqa: BLE001 - a fault is a result here
                    said.append(f"fault: {type(error).__name__}")
            print(json.dumps({"name": test.name, "operators": operators, "said": said}), flush=True)


def results() -> list[dict[str, Any]]:
    """All tests, in processes of their own: one that crashes is a result, and the next goes on."""
    found, start = [], 0
    while True:
        command = [sys.executable, __file__, str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            for line in process.stdout or ():
                record = json.loads(line)
                if "begun" in record:
                    begun = record["begun"]
                else:
                    found.append(record)
        if process.returncode == 0:
            return found
        found.append({"name": f"#{begun}", "operators": [], "said": [f"fault: exit {process.returncode}"]})
        start = begun + 1


def outcome(said: list[str]) -> str:
    """One word for what the variants of a test gave."""
    if not said:
        return "skipped"
    if any(one == "wrong" or one.startswith("fault") for one in said):
        return "wrong"
    return "passed" if "passed" in said else "refused"


def page(records: list[dict[str, Any]]) -> str:
    """The text of docs/operators.md."""
    import onnx

    from lisiere_compile.frontends.tflite import OPERATORS

    counts = collections.Counter(outcome(record["said"]) for record in records)
    by_operator: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for record in records:
        if len(record["operators"]) == 1 and record["said"]:
            by_operator[record["operators"][0]].append((record["name"], outcome(record["said"])))
    text = HEAD.format(
        tflite=", ".join(f"`{name}`" for name in sorted(OPERATORS)),
        version=onnx.__version__,
        all=len(records),
        run=len(records) - counts["skipped"],
        **{word: counts[word] for word in ("passed", "refused", "wrong", "skipped")},
    )
    none = []
    for operator, tried in sorted(by_operator.items()):
        passed = sum(result == "passed" for _, result in tried)
        if not passed:
            none.append(f"`{operator}`")
            continue
        rest = [(name.removeprefix("test_"), result) for name, result in tried if result != "passed"]
        said = ", ".join(f"{name}{' (wrong)' if result == 'wrong' else ''}" for name, result in rest[:4])
        more = f" and {len(rest) - 4} more" if len(rest) > 4 else ""
        text += f"| `{operator}` | {passed} | {len(tried)} | {said}{more} |\n"
    why = "some of which want what no artifact has (truth values as inputs, statistics as outputs)"
    return text + f"\nNo test passes for these, {why}: {', '.join(none)}.\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(int(sys.argv[1]))
    else:
        PAGE.write_text(page(results()), encoding="utf-8")
