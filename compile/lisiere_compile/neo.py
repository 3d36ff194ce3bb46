"""What SageMaker Neo hands back -> an artifact like any other.

That is the files that a runtime loads, what their tensors are, a manifest, golden vectors, and the gate where this
machine can run it; where it cannot, the manifest says why.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import msgspec

from lisiere.errors import Permanent, Rejected
from lisiere.machine import this_machine
from lisiere.models import TensorSpec
from lisiere.models.manifest import Build, Golden, Verified
from lisiere.models.package import Graph
from lisiere_compile import artifact
from lisiere_compile.compiler import Log, make_golden, pass_gate
from lisiere_compile.frontends import to_onnx
from lisiere_compile.frontends.onnx import OnnxModel, read_onnx
from lisiere_compile.job import Job, compiler_options, input_shapes
from lisiere_compile.link import read_needs
from lisiere_compile.source import Source, open_source, plain_name
from lisiere_compile.target import host_name
from lisiere_compile.trees.build import INPUT, OUTPUT
from lisiere_compile.trees.load import FRAMEWORKS, Loaded, load

_MACHINES = {62: "x86_64", 183: "aarch64", 40: "armv7l"}  # ELF's e_machine
_TREE_TOLERANCE = 1e-5  # it sums the leaves in an order of its own
Tensors = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


@dataclass(frozen=True)
class Known:
    """What is known of the model on this machine.

    Attributes:
        source: the model; where it could not be read, whatever was given.
        onnx, model: what the reference runtime runs; None without one.
        trees: an ensemble, with what its library answers.
        why_not: why there is neither.
    """

    source: Source
    onnx: Path | None = None
    model: OnnxModel | None = None
    trees: Loaded | None = None
    why_not: str = ""


def look(job: Job, given: Path, name: str | None, work: Path) -> Known:
    """Read the model as far as this machine can; what it cannot read may still be for SageMaker.

    Raises:
        Rejected: there is nothing.
    """
    framework = job.InputConfig.Framework
    if not given.exists():
        raise Rejected(f"There is nothing at {given}.")
    source = Source(given, framework, None, given.parent, name or plain_name(given.name.partition(".")[0]))
    try:
        source = replace(open_source(given, work, framework), given_name=name)
        if framework in FRAMEWORKS:
            return Known(source, trees=load(source.file, framework, work))
        (work / "converted").mkdir()
        onnx = to_onnx(source.file, framework, work / "converted", input_shapes(job))
        return Known(source, onnx, read_onnx(onnx, input_shapes(job)))
    except (Rejected, Permanent) as error:
        return Known(source, why_not=str(error))


def find_files(folder: Path, uri: str) -> dict[str, Path]:
    """Return the files that a runtime loads, by the names that an artifact here has for them.

    Raises:
        Rejected: they are neither a graph with its parameters and library nor the library of an ensemble.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    libraries = [file for file in files if file.suffix == ".so" and not file.name.startswith("libdlr")]
    graphs = [file for file in files if file.suffix == ".json" and _is_graph(file)]
    params = [file for file in files if file.suffix == ".params"]
    metas = [file for file in files if file.suffix == ".meta"]
    others = [file for file in files if file.suffix == ".ro"]
    if len(libraries) != 1 or len(graphs) != len(params) or len(graphs) > 1 or others:
        held = ", ".join(file.name for file in files)
        raise Rejected(
            f"SageMaker's artifact holds {held or 'nothing'}, and not the graph, the parameters and the library of one "
            f"model, so it is not kept here. It stays at {uri}."
        )
    found = {artifact.LIBRARY: libraries[0]}
    if graphs:
        found |= {artifact.GRAPH: graphs[0], artifact.PARAMS: params[0]}
    return {**found, artifact.META: metas[0]} if len(metas) == 1 else found


def _is_graph(file: Path) -> bool:
    try:
        msgspec.json.decode(file.read_bytes(), type=Graph)
    except msgspec.DecodeError:
        return False
    return True


def arch_of(library: Path) -> str:
    """Return the architecture of an ELF library, as `platform.machine()` says there."""
    with library.open("rb") as stream:
        head = stream.read(20)
    machine = struct.unpack_from("<H", head, 18)[0] if head.startswith(b"\x7fELF") and len(head) == 20 else 0
    return _MACHINES.get(machine, "unknown")


def target_name(job: Job, arch: str) -> str:
    """Return the name of a job's target, which goes into the artifact's."""
    platform, device = job.OutputConfig.TargetPlatform, job.OutputConfig.TargetDevice
    if platform is None:
        return host_name() if device in (None, "native") else str(device)
    return "_".join(filter(None, (platform.Os.lower(), arch, (platform.Accelerator or "").lower())))


