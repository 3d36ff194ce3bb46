"""The component as it ships: built, deployed from its built recipe, and run unprivileged by the laptop nucleus.

Packages come from the artifact, for the system's own Python; nothing is fetched while it is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
import yaml

import lisiere
from lisiere_sim.broker import LOOPBACK
from lisiere_sim.proxy import Proxy
from lisiere_sim.subscriber import Subscriber
from support import require
from support.brokers import running_mosquitto
from support.components import NAME, clone, compiled, finish, start
from support.laptop import PATH, LaptopNucleus, as_json, public_folder, spool_figures
from support.once import made_once

THING = "pi-1"
MODEL = "io.lisiere.model.digits"
PUBLISH = f"{NAME}:mqttproxy:publish"
BACK = 15.0


def pipeline(model: str = "venv/sample/model", fps: float = 25) -> dict[str, Any]:
    source = {"type": "images", "path": "venv/sample/images", "fps": fps, "loop": True}
    return {"name": "digits", "source": source, "model": model}


# Quicker than the default, so that a second of outage is worth something.
QUICK = {NAME: {"merge": {"pipelines": [pipeline()], "retry_max_s": 1, "health_interval_s": 1}}}


def system_python() -> str:
    """The version of the Python that the component will find."""
    found = shutil.which("python3", path=PATH)
    asked = [found, "-c", "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"] if found else ["false"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    version = done.stdout.strip()
    require(done.returncode == 0 and tuple(map(int, version.split("."))) >= (3, 10), "system Python >= 3.10 with venv")
    return version


@pytest.fixture(scope="session")
def packages(builds: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`recipes` and `artifacts` of the component with its packages inside, and of two versions of a model component."""
    version = system_python()

    def make(folder: Path) -> None:
        models = compiled(builds[0], folder / "models")
        out = ["--models", str(models), "--output", str(folder)]
        finish(start(builds[0], *out, "--wheels", "--python", version))
        finish(start(builds[0], MODEL, *out))
        # The same model as another version, which is another digest.
        newer = clone(folder / "newer", 0, 0o644)
        for manifest in (newer / "models" / "digits" / "model.yaml", *models.glob("*/manifest.yaml")):
            manifest.write_text(manifest.read_text().replace("\nversion: 1.0.0\n", "\nversion: 1.1.0\n"))
        finish(start(newer, MODEL, *out))

    return made_once(tmp_path_factory, "component-packages", make)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A root whose environments stay from test to test, since they stand for what a device has installed."""
    with public_folder() as folder:
        yield folder


@pytest.fixture
def root(place: Path) -> Path:
    for name in ("config", "logs", "packages"):
        shutil.rmtree(place / name, ignore_errors=True)
    for folder in place.glob("work/*/*"):
        if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith("env-"):
            shutil.rmtree(folder)
    return place


class Scene:
    """A nucleus, its way to the broker, and a subscriber beside it that no outage concerns."""

    def __init__(self, root: Path, flavour: str, port: int) -> None:
        self.proxy = Proxy((LOOPBACK, port))
        host, proxied = self.proxy.start()
        self.nucleus = LaptopNucleus(root, flavour, f"{host}:{proxied}", THING)
        self.subscriber = Subscriber("lisiere", THING)
        self.subscriber.start((LOOPBACK, port))
        self.spool = self.nucleus.work(NAME) / "spool"
        self._health: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._listener = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._listener.on_connect = lambda client, *_: client.subscribe(f"lisiere/v1/{THING}/health")
        self._listener.on_message = lambda _client, _data, message: self._health.put(message.payload)
        self._listener.connect(LOOPBACK, port)
        self._listener.loop_start()

    def close(self) -> None:
        try:
            self.nucleus.stop()
        finally:
            self._listener.disconnect()
            self._listener.loop_stop()
            self.subscriber.stop()
            self.proxy.stop()

    def more(self, what: str, count: int = 10) -> None:
        """Wait until further results have arrived."""
        before = self.subscriber.snapshot().delivered.get("digits", 0)
        arrived = self.subscriber.wait_for(lambda now: now.delivered.get("digits", 0) >= before + count, BACK)
        assert arrived, f"No results {what}.\n{self.nucleus.tale()}"

    def delivery_failure(self) -> str:
        """Wait for a health message that says that delivery fails, and return why."""
        with contextlib.suppress(queue.Empty):
            while True:
                if why := json.loads(self._health.get(timeout=BACK))["delivery_failure"]:
                    return str(why)
        raise AssertionError(f"No health message says that delivery fails.\n{self.nucleus.tale()}")

    def figures(self) -> dict[str, Any]:
        return spool_figures(self.spool)

    def running(self) -> None:
        self.nucleus.until(lambda: self.nucleus.component(NAME).get("state") == "RUNNING", "to run it", 60)

    def settled(self) -> None:
        """Wait until the deployment that the nucleus began with is over: a second one has to wait for it."""
        assert self.nucleus.deploy()["status"] == "SUCCEEDED"

    def nothing_lost(self) -> None:
        """Stop everything; what the spool gave a number to has arrived, every one of them."""
        self.nucleus.stop()
        figures = self.figures()
        assert figures["waiting"] == 0
        self.subscriber.wait_for(lambda _: not self.subscriber.holes(figures["epoch"], figures["highest"]), BACK)
        assert self.subscriber.holes(figures["epoch"], figures["highest"]) == []
        assert self.subscriber.snapshot().unreadable == 0


@pytest.fixture
def scene(root: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    with running_mosquitto() as port:
        made = Scene(root, request.param, port)
        try:
            yield made
        finally:
            made.close()


both = pytest.mark.parametrize("scene", ["classic", "lite"], indirect=True)


@both
def test_it_loses_nothing_through_outage_kill_and_restart(scene: Scene, packages: Path, tmp_path: Path) -> None:
    nucleus = scene.nucleus
    recipe = packages / "recipes" / f"{NAME}-{lisiere.__version__}.yaml"
    given = ["--recipe", str(recipe), "--artifacts", str(packages / "artifacts")]
    nucleus.start(*given, "--configuration", as_json(QUICK, tmp_path / "quick.json"))
    scene.running()
    scene.settled()
    scene.more("after the deployment")
    process = nucleus.process_of("--greengrass")
    if os.geteuid() == 0:
        assert process.uids().real != 0
    assert process.cwd() == str(nucleus.work(NAME))

    scene.proxy.cut()
    if nucleus.status()["flavour"] == "lite":  # type: ignore[index]
        # It refuses what it cannot send, and the spool on disk holds it; the classic one has a spooler of its own.
        nucleus.until(lambda: scene.figures()["waiting"] >= 20, "to leave results in the spool")
    else:
        nucleus.until(lambda: nucleus.status()["iot_core"]["spooled"] >= 20, "to keep results")  # type: ignore[index]
    scene.proxy.heal()
    scene.more("after the outage")

    process.kill()
    nucleus.until(lambda: nucleus.component(NAME)["restarts"] == 1, "to start it again")
    scene.running()
    scene.more("after the component was killed")

    nucleus.stop()
    nucleus.start()
    scene.running()
    scene.more("after the nucleus was restarted")
    seen = scene.subscriber.seen("digits")
    assert seen.answer["label"] in "0123456789"
    scene.nothing_lost()


def dependent(packages: Path, folder: Path) -> Path:
    """A variant of the inference component whose model is a component of its own, as components/README.md has it."""
    document = yaml.safe_load((packages / "recipes" / f"{NAME}-{lisiere.__version__}.yaml").read_text("utf-8"))
    document["ComponentDependencies"] = {MODEL: {"VersionRequirement": "^1.0.0", "DependencyType": "HARD"}}
    defaults = document["ComponentConfiguration"]["DefaultConfiguration"]
    defaults |= {"pipelines": [pipeline(f"../{MODEL}/model")], "health_interval_s": 1, "retry_max_s": 1}
    folder.mkdir()
    for version in ("1.0.0", "1.1.0"):
        shutil.copy(packages / "recipes" / f"{MODEL}-{version}.yaml", folder)
    (folder / f"{NAME}.yaml").write_text(yaml.safe_dump(document), "utf-8")
    return folder


@both
def test_deployments_take_rights_away_give_them_back_and_replace_the_model(
    scene: Scene, packages: Path, tmp_path: Path
) -> None:
    nucleus = scene.nucleus
    recipes = dependent(packages, tmp_path / "recipes")
    given = ["--recipe", str(recipes), "--artifacts", str(packages / "artifacts")]
    nucleus.start(*given, "--deploy", f"{NAME}={lisiere.__version__}", "--deploy", f"{MODEL}=1.0.0")
    scene.running()
    scene.settled()
    scene.more("of the first model")
    assert scene.subscriber.seen("digits").answer["label"] in "0123456789"

    # What is left tells what is missing.
    left = ["lisiere/v1/+/health", "lisiere/v1/+/status"]
    policy = {"aws.greengrass.ipc.mqttproxy": {PUBLISH: {"resources": left}}}
    nucleus.configure(NAME, merge={"accessControl": policy})
    assert f"does not allow PublishToIoTCore on lisiere/v1/{THING}/" in scene.delivery_failure()
    assert f"does not allow PublishToIoTCore on lisiere/v1/{THING}/result/digits" in nucleus.log(NAME)
    nucleus.until(lambda: scene.figures()["waiting"] >= 20, "to leave results in the spool")
    assert nucleus.component(NAME)["state"] == "RUNNING"
    nucleus.configure(NAME, reset=["/accessControl"])
    scene.more("after the policy came back", 40)

    assert model_version(nucleus) == "1.0.0"
    assert nucleus.deploy(components={MODEL: "1.1.0"})["status"] == "SUCCEEDED"
    assert model_version(nucleus) == "1.1.0"
    scene.running()
    scene.more("of the second model")
    assert nucleus.log(NAME).count("runs digits by") == 2  # it was started anew for the model, and for nothing else
    assert nucleus.component(NAME)["restarts"] == 0
    scene.nothing_lost()


def model_version(nucleus: LaptopNucleus) -> str:
    """The version of the model that the inference component finds beside itself."""
    return str(yaml.safe_load((nucleus.work(MODEL) / "model" / "manifest.yaml").read_text("utf-8"))["version"])
