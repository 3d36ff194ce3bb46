from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lisiere.backends.golden import load_golden
from lisiere.errors import Rejected
from lisiere.models import TensorSpec, open_package
from lisiere_compile.artifact import write_golden
from lisiere_compile.verify import compare, random_inputs, verify, verify_apart

from .conftest import Compile, dense


def test_another_model_is_found_out(compile_model: Compile, tmp_path: Path) -> None:
    folder, _ = compile_model(dense(relu="Sigmoid"))
    onnx.save(dense(relu="Tanh"), str(tmp_path / "other.onnx"))
    assert "differs by" in verify(folder, tmp_path / "other.onnx").refusal
    with pytest.raises(Rejected, match="from ONNX Runtime"):
        verify_apart(folder, tmp_path / "other.onnx")


def test_a_crash_in_the_check_is_a_refusal(
    compile_model: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = compile_model(dense())
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -ILL $$\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(Rejected, match="SIGILL"):
        verify_apart(folder, folder / "model.onnx")
    program.write_text("#!/bin/sh\necho 'no module' >&2\nexit 1\n")
    with pytest.raises(Rejected, match="no module"):
        verify_apart(folder, folder / "model.onnx")


def test_inputs_are_the_same_every_time() -> None:
    specs = (
        TensorSpec(name="f", shape=(2, 3)),
        TensorSpec(name="q", shape=(4,), dtype="uint8"),
        TensorSpec(name="i", shape=(4,), dtype="int64"),
    )
    first, second = random_inputs(specs), random_inputs(specs)
    for one, two in zip(first, second, strict=True):
        for spec in specs:
            assert one[spec.name].shape == spec.shape
            assert one[spec.name].dtype == spec.dtype
            np.testing.assert_array_equal(one[spec.name], two[spec.name])
    assert not first[0]["f"].any()
    assert set(first[0]["i"]) <= {0, 1}


@pytest.mark.parametrize(
    ("found", "wanted", "holds"),
    [
        (np.array([1, 2], np.float32), np.array([1, 2.0001], np.float32), True),
        (np.array([1, 2], np.float32), np.array([1, 2.1], np.float32), False),
        (np.array([np.nan, np.inf], np.float32), np.array([np.nan, np.inf], np.float32), True),
        (np.array([np.nan], np.float32), np.array([1], np.float32), False),
        (np.array([1], np.float32), np.array([np.inf], np.float32), False),
        (np.array([-128], np.int8), np.array([-127], np.int8), False),
        (np.array([-128], np.int8), np.array([127], np.int8), False),
        (np.array([1], np.int64), np.array([2], np.int64), False),
        (np.zeros(2), np.zeros(3), False),
    ],
)
def test_how_results_are_compared(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], holds: bool) -> None:
    _, excess = compare(found, wanted, 1e-3)
    assert (excess <= 0) is holds


def test_golden_vectors_of_another_shape_are_refused(compile_model: Compile) -> None:
    folder, _ = compile_model(dense())
    package = open_package(folder)
    assert len(load_golden(package)) == 4
    write_golden(folder / "golden.npz", {"x": np.zeros((2, 1, 9))}, {"y": np.zeros((2, 1, 4))})
    with pytest.raises(Rejected, match=r"holds float64 \[2, 1, 9\] for 'x'"):
        load_golden(package)
    (folder / "golden.npz").write_bytes(b"junk")
    with pytest.raises(Rejected, match="does not hold golden vectors"):
        load_golden(package)