def complete(folder: Path, job: Job, known: Known, keep_onnx: bool, log: Log) -> None:
    """Write what is missing for an artifact, pass it through the gate where this machine can, and record what was done.

    Raises:
        Rejected: nothing tells of its tensors, or it does not give what the reference gives.
    """
    arch = arch_of(folder / artifact.LIBRARY)
    is_graph = (folder / artifact.GRAPH).is_file()
    inputs, outputs = _graph_tensors(folder, job, known) if is_graph else _tree_tensors(known)
    if known.source.manifest is not None:
        artifact.check_agreement(known.source.manifest, inputs, outputs)
    if not (folder / artifact.META).is_file():
        artifact.write_meta(folder, inputs, outputs, arch)
    manifest = artifact.declared(known.source, inputs, outputs)
    golden = manifest.golden
    if not is_graph and known.trees is not None:
        asked, answered = {inputs[0].name: known.trees.inputs}, {outputs[0].name: known.trees.outputs}
        artifact.write_golden(folder / artifact.GOLDEN, asked, answered)
        golden = Golden(file=artifact.GOLDEN, rtol=_TREE_TOLERANCE, atol=_TREE_TOLERANCE)
    elif known.onnx is not None and golden is None:
        golden = make_golden(folder, known.onnx, manifest)
    build = Build(
        target=target_name(job, arch),
        arch=arch,
        cpu=compiler_options(job).mcpu or "generic",
        source_sha256=_digest(known.source.file),
        tools={"lisiere": version("lisiere"), "sagemaker-neo": job.CompilationJobName},
        min_glibc=read_needs(folder / artifact.LIBRARY).glibc,
    )
    neo = artifact.GRAPH_FILES if is_graph else artifact.TREE_FILES
    manifest = msgspec.structs.replace(manifest, build=build, neo=neo, golden=golden)
    manifest = artifact.write_meaning(folder, known.source, manifest, known.onnx if keep_onnx else None)
    if why_not := _why_not_here(job, arch, known):
        artifact.write_verified(folder, manifest, Verified(by="nothing", note=why_not))
    else:
        pass_gate(folder, manifest, known.onnx, log, known.trees.reference if known.trees else "onnxruntime")


def _why_not_here(job: Job, arch: str, known: Known) -> str:
    """Return why this machine cannot check the artifact, or nothing."""
    platform = job.OutputConfig.TargetPlatform
    if compiler_options(job).gpu or (platform and platform.Accelerator):
        return "It is for a GPU, and the gate runs on the CPU."
    # An emulator is not what DLR is: code from elsewhere may ask of its host what only DLR gives.
    if arch != this_machine().arch:
        return f"It is for {arch}, and this machine is {this_machine().arch}."
    if known.onnx is None and known.trees is None:
        return f"There is nothing to compare it with: {known.why_not}"
    return ""


def _digest(model: Path) -> str:
    """Return the SHA-256 of a model's file, or of all files of a folder in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(model.rglob("*")) if model.is_dir() else [model]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _tree_tensors(known: Known) -> Tensors:
    if known.trees is None:
        raise Rejected(
            "SageMaker's artifact is an ensemble of trees, which does not say how many features it takes, and the "
            f"model could not be read here: {known.why_not}"
        )
    forest = known.trees.forest
    return (
        (TensorSpec(name=INPUT, shape=(1, forest.features)),),
        (TensorSpec(name=OUTPUT, shape=(1, forest.outputs)),),
    )


class _Tensor(msgspec.Struct):
    """A tensor in a compiled.meta; SageMaker may say more of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class _Model(msgspec.Struct):
    """`Model` of a compiled.meta."""

    Inputs: tuple[_Tensor, ...]
    Outputs: tuple[_Tensor, ...]


class _Meta(msgspec.Struct):
    """A compiled.meta, as far as it is read here."""

    Model: _Model


def _graph_tensors(folder: Path, job: Job, known: Known) -> Tensors:
    """Return the inputs and outputs: from SageMaker's compiled.meta, else from the graph and the job's input names.

    Outputs have the names of the ONNX model where that is known, since the graph may have lost them.
    """
    names = [spec.name for spec in known.model.inputs] if known.model else list(input_shapes(job))
    try:
        if (folder / artifact.META).is_file():
            meta = msgspec.json.decode((folder / artifact.META).read_bytes(), type=_Meta).Model
            found = meta.Inputs, meta.Outputs
        else:
            found = _from_graph(folder / artifact.GRAPH, names)
        inputs, outputs = (
            tuple(msgspec.convert(msgspec.to_builtins(tensor), TensorSpec) for tensor in tensors) for tensors in found
        )
    except (msgspec.DecodeError, ValueError, IndexError) as error:
        raise Rejected(f"SageMaker's artifact does not say what its tensors are: {error}.") from error
    if known.model and len(known.model.outputs) == len(outputs):
        renamed = zip(outputs, known.model.outputs, strict=True)
        outputs = tuple(msgspec.structs.replace(spec, name=name) for spec, name in renamed)
    return inputs, outputs


def _from_graph(file: Path, names: list[str]) -> tuple[tuple[_Tensor, ...], tuple[_Tensor, ...]]:
    graph = msgspec.json.decode(file.read_bytes(), type=Graph)
    rows = {node.name: row for node, row in zip(graph.nodes, graph.node_row_ptr, strict=False)}
    absent = [name for name in names if name not in rows]
    if absent or not names:
        raise ValueError(f"its graph has no input {', '.join(absent) or 'that the job names in DataInputConfig'}")
    shapes, dtypes = graph.attrs.shape[1], graph.attrs.dltype[1]
    heads = [(graph.nodes[node].name, graph.node_row_ptr[node] + output) for node, output, *_ in graph.heads]
    return (
        tuple(_Tensor(name, tuple(shapes[rows[name]]), dtypes[rows[name]]) for name in names),
        tuple(_Tensor(name, tuple(shapes[row]), dtypes[row]) for name, row in heads),
    )
