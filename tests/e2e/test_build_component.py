"""scripts/build-component: the same tree gives the same bytes, and what gets to the device is the device's alone."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

import lisiere
from lisiere.models import open_package
from support import REPOSITORY
from support.components import NAME, archive, compiled, digests, finish, start


def test_two_clones_give_the_same_bytes(builds: list[Path]) -> None:
    one, other = (digests(tree / "greengrass-build") for tree in builds)
    assert one == other
    assert set(one) == {"recipes/recipe.yaml", f"artifacts/{NAME}/{lisiere.__version__}/{NAME}.zip"}


def test_the_archive_holds_the_device_and_nothing_of_its_builder(builds: list[Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(archive(builds[0])) as outer:
        outer.extractall(tmp_path)
        members = outer.infolist()
    names = {member.filename for member in members}
    assert {name for name in names if "/" not in name} == {
        "LICENSE",
        "digest",
        "install.sh",
        f"lisiere-{lisiere.__version__}-py3-none-any.whl",
        "requirements.txt",
    }
    assert {member.date_time for member in members} == {(2020, 2, 2, 0, 0, 0)}
    with zipfile.ZipFile(tmp_path / f"lisiere-{lisiere.__version__}-py3-none-any.whl") as wheel:
        inner = {name: wheel.read(name) for name in wheel.namelist()}
    assert {name.partition("/")[0] for name in inner} == {"lisiere", f"lisiere-{lisiere.__version__}.dist-info"}
    assert "lisiere/spool/schema_v1.sql" in inner
    (entry_points,) = (text.decode() for name, text in inner.items() if name.endswith("entry_points.txt"))
    assert entry_points.split("\n\n")[0].strip() == "[console_scripts]\nlisiere = lisiere.cli:main"
    assert "lisiere_" not in entry_points  # neither compiler nor simulator
    place = str(builds[0]).encode()
    assert not [name for name in names if not name.endswith("/") and place in (tmp_path / name).read_bytes()]
    assert not [name for name, text in inner.items() if place in text]


def test_the_sample_model_is_there_for_each_architecture(builds: list[Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(archive(builds[0])) as outer:
        outer.extractall(tmp_path)
    for architecture, target in (("aarch64", "aarch64"), ("amd64", "x86_64"), ("arm", "rasp3b")):
        manifest = open_package(tmp_path / "sample" / architecture).manifest
        assert manifest.build is not None
        assert manifest.build.target == target
    images = sorted((tmp_path / "sample" / "images").iterdir())
    assert len(images) == 20
    assert all(image.stat().st_size < 10_000 for image in images)


def test_gdk_finds_its_bucket_and_nothing_else_to_fill_in(builds: list[Path]) -> None:
    text = (builds[0] / "greengrass-build" / "recipes" / "recipe.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    assert (recipe["ComponentName"], recipe["ComponentVersion"]) == (NAME, lisiere.__version__)
    assert "{COMPONENT" not in text
    for manifest in recipe["Manifests"]:
        (artifact,) = manifest["Artifacts"]
        assert artifact["Uri"] == f"s3://BUCKET_NAME/{NAME}/{lisiere.__version__}/{NAME}.zip"


def test_a_model_component_has_an_archive_for_each_architecture(builds: list[Path], tmp_path: Path) -> None:
    models = compiled(builds[0], tmp_path / "models")
    name = "io.lisiere.model.digits"
    said = finish(start(builds[0], name, "--models", str(models), "--output", str(tmp_path / "out")))
    assert said == f"{tmp_path}/out/recipes/{name}-1.0.0.yaml\n"
    folder = tmp_path / "out" / "artifacts" / name / "1.0.0"
    assert {file.name for file in folder.iterdir()} == {"aarch64.zip", "amd64.zip", "arm.zip"}
    with zipfile.ZipFile(folder / "arm.zip") as stream:
        stream.extractall(tmp_path / "arm")
    build = open_package(tmp_path / "arm" / "model").manifest.build
    assert build is not None
    assert build.target == "rasp3b"


def test_models_of_another_target_are_refused(builds: list[Path], tmp_path: Path) -> None:
    models = compiled(builds[0], tmp_path / "models")
    shutil.rmtree(models / "digits-aarch64")
    shutil.copytree(models / "digits-x86_64", models / "digits-aarch64")
    process = start(builds[0], "--models", str(models), "--output", str(tmp_path / "out"))
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "is not compiled for aarch64" in complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["io.lisiere.Other"], "invalid choice"),
        (["--wheels", "riscv64"], "invalid choice"),
        (["--wheels", "aarch64", "--python", "3"], "is no version such as 3.11"),
        (["io.lisiere.model.pump", "--wheels"], "has no packages"),
    ],
)
def test_what_does_not_fit_is_told(arguments: list[str], sentence: str) -> None:
    process = start(REPOSITORY, *arguments)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 2
    assert sentence in complaint
