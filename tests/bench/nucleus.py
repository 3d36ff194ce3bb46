"""The laptop nucleus: what a call costs, how many publishes it sustains on one core, and how soon a component runs.

The nucleus is `lisiere nucleus run` in a process of its own, and who calls it is the real SDK, in this one.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.outcome import Outcome
from lisiere_sim.broker import EmbeddedBroker, find_mosquitto
from lisiere_sim.greengrass import COMPONENT, GreengrassDevice
from lisiere_sim.models import find_data, find_model
from lisiere_sim.nucleus.control import ask
from lisiere_sim.nucleus.flavour import FLAVOURS
from lisiere_sim.nucleus.ipc.frames import MESSAGE, encode
from lisiere_sim.subscriber import Subscriber

NAME = "com.example.Bench"
TOPIC = "bench/results"
PAYLOAD = b"x" * 992  # with its number as long as a result
_CALLS = 300
_PUBLISH_S = 6.0
_UNDER_WAY = {"classic": 64, "lite": 10}  # lite refuses more
_HELD = 1000
_START_S = 60.0
_ECHO = """
import socket, sys
server = socket.socket(socket.AF_UNIX); server.bind(sys.argv[1]); server.listen(1); print(flush=True)
line, _ = server.accept()
asked, answer = int(sys.argv[2]), b"x" * int(sys.argv[3])
while True:
    got = 0
    while got < asked:
        data = line.recv(asked - got)
        if not data:
            sys.exit()
        got += len(data)
    line.sendall(answer)
"""


_SUBSCRIBER = """
import sys, paho.mqtt.client as paho
client = paho.Client(paho.CallbackAPIVersion.VERSION2)
seen = set()
client.on_message = lambda c, d, message: seen.add(message.payload[:8])
client.on_subscribe = lambda *_: print(flush=True)
client.connect(sys.argv[1], int(sys.argv[2]))
client.subscribe(sys.argv[3], 1)
client.loop_start()
for line in sys.stdin:
    print(len(seen), flush=True)
client.loop_stop()
"""


class Counter:
    """A subscriber in a process of its own that counts distinct messages."""

    def __init__(self, address: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SUBSCRIBER, *address, TOPIC],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def count(self) -> int:
        """Return how many have arrived."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._line())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdout is not None
        self._process.communicate(timeout=10)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


class Running:
    """A nucleus with one component, which does nothing but lend its token."""

    def __init__(self, root: Path, flavour: str, process: subprocess.Popen[bytes]) -> None:
        self.root = root
        self.process = process
        self._socket = str(root / FLAVOURS[flavour].socket)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.root / "control.socket", {"do": "status"}, 30)
        return found

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """Connect the SDK as the component."""
        from awsiot.greengrasscoreipc import connect
        from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2

        token = (self.root / "work" / NAME / "token").read_text().strip()
        client = GreengrassCoreIPCClientV2(client=connect(ipc_socket=self._socket, authtoken=token, timeout=10))
        try:
            yield client
        finally:
            client.close().result(10)


