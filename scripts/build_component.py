"""Build Greengrass components: recipe and artifacts as GDK and a local deployment take them.

The same tree on the same machine gives the same bytes. `scripts/build-component` runs this in the project's `.venv`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lisiere import __version__
from lisiere.errors import ConfigError, LisiereError, Permanent
from lisiere.models.package import open_package

ROOT = Path(__file__).resolve().parents[1]
INFERENCE = "io.lisiere.EdgeInference"
MODEL_PREFIX = "io.lisiere.model."
SAMPLE = "digits"
# What a recipe calls an architecture -> what the compiler calls the oldest machine of it that is meant.
TARGETS = {"aarch64": "aarch64", "amd64": "x86_64", "arm": "rasp3b"}
# What `uname -m` and the names of wheels call it -> the platform tags of wheels that run there, newest first.
PLATFORMS = {
    machine: [f"manylinux_2_{minor}_{machine}" for minor in (34, 31, 28, 27, 17)] + [f"manylinux2014_{machine}"]
    for machine in ("aarch64", "x86_64", "armv7l")
}
PLATFORMS["x86_64"].append("manylinux1_x86_64")  # dlr's
PLATFORMS["armv7l"].append("linux_armv7l")  # what piwheels has
EXTRAS = ("camera", "dlr", "greengrass", "onnx", "sensors")  # of those that pyproject.toml has, the device's
IMAGES = 20
# Fixed in every archive, since the tree has no say in when it was checked out.
STAMP = (2020, 2, 2, 0, 0, 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what the command line asks for; return an exit code."""
    parser = argparse.ArgumentParser(prog="build-component", description=__doc__.partition("\n")[0])
    names = [INFERENCE, *sorted(file.parent.name for file in ROOT.glob(f"components/{MODEL_PREFIX}*/recipe.yaml"))]
    parser.add_argument("name", nargs="?", default=INFERENCE, choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="for local deployments, of several components together: recipes/NAME-VERSION.yaml and artifacts/; "
        "without it, greengrass-build/ beside gdk-config.json, as GDK wants it",
    )
    parser.add_argument(
        "--wheels",
        nargs="?",
        const=platform.machine(),
        choices=sorted(PLATFORMS),
        metavar="PLATFORM",
        help=f"put the packages for a platform ({', '.join(sorted(PLATFORMS))}) into the artifact, so that the device "
        "needs no index; without a name, this machine's",
    )
    parser.add_argument(
        "--python",
        default="{}.{}".format(*sys.version_info),
        metavar="VERSION",
        help="the device's Python, for --wheels: 3.11 for Debian 12, 3.13 for Debian 13; else this one's",
    )
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="take compiled models (<name>-<target>) from here; else compile them"
    )
    args = parser.parse_args(arguments)
    try:
        recipe = build(args.name, args.output, args.wheels, args.python, args.models)
    except LisiereError as error:
        sys.stderr.write(f"build-component: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    sys.stdout.write(f"{recipe}\n")
    return 0


def build(name: str, output: Path | None, wheels: str | None, python: str, models: Path | None) -> Path:
    """Build one component and return its recipe.

    What an earlier build of this component left is replaced once this one has succeeded.

    Args:
        name: of the component.
        output: see `--output`.
        wheels: the platform whose packages go into the artifact, or None.
        python: the device's Python, for `wheels`.
        models: see `--models`.

    Raises:
        ConfigError: something that was asked for does not fit.
        Permanent: a tool failed; the message has its words.
    """
    if not re.fullmatch(r"3\.\d+", python):
        raise ConfigError(f"{python!r} is no version such as 3.11.", "--python")
    if wheels is not None and name != INFERENCE:
        raise ConfigError(f"{name} has no packages.", "--wheels")
    if wheels is not None and wheels not in PLATFORMS:
        raise ConfigError(f"No device is a {wheels}. Say which of {', '.join(sorted(PLATFORMS))}.", "--wheels")
    home = ROOT if name == INFERENCE else ROOT / "components" / name
    with tempfile.TemporaryDirectory(prefix="lisiere-component-") as folder:
        work = Path(folder)
        if name == INFERENCE:
            version = __version__
            artifacts = {f"{INFERENCE}.zip": _inference(work, wheels, python, models)}
        else:
            model = name.removeprefix(MODEL_PREFIX)
            version = open_package(ROOT / "models" / model).manifest.version
            compiled = _compiled(model, work, models)
            script = {"install.sh": (ROOT / "components" / "install-model.sh").read_bytes()}
            artifacts = {
                f"{architecture}.zip": script | _tree(compiled[architecture], "model") for architecture in TARGETS
            }
        base = output or home / "greengrass-build"
        target = base / "artifacts" / name / version
        shutil.rmtree(target.parent if output is None else target, ignore_errors=True)
        target.mkdir(parents=True)
        for archive, files in artifacts.items():
            _write_zip(target / archive, files)
    recipe = base / "recipes" / ("recipe.yaml" if output is None else f"{name}-{version}.yaml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(_filled(home / "recipe.yaml", name, version), encoding="utf-8")
    return recipe


def _filled(template: Path, name: str, version: str) -> str:
    """A recipe with its variables filled in, but for BUCKET_NAME, which GDK fills in when it publishes."""
    text = template.read_text(encoding="utf-8")
    for variable, value in (("COMPONENT_NAME", name), ("COMPONENT_VERSION", version)):
        text = text.replace("{" + variable + "}", value).replace(variable, value)
    yaml.safe_load(text)
    return text


def _inference(work: Path, wheels: str | None, python: str, models: Path | None) -> dict[str, bytes]:
    """The files of the inference component's artifact: name -> content."""
    lock = ROOT / "requirements" / "device.txt"
    wheel = _wheel(work)
    # First what may fail for want of a network.
    packages = {} if wheels is None else _tree(_download(lock, wheel, wheels, python, work / "wheels"), "wheels")
    files = {
        "LICENSE": (ROOT / "LICENSE").read_bytes(),
        "install.sh": (ROOT / "components" / INFERENCE / "install.sh").read_bytes(),
        "requirements.txt": lock.read_bytes(),
        wheel.name: wheel.read_bytes(),
    }
    for architecture, folder in _compiled(SAMPLE, work, models).items():
        files |= _tree(folder, f"sample/{architecture}")
    return files | _images() | packages


def _wheel(work: Path) -> Path:
    """Build the wheel of the device's package alone: neither compiler nor simulator, nor a word of them."""
    from hatchling.builders.wheel import WheelBuilder
    from hatchling.metadata.core import ProjectMetadata

    document: dict[str, Any] = copy.deepcopy(WheelBuilder(str(ROOT)).metadata.config)
    project = document["project"]
    del project["entry-points"]
    project["optional-dependencies"] = {extra: project["optional-dependencies"][extra] for extra in EXTRAS}
    document["tool"]["hatch"]["build"]["targets"]["wheel"] = {"packages": ["device/lisiere"]}
    metadata = ProjectMetadata[Any](str(ROOT), None, document)
    builder = WheelBuilder(str(ROOT), config=document, metadata=metadata)
    (built,) = builder.build(directory=str(work), versions=["standard"])
    return Path(built)


def _compiled(model: str, work: Path, models: Path | None) -> dict[str, Path]:
    """Compile a model for every architecture, or take it from where it lies compiled; architecture -> its folder."""
    found = {}
    for architecture, target in TARGETS.items():
        folder = models / f"{model}-{target}" if models else _compile(model, target, work)
        build = open_package(folder).manifest.build
        if build is None or build.target != target:
            raise ConfigError(f"{folder} is not compiled for {target}.", "--models")
        found[architecture] = folder
    return found


def _compile(model: str, target: str, output: Path) -> Path:
    from lisiere_compile.compiler import compile_job
    from lisiere_compile.job import model_job

    sys.stderr.write(f"compiling {model} for {target}\n")
    source = str(ROOT / "models" / model)
    return compile_job(model_job(source, "ONNX", target, ".", {}, model), ROOT, output=output, keep_onnx=False)


def _images() -> dict[str, bytes]:
    """Pictures of held-out digits, named after what they show."""
    import cv2
    import numpy as np

    from lisiere_sim.digits import render

    rng = np.random.default_rng(0)
    files = {}
    with np.load(ROOT / "models" / SAMPLE / "heldout.npz") as archive:
        glyphs, labels = archive["glyphs"], archive["labels"]
    for number, index in enumerate(rng.permutation(len(glyphs))[:IMAGES]):
        good, data = cv2.imencode(".jpg", render(glyphs[index], rng), [cv2.IMWRITE_JPEG_QUALITY, 85])
        if not good:
            raise Permanent("OpenCV cannot write JPEG.")
        files[f"sample/images/{number:02}-{labels[index]}.jpg"] = data.tobytes()
    return files


def _download(lock: Path, wheel: Path, machine: str, python: str, folder: Path) -> Path:
    """Fetch what the device needs for a platform and a Python into a folder, and return it."""
    folder.mkdir()
    tags = [f"--platform={tag}" for tag in PLATFORMS[machine]]
    form = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *tags, f"--dest={folder}"]
    wanted = folder.parent / "wanted.txt"
    # The lock's hashes are PyPI's; what there is for 32-bit ARM comes from elsewhere.
    lines = _for_device(lock.read_text(encoding="utf-8"), machine, python)
    wanted.write_text("\n".join(line if machine != "armv7l" else line.partition(" ")[0] for line in lines) + "\n")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        _run([sys.executable, "-m", "pip", "download", *quiet, *form, "-r", str(wanted)])
    except Permanent as error:
        raise Permanent(f"There are no wheels for {machine} and Python {python}: {error}") from error
    if machine == "armv7l":  # there all go through find-links, and pip looks for this one too
        shutil.copyfile(wheel, folder / wheel.name)
    return folder


def _for_device(lock: str, machine: str, python: str) -> list[str]:
    """The lines of a lock that hold on the device. pip would ask their markers of the machine that it runs on."""
    from packaging.markers import Marker

    device = {
        "platform_machine": machine,
        "sys_platform": "linux",
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    lines = []
    for line in lock.replace("\\\n", " ").splitlines():
        requirement, *hashes = line.split(" --hash=")
        pin, _, marker = requirement.partition(";")
        if not marker or Marker(marker.strip()).evaluate(device):
            lines.append(" ".join([pin.strip(), *(f"--hash={value.strip()}" for value in hashes)]))
    return lines


def _tree(folder: Path, prefix: str) -> dict[str, bytes]:
    """The files of a folder, as name -> content."""
    return {f"{prefix}/{file.name}": file.read_bytes() for file in sorted(folder.iterdir())}


def _write_zip(archive: Path, files: Mapping[str, bytes]) -> None:
    """Write files and `digest`, the SHA-256 of their names and contents, the same bytes whoever packs them when."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    digest = hashlib.sha256("".join(lines).encode()).hexdigest() + "\n"
    with zipfile.ZipFile(archive, "x") as stream:
        for name, data in sorted({**files, "digest": digest.encode()}.items()):
            info = zipfile.ZipInfo(name, STAMP)
            info.create_system = 3  # whose permissions follow
            info.external_attr = (0o100755 if name.endswith(".sh") else 0o100644) << 16
            # What is compressed already gains nothing.
            info.compress_type = zipfile.ZIP_STORED if name.endswith((".whl", ".jpg", ".npz")) else zipfile.ZIP_DEFLATED
            stream.writestr(info, data)


def _run(command: Sequence[str]) -> None:
    """Run a tool quietly.

    Raises:
        Permanent: it failed; with what it said last.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - tools of this project
    if done.returncode:
        raise Permanent((done.stderr.strip() or done.stdout.strip())[-2000:] or f"{command[0]} failed.")


if __name__ == "__main__":
    sys.exit(main())
