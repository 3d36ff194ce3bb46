"""The nucleus' IPC for tests: the real server on a thread, with the operations that a test wants, for the real SDK."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lisiere_sim.loopthread import LoopThread
from lisiere_sim.nucleus.access import Access
from lisiere_sim.nucleus.call import Call, IpcError, Operation, Stream
from lisiere_sim.nucleus.configuration import ConfigurationStore
from lisiere_sim.nucleus.flavour import CLASSIC, Flavour
from lisiere_sim.nucleus.ipc import frames
from lisiere_sim.nucleus.ipc.configuration import ConfigurationOperations
from lisiere_sim.nucleus.ipc.journal import Journal
from lisiere_sim.nucleus.ipc.pubsub import PubSub, matches
from lisiere_sim.nucleus.ipc.server import IpcServer, Limits
from lisiere_sim.nucleus.ipc.shadow import ShadowOperations
from lisiere_sim.nucleus.shadows import Shadows
from lisiere_sim.nucleus.tokens import Tokens

THING = "thing-1"


class Cloud:
    """IoT Core as a test wants it: keeps what is published, fails as it is told to, delivers when it is told to.

    Attributes:
        published: (topic, payload) in the order of arrival.
        outcome: what PublishToIoTCore fails with; None: it succeeds.
        states: (component, state) as UpdateState reported them.
    """

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.outcome: IpcError | None = None
        self.states: list[tuple[str, str]] = []
        self._streams: list[tuple[str, Stream]] = []

    def operations(self) -> dict[str, Operation]:
        return {
            "PublishToIoTCore": self._publish,
            "SubscribeToIoTCore": self._subscribe,
            "UpdateState": self._update_state,
        }

    def deliver(self, topic: str, payload: bytes) -> None:
        """Send a message to whoever has subscribed to it; to be called on the server's loop (`Ipc.run`)."""
        message = {"topicName": topic, "payload": base64.b64encode(payload).decode()}
        for pattern, stream in self._streams:
            if matches(tuple(pattern.split("/")), tuple(topic.split("/"))):
                stream.send("IoTCoreMessage", {"message": message})

    async def _publish(self, call: Call) -> dict[str, Any]:
        if self.outcome is not None:
            raise self.outcome
        self.published.append((call.request["topicName"], base64.b64decode(call.request["payload"])))
        return {}

    async def _subscribe(self, call: Call) -> dict[str, Any]:
        entry = (call.request["topicName"], call.stream)
        self._streams.append(entry)
        call.stream.on_close(lambda: self._streams.remove(entry))
        return {}

    async def _update_state(self, call: Call) -> dict[str, Any]:
        self.states.append((call.component, call.request["state"]))
        return {}


class Ipc:
    """A running IPC server and what stands behind it. `ipc()` makes one."""

    def __init__(self, folder: Path, flavour: Flavour, limits: Limits | None, more: dict[str, Operation]) -> None:
        self.loop = LoopThread("nucleus")
        self.store = ConfigurationStore()
        self.access = Access(self.store, THING, flavour)
        self.shadows = Shadows()
        self.tokens = Tokens()
        self.lines: list[str] = []
        self.journal = Journal(self.lines.append)
        self.cloud = Cloud()
        pubsub = PubSub(self.access, flavour)
        self.operations: dict[str, Operation] = {
            **ConfigurationOperations(self.store).operations(),
            **pubsub.operations(),
            **(ShadowOperations(self.shadows, self.access, pubsub.publish).operations() if flavour.shadows else {}),
            **self.cloud.operations(),
            **more,
        }
        self.server = IpcServer(
            folder / flavour.socket, self.tokens.authenticate, self.operations, flavour, self.journal, limits
        )
        self._issued: dict[str, str] = {}

    def run(self, work: Callable[[], Any]) -> Any:
        """Call something on the server's loop, where everything behind it lives, and return what it returns."""

        async def done() -> Any:
            return work()

        return self.loop.call(done())

    def token(self, component: str) -> str:
        """Return the component's token; it is issued at the first call."""
        if component not in self._issued:
            self._issued[component] = self.run(lambda: self.tokens.issue(component))
        return self._issued[component]

    def environment(self, component: str) -> dict[str, str]:
        """Return what a nucleus puts into the environment of a component's processes."""
        return {
            "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT": str(self.server.socket),
            "SVCUID": self.token(component),
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": self.token(component),
            "AWS_IOT_THING_NAME": THING,
            "AWS_REGION": "eu-west-1",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "GGC_VERSION": self.server.flavour.version,
        }

    def allow(self, component: str, service: str, operations: list[str], resources: list[str]) -> None:
        """Let a component do operations (short names, or `*`) on resources, by a policy in its accessControl."""
        names = [name if name == "*" else f"aws.greengrass#{name}" for name in operations]
        policy = {f"{component}:{service}:1": {"operations": names, "resources": resources}}
        self.run(lambda: self.store.merge(component, ("accessControl", service), policy, 1.0))

    @contextlib.contextmanager
    def client(self, component: str) -> Iterator[Any]:
        """Connect a real SDK client (GreengrassCoreIPCClientV2) as a component."""
        from awsiot.greengrasscoreipc import connect
        from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2

        raw = connect(ipc_socket=str(self.server.socket), authtoken=self.token(component), timeout=10)
        client = GreengrassCoreIPCClientV2(client=raw)
        try:
            yield client
        finally:
            closed = client.close()
            with contextlib.suppress(Exception):  # how the connection ended, if the server ended it
                closed.result(10)


class Raw:
    """A client that sends the bytes it is told to, after a handshake if it has a token."""

    def __init__(self, nucleus: Ipc, component: str = "") -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(10)
        self._socket.connect(str(nucleus.server.socket))
        self._decoder = frames.Decoder()
        self._found: list[frames.Frame] = []
        if component:
            self.send(hello(nucleus.token(component)))
            assert self.next() == frames.Frame(frames.CONNECT_ACK, frames.ACCEPTED, 0, {}, b"")

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def call(self, operation: str, stream: int, body: bytes = b"{}") -> None:
        self.send(frames.encode(frames.MESSAGE, 0, stream, {"operation": f"aws.greengrass#{operation}"}, body))

    def next(self) -> frames.Frame | None:
        """Return the next frame, or None when the server has ended the connection."""
        while not self._found:
            try:
                data = self._socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._found += self._decoder.feed(data)
        return self._found.pop(0)


def hello(token: str) -> bytes:
    """Return the message with which a client connects."""
    body = json.dumps({"authToken": token}).encode()
    return frames.encode(frames.CONNECT, 0, 0, {":version": "0.1.0"}, body)


@contextlib.contextmanager
def ipc(
    flavour: Flavour = CLASSIC, limits: Limits | None = None, more: dict[str, Operation] | None = None
) -> Iterator[Ipc]:
    """Run an IPC server with configuration, pub/sub, shadows and a `Cloud`; `more` operations replace these."""
    with tempfile.TemporaryDirectory(prefix="gg") as folder:  # short: a socket's path has 107 bytes
        running = Ipc(Path(folder), flavour, limits, more or {})
        try:
            running.loop.call(running.server.start())
            yield running
        finally:
            running.loop.call(running.server.stop())
            running.loop.stop()


@contextlib.contextmanager
def refused(code: str, *words: str) -> Iterator[None]:
    """Expect one of the SDK's errors, with these words in its message."""
    from awsiot.greengrasscoreipc import model

    with pytest.raises(getattr(model, code)) as caught:
        yield
    for word in words:
        assert word in (caught.value.message or ""), caught.value
