"""The examples of docs/compiler.md, run: its model, its graph and storage, its pictures' figures, its operator."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from lisiere.errors import Rejected
from lisiere_compile import lower
from lisiere_compile.frontends import converters, onnx_rewrites
from lisiere_compile.frontends.onnx import read_onnx, to_relax
from lisiere_compile.frontends.onnx_nodes import Maker
from lisiere_compile.graph import build_graph, peak_activation_bytes
from lisiere_compile.job import model_job
from lisiere_compile.kernels.rules import Scheduled, pack_weights, schedule
from lisiere_compile.kernels.tiles import Tile
from lisiere_compile.program import Program
from lisiere_compile.target import resolve_target
from support import REPOSITORY

from .conftest import Compile, make_model

PAGE = (REPOSITORY / "docs" / "compiler.md").read_text(encoding="utf-8")
TARGET = "rasp4b"
TIMES = "\N{MULTIPLICATION SIGN}"


def block(language: str, which: int = 0) -> str:
    """A code block of the page."""
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    return blocks[which]


def picture(name: str) -> str:
    return (REPOSITORY / "docs" / "pictures" / f"{name}.svg").read_text(encoding="utf-8")


def lowered(model: onnx.ModelProto, folder: Path) -> tuple[Program, dict[str, Scheduled]]:
    file = folder / "model.onnx"
    onnx.save(model, str(file))
    target = resolve_target(model_job(str(file), "ONNX", TARGET, "out", {}, "model"))
    read = read_onnx(file, {})
    program = lower.to_program(lower.legalise(to_relax(read, "model"), read, target), read)
    scheduled = schedule(program, target)
    return pack_weights(program, {name: one.packs for name, one in scheduled.items()}), scheduled


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, dict[str, Scheduled]]:
    """The page's model, its weights drawn at random."""
    model = parser.parse_model(block("text"))
    random = np.random.default_rng(4)
    for value in list(model.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        weights = random.normal(0, 0.2, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, value.name))
        model.graph.input.remove(value)
    return lowered(model, tmp_path_factory.mktemp("docs"))


def test_the_table_of_kernels_is_the_graph(small: tuple[Program, dict[str, Scheduled]]) -> None:
    graph, _ = build_graph(small[0], ["image"])
    nodes, attrs = graph["nodes"], graph["attrs"]
    found = []
    for node, shape, storage in zip(nodes, attrs["shape"][1], attrs["storage_id"][1], strict=True):
        if node["op"] == "tvm_op":
            reads = ", ".join(f"`{nodes[source]['name']}`" for source, *_ in node["inputs"])
            written = TIMES.join(map(str, shape))
            found.append(f"| `{node['name']}` | `{node['attrs']['func_name']}` | {reads} | {written} | {storage} |")
    assert re.findall(r"^\| `__k.*\|$", PAGE, flags=re.MULTILINE) == found
    assert json.loads(block("json")) in nodes


def test_the_picture_of_storage_shows_the_plan(small: tuple[Program, dict[str, Scheduled]]) -> None:
    program, _ = small
    graph, _ = build_graph(program, ["image"])
    shown = picture("compiler-storage")
    assert f"= {peak_activation_bytes(program):,} bytes" in shown
    ids = graph["attrs"]["storage_id"][1]
    activations = {ids[0], *ids[len(graph["arg_nodes"]) :]}
    assert {int(one) for one in re.findall(r">storage (\d+)<", shown)} == activations
    rows = re.split(r">storage \d+<", shown)[1:]
    for name, row in zip(re.findall(r">storage (\d+)<", shown), rows, strict=True):
        held = [shape for one, shape in zip(ids, graph["attrs"]["shape"][1], strict=True) if one == int(name)]
        drawn = re.findall(rf"\d+(?:{TIMES}\d+)+", row)
        assert drawn == [TIMES.join(map(str, shape)) for shape in held]


def test_the_picture_of_the_border_shows_the_tiles(small: tuple[Program, dict[str, Scheduled]]) -> None:
    _, scheduled = small
    assert scheduled["fused_conv2d1_relu"].plans[0].tile == Tile(rows=4, vectors=1, lanes=4)
    shown = picture("compiler-depthwise")
    assert "16 rows of 4 tiles of 4 columns" in shown
    # Of 16 columns in tiles of 4, and 16 rows, a kernel of 3 leaves the outermost to the border.
    inside = 14 * len([tile for tile in range(4) if tile * 4 >= 1 and tile * 4 + 3 <= 14])
    assert f"inside: {inside} tiles" in shown


def test_the_picture_of_a_tile_shows_what_the_rule_does(tmp_path: Path) -> None:
    weights = {"w": np.ones((64, 64, 1, 1), np.float32)}
    model = make_model(
        [helper.make_node("Conv", ["x", "w"], ["y"])], {"x": [1, 64, 25, 5]}, {"y": [1, 64, 25, 5]}, weights
    )
    program, scheduled = lowered(model, tmp_path)
    shown = picture("compiler-tile")
    tile = scheduled["conv2d"].plans[0].tile
    assert f"{tile.rows} rows {TIMES} {tile.vectors} vectors of {tile.lanes}" in shown
    (packed,) = program.constants.values()
    assert f"packed: {list(packed.shape)}" in shown


def quick_gelu() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuickGelu", ["x"], ["h"], domain="com.microsoft", alpha=1.5),
        helper.make_node("Softmax", ["h"], ["y"]),
    ]
    model = make_model(nodes, {"x": [2, 8]}, {"y": [2, 8]}, {})
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def test_the_operator_of_the_example_compiles(compile_model: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_rewrites, "TABLE", dict(onnx_rewrites.TABLE))
    onnx_rewrites.TABLE.pop(("com.microsoft", "QuickGelu"), None)
    with pytest.raises(Rejected, match=r"com\.microsoft\.QuickGelu"):
        compile_model(quick_gelu())
    names: dict[str, Any] = {"Maker": Maker, "np": np, "TABLE": onnx_rewrites.TABLE}
    exec(block("python"), names)  # noqa: S102 - our own page
    folder, log = compile_model(quick_gelu())
    assert folder.is_dir()
    assert log.verdict.cases > 0  # held against ONNX Runtime's own QuickGelu


def test_what_is_quoted_stands_in_the_source() -> None:
    assert block("python", 1) in Path(converters.__file__).read_text(encoding="utf-8")