@contextlib.contextmanager
def running(root: Path, broker: str, flavour: str, cores: set[int] | None = None) -> Iterator[Running]:
    """Run a nucleus, and the broker with it, on some cores."""
    recipe = root / "recipe.yaml"
    policy = {"operations": ["*"], "resources": ["*"]}
    document = {
        "RecipeFormatVersion": "2020-01-25",
        "ComponentName": NAME,
        "ComponentVersion": "1.0.0",
        "ComponentConfiguration": {
            "DefaultConfiguration": {
                "mqtt": {"topic": "a/b/c"},
                "accessControl": {"aws.greengrass.ipc.mqttproxy": {f"{NAME}:1": policy}},
            }
        },
        "Manifests": [
            {
                "Platform": {"os": "linux", "runtime": "*"},
                "Lifecycle": {"run": 'umask 77; echo "$SVCUID" > token.new; mv token.new token; exec sleep 3600'},
            }
        ],
    }
    recipe.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "lisiere", "nucleus", "run", "--root", str(root), "--recipe", str(recipe)]
    command += [
        "--broker",
        broker,
        "--flavour",
        flavour,
        "--no-limits",
        "--component-user",
        str(psutil.Process().username()),
    ]
    before = os.sched_getaffinity(0)
    try:
        if cores:
            os.sched_setaffinity(0, cores)  # a child inherits it, and so do its threads and children
        with (root / "nucleus.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    finally:
        os.sched_setaffinity(0, before)
    try:
        until = time.monotonic() + _START_S
        while not (root / "work" / NAME / "token").is_file():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((root / "nucleus.log").read_text()[-2000:])
            time.sleep(0.02)
        yield Running(root, flavour, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextlib.contextmanager
def echo(folder: Path, asked: int, answered: int) -> Iterator[socket.socket]:
    """A process that answers so many bytes with so many others, and a connection to it."""
    path = folder / "echo.socket"
    process = subprocess.Popen(
        [sys.executable, "-c", _ECHO, str(path), str(asked), str(answered)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(path))
            yield line
    finally:
        process.wait(10)
        process.stdout.close()


def round_trip(rounds: int, folder: Path) -> list[Outcome]:
    """GetConfiguration of a leaf by the SDK, in turns with a bare socket that carries the same bytes."""
    headers = {":content-type": "application/json", "service-model-type": "aws.greengrass#GetConfigurationRequest"}
    asked = len(
        encode(
            MESSAGE, 0, 1, {**headers, "operation": "aws.greengrass#GetConfiguration"}, b'{"keyPath":["mqtt","topic"]}'
        )
    )
    body = f'{{"componentName":"{NAME}","value":{{"topic":"a/b/c"}}}}'.encode()
    headers["service-model-type"] = "aws.greengrass#GetConfigurationResponse"
    answered = len(encode(MESSAGE, 2, 1, headers, body))
    medians: list[float] = []
    ratios: list[float] = []
    with (
        running(folder, "embedded", "classic") as nucleus,
        nucleus.client() as client,
        echo(folder, asked, answered) as line,
    ):
        for _ in range(rounds):
            ours, bare = [], []
            for _ in range(_CALLS):
                begun = time.perf_counter()
                client.get_configuration(key_path=["mqtt", "topic"])
                ours.append(time.perf_counter() - begun)
            for _ in range(_CALLS):
                begun = time.perf_counter()
                line.sendall(b"x" * asked)
                left = answered
                while left:
                    left -= len(line.recv(left))
                bare.append(time.perf_counter() - begun)
            medians.append(statistics.median(ours) * 1000)
            ratios.append(statistics.median(ours) / statistics.median(bare))
    p50, ratio = statistics.median(medians), statistics.median(ratios)
    what = f"{asked} bytes out and {answered} back over a bare Unix socket, which is {ratio:.1f} times as fast"
    return [Outcome("GetConfiguration of a leaf, p50", what, p50, "ms", "<= 2", p50 <= 2)]


def publishes(folder: Path, broker: str, flavour: str) -> Outcome:
    """How many PublishToIoTCore a second reach a subscriber through nucleus and broker on one core.

    SDK and subscriber have the other cores. What is under way is bounded, so that the slowest part sets the pace.
    """
    cores = sorted(os.sched_getaffinity(0))
    others = set(cores[:-1]) or set(cores)
    with running(folder, broker, flavour, {cores[-1]}) as nucleus, nucleus.client() as client:
        (address,) = re.findall(r"broker \S+ at (\S+):(\d+)", (folder / "nucleus.log").read_text())
        before = os.sched_getaffinity(0)
        _pin(os.getpid(), others)
        subscriber = Counter(address)
        room = threading.Semaphore(_UNDER_WAY[flavour])
        failed: list[BaseException] = []

        def answered(future: Future[Any]) -> None:
            if (error := future.exception()) is not None:
                failed.append(error)
            room.release()

        try:
            sent = arrived = 0
            begun = time.perf_counter()
            while time.perf_counter() - begun < _PUBLISH_S and not failed:
                while sent - arrived > _HELD:  # classic answers before the broker does, until its spooler is full
                    arrived = subscriber.count()
                    time.sleep(0.01)
                room.acquire()
                payload = b"%08d" % sent + PAYLOAD
                client.publish_to_iot_core_async(topic_name=TOPIC, qos="1", payload=payload).add_done_callback(answered)
                sent += 1
            until = time.monotonic() + 60
            while subscriber.count() < sent and not failed:
                if time.monotonic() > until:
                    raise RuntimeError(f"Of {sent} publishes {subscriber.count()} arrived.")
                time.sleep(0.01)
            rate = sent / (time.perf_counter() - begun)
        finally:
            subscriber.close()
            _pin(os.getpid(), before)
        if failed:
            raise RuntimeError((folder / "nucleus.log").read_text()[-2000:]) from failed[0]
    core = "one core" if len(cores) > 1 else "the only core, which SDK and subscriber share"
    against = f"nothing; all {sent} reached the subscriber, {len(payload)} bytes each, nucleus and broker on {core}"
    return Outcome(f"PublishToIoTCore/s, {broker}, {flavour}", against, rate, "/s", ">= 1000", rate >= 1000)


def _pin(pid: int, cores: set[int]) -> None:
    """Bind all threads of a process to cores."""
    for thread in psutil.Process(pid).threads():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, cores)


def start(rounds: int, folder: Path, models: Path) -> list[Outcome]:
    """From starting the nucleus to the component RUNNING, and to its first result at a subscriber."""
    repository = Path(__file__).resolve().parents[2]
    model = find_model("digits", models, repository, "$", print)
    images = folder / "images"
    images.mkdir()
    glyphs = find_data("models/digits/heldout.npz", repository, "$")
    _render(glyphs, images)
    running_s, first_s = [], []
    broker = EmbeddedBroker()
    link = broker.start()
    try:
        for number in range(rounds):
            home = folder / str(number)
            home.mkdir()
            source = {"type": "images", "path": str(images), "fps": 20, "loop": True}
            pipelines = [{"name": "dock", "source": source, "model": str(model)}]
            name = f"bench-{number}"
            device = GreengrassDevice(home, name, pipelines, link, "lisiere")
            subscriber = Subscriber("lisiere", name)
            subscriber.start(link)
            try:
                begun = time.perf_counter()
                device.start()
                while not any(one["state"] == "RUNNING" for one in device.components()):
                    device.check()
                    time.sleep(0.005)
                running_s.append(time.perf_counter() - begun)
                if not subscriber.wait_for(lambda seen: seen.delivered.get("dock", 0) > 0, _START_S):
                    raise RuntimeError(f"No result came.{device.last_words()}")
                first_s.append(time.perf_counter() - begun)
                device.stop()
            finally:
                device.close()
                subscriber.stop()
    finally:
        broker.stop()
    ran, first = statistics.median(running_s), statistics.median(first_s)
    against = f"nothing; the first result reached a subscriber after {first:.2f} s"
    return [Outcome(f"nucleus start to {COMPONENT.rpartition('.')[2]} RUNNING", against, ran, "s", "<= 5", ran <= 5)]


def _render(glyphs: Path, folder: Path) -> None:
    import cv2
    import numpy as np

    from lisiere_sim.digits import render

    rng = np.random.default_rng(0)
    with np.load(glyphs) as archive:
        for number in range(5):
            cv2.imwrite(str(folder / f"{number}.jpg"), render(archive["glyphs"][number], rng))


def run(rounds: int, work: Path, models: Path) -> list[Outcome]:
    """Measure all of it.

    Args:
        work: for the roots of the devices; those of nuclei go to a temporary folder, since a socket's path is short.
        models: compiled models.
    """
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="gg") as short:

        def root() -> Path:
            return Path(tempfile.mkdtemp(dir=short))

        outcomes += round_trip(rounds, root())
        brokers = ["embedded", *(["mosquitto"] if find_mosquitto() else [])]
        outcomes += [publishes(root(), broker, flavour) for broker in brokers for flavour in ("classic", "lite")]
    home = work / "start"
    home.mkdir()
    outcomes += start(min(rounds, 5), home, models)
    return outcomes
