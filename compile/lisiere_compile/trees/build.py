"""An ensemble that has been read -> its artifact: the library, what tells of it, and the answers it must give."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lisiere.errors import Rejected
from lisiere.models import TensorSpec
from lisiere.models.manifest import Golden, Verified
from lisiere_compile import artifact
from lisiere_compile.link import link
from lisiere_compile.source import Source
from lisiere_compile.target import Target
from lisiere_compile.trees.emit import write_source
from lisiere_compile.trees.load import Loaded
from lisiere_compile.verify import verify_apart

if TYPE_CHECKING:
    from lisiere_compile.compiler import Log

INPUT, OUTPUT = "data", "output"  # libdlr's own name of the one input; it has none for the output
TOLERANCE = 1e-6
TOOLS = ("lisiere", "treelite", "numpy")


def compile_trees(source: Source, loaded: Loaded, target: Target, work: Path, folder: Path, log: Log) -> None:
    """Compile an ensemble into `folder`, all but the archive of it.

    Raises:
        Rejected: what the author says of it does not fit, or it does not give what its library gives.
    """
    forest = loaded.forest
    inputs = (TensorSpec(name=INPUT, shape=(1, forest.features)),)
    outputs = (TensorSpec(name=OUTPUT, shape=(1, forest.outputs)),)
    if (said := source.manifest) is not None:
        if said.golden is not None:
            raise Rejected(
                f"The model.yaml of {said.name} names golden vectors. Leave them out for an ensemble of trees, whose "
                "library gives them."
            )
        # Nothing inside the library bears a name, so the author's hold.
        if len(said.inputs) == len(said.outputs) == 1:
            inputs = (msgspec.structs.replace(inputs[0], name=said.inputs[0].name),)
            outputs = (msgspec.structs.replace(outputs[0], name=said.outputs[0].name),)
        artifact.check_agreement(said, inputs, outputs)
    with log.stage("build"):
        text = write_source(forest, work)
    with log.stage("link"):
        library = link(work, text, None, artifact.LIBRARY, target)
        shutil.copyfile(library, folder / artifact.LIBRARY)
        artifact.write_meta(folder, inputs, outputs, target.arch)
    with log.stage("verify"):
        artifact.write_golden(
            folder / artifact.GOLDEN, {inputs[0].name: loaded.inputs}, {outputs[0].name: loaded.outputs}
        )
        manifest = msgspec.structs.replace(
            artifact.declared(source, inputs, outputs),
            golden=Golden(file=artifact.GOLDEN, rtol=TOLERANCE, atol=TOLERANCE),
            neo=artifact.TREE_FILES,
            build=artifact.build_record(source, target, library, TOOLS),
        )
        manifest = artifact.write_meaning(folder, source, manifest, None)
        log.verdict = verify_apart(folder, None)
        verified = Verified(
            by=log.verdict.backend,
            reference=loaded.reference,
            cases=log.verdict.cases,
            note=log.verdict.note,
        )
        artifact.write_verified(folder, manifest, verified)
