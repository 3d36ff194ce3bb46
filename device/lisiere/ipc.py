"""The connection to the Greengrass nucleus, by awsiotsdk.

One connection serves the whole component: configuration, state, shadow and messages. It is never renewed by itself;
who owns it hears that it is lost and decides. Nothing that passes through is logged.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lisiere.errors import ConfigError, LisiereError, Permanent, Rejected, Retryable

log = logging.getLogger(__name__)

SOCKET_VARIABLE = "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"
TOKEN_VARIABLE = "SVCUID"  # noqa: S105 - the variable's name
MESSAGE_MAX_BYTES = 128 * 1024  # of a message to AWS IoT Core
# Nucleus lite takes this many bytes after a frame's first twelve, and ends the connection over one more.
LITE_FRAME_BYTES = 10_000
_LITE_SOCKET = "gg-ipc.socket"
_FRAME_OVERHEAD = 450  # headers, checksums and the request's other keys, without topic and payload
_CLOSE_S = 3.0

_PROXY = "aws.greengrass.ipc.mqttproxy"
_PUBSUB = "aws.greengrass.ipc.pubsub"
_SHADOWS = "aws.greengrass.ShadowManager"


class Unauthorized(Retryable):
    """The component's accessControl does not allow a call; a deployment can mend it."""


class NucleusLost(Permanent):
    """The nucleus is gone for good: the component must be started anew, with a new token."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What the nucleus tells a component by environment variables. The token is a secret: it is in no text."""

    socket: str
    token: str = field(repr=False)
    thing: str = ""
    region: str = ""
    nucleus_version: str = ""

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Environment:
        """Read it.

        Raises:
            ConfigError: this process was not started by a nucleus.
        """
        missing = [name for name in (SOCKET_VARIABLE, TOKEN_VARIABLE) if not variables.get(name)]
        if missing:
            raise ConfigError(
                f"`lisiere run --greengrass` is what a Greengrass nucleus starts, but {' and '.join(missing)} "
                "are not set. `lisiere nucleus run` runs the component on this machine without AWS; "
                "`lisiere run CONFIG.yaml` needs no nucleus.",
                "environment",
            )
        return cls(
            variables[SOCKET_VARIABLE],
            variables[TOKEN_VARIABLE],
            variables.get("AWS_IOT_THING_NAME", ""),
            variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION", ""),
            variables.get("GGC_VERSION", ""),
        )

    @property
    def is_lite(self) -> bool:
        """Whether it is nucleus lite: its versions overlap with the classic one's, the name of its socket does not."""
        return Path(self.socket).name == _LITE_SOCKET


class Nucleus:
    """One connection to the nucleus at a time. Every method may be called from any thread.

    Args:
        environment: where it is, and the component's token.
        timeout_s: how long an answer may take.
    """

    def __init__(self, environment: Environment, timeout_s: float = 10.0) -> None:
        self.environment = environment
        self._timeout = timeout_s
        self._client: Any = None
        self._link: Any = None  # what the SDK tells of the connection's end
        self._lock = threading.Lock()
        self._listeners: list[Callable[[str], None]] = []

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._client is not None

    @property
    def is_lite(self) -> bool:
        """Whether it is nucleus lite."""
        return self.environment.is_lite

    def on_lost(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Have `listener` called with a sentence when the connection is lost; return what undoes that.

        It is called on the SDK's thread and must return at once.
        """
        self._listeners.append(listener)

        def undo() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return undo

    def connect(self) -> None:
        """Connect with the environment's token; once connected this does nothing.

        Raises:
            Retryable: the nucleus cannot be reached.
            NucleusLost: it does not know the token, which a restart of the nucleus makes worthless.
            Permanent: awsiotsdk is not installed.
        """
        if self.connected:
            return
        try:
            from awsiot import eventstreamrpc, greengrasscoreipc
        except ImportError as error:
            raise Permanent("awsiotsdk is not installed: `pip install lisiere[greengrass]` brings it.") from error
        logging.getLogger(eventstreamrpc.__name__).setLevel(logging.WARNING)  # in detail it logs payloads
        where, link = self.environment.socket, self._lifecycle(eventstreamrpc.LifecycleHandler)
        try:
            client = greengrasscoreipc.connect(
                ipc_socket=where,
                authtoken=self.environment.token,
                lifecycle_handler=link,
                timeout=self._timeout,
            )
        except eventstreamrpc.AccessDeniedError as error:
            raise NucleusLost(f"The nucleus at {where} does not know this component's token.") from error
        except (FutureTimeout, TimeoutError) as error:
            raise Retryable(f"The nucleus at {where} did not answer within {self._timeout:g} s.") from error
        except Exception as error:
            raise Retryable(f"The nucleus at {where} cannot be reached: {error}") from error
        with self._lock:
            if link.ended:
                raise Retryable(f"The nucleus at {where} ended the connection at once.")
            self._client, self._link = client, link

    def close(self) -> None:
        """End the connection; nobody is told that it is lost."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            try:
                client.close().result(_CLOSE_S)
            except Exception as error:  # noqa: BLE001 - it is over either way, whatever the SDK says of it
                log.debug("The connection to the nucleus ended with %s.", type(error).__name__)

    def configuration(self) -> dict[str, Any]:
        """Return the component's whole configuration.

        Raises:
            Retryable: the nucleus is away or fails.
        """
        from awsiot.greengrasscoreipc import model

        request = model.GetConfigurationRequest(key_path=[])
        try:
            answer = self._wait(self._ask("get_configuration", request, "GetConfiguration", "", ""))
        except Rejected:  # ResourceNotFoundError: there is none at all
            return {}
        return dict(answer.value or {})

    def watch_configuration(self, changed: Callable[[], None], over: Callable[[], None]) -> None:
        """Have `changed` called, on the SDK's thread, each time the component's configuration has changed.

        Args:
            changed: must return at once, as must the next.
            over: called when the nucleus ends this, whether or not the connection stays.

        Raises:
            Retryable: the nucleus is away or fails.
        """
        from awsiot.greengrasscoreipc import client, model

        end = _StreamEnd(over)

        class Handler(client.SubscribeToConfigurationUpdateStreamHandler):  # type: ignore[misc,unused-ignore]
            def on_stream_event(self, _event: Any) -> None:
                changed()

            def on_stream_closed(self) -> None:
                end.closed()

        request = model.SubscribeToConfigurationUpdateRequest(key_path=[])
        self._wait(
            self._ask("subscribe_to_configuration_update", request, "SubscribeToConfigurationUpdate", "", "", Handler())
        )
        end.begun()

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> Future[Any]:
        """Hand one message to IoT Core. The future ends when the nucleus has taken it, or with an error of our tree.

        Raises:
            Retryable: there is no connection.
        """
        from awsiot.greengrasscoreipc import model

        request = model.PublishToIoTCoreRequest(topic_name=topic, qos=str(qos), payload=payload)
        if retain and hasattr(request, "retain"):  # since awsiotsdk 1.22
            request.retain = True
        return self._ask("publish_to_iot_core", request, "PublishToIoTCore", topic, _PROXY)

    def subscribe(self, topic: str, arrived: Callable[[str, bytes], None], over: Callable[[], None]) -> None:
        """Have `arrived` called, on the SDK's thread, with the topic and payload of what comes from IoT Core.

        Args:
            topic: wildcards are allowed.
            arrived: must return at once, as must the next.
            over: called when the nucleus ends this, whether or not the connection stays.

        Raises:
            Retryable: the nucleus is away, fails, or does not allow it.
        """
        from awsiot.greengrasscoreipc import client, model

        end = _StreamEnd(over)

        class Handler(client.SubscribeToIoTCoreStreamHandler):  # type: ignore[misc,unused-ignore]
            def on_stream_event(self, event: Any) -> None:
                message = event.message
                if message is not None:
                    arrived(message.topic_name or "", message.payload or b"")

            def on_stream_closed(self) -> None:
                end.closed()

        request = model.SubscribeToIoTCoreRequest(topic_name=topic, qos="1")
        self._wait(self._ask("subscribe_to_iot_core", request, "SubscribeToIoTCore", topic, _PROXY, Handler()))
        end.begun()

    def publish_locally(self, topic: str, payload: bytes) -> Future[Any]:
        """Hand one message to the other components of this device; see `publish`.

        Raises:
            Retryable: there is no connection.
            Rejected: it is too large.
        """
        from awsiot.greengrasscoreipc import model

        if self.is_lite and frame_bytes(topic, len(payload)) > LITE_FRAME_BYTES:
            raise Rejected(f"A message of {len(payload)} bytes does not fit into nucleus lite's IPC.")
        message = model.PublishMessage(binary_message=model.BinaryMessage(message=payload))
        request = model.PublishToTopicRequest(topic=topic, publish_message=message)
        return self._ask("publish_to_topic", request, "PublishToTopic", topic, _PUBSUB)

    def update_state(self, state: str) -> None:
        """Tell the nucleus that the component is RUNNING or ERRORED.

        Raises:
            LisiereError: it could not be told.
        """
        from awsiot.greengrasscoreipc import model

        self._wait(self._ask("update_state", model.UpdateStateRequest(state=state), "UpdateState", "", ""))

    def update_shadow(self, name: str, document: bytes) -> None:
        """Merge a document into one of the thing's named shadows.

        Raises:
            LisiereError: there is no shadow manager, it does not allow this, or it fails.
        """
        from awsiot.greengrasscoreipc import model

        thing = self.environment.thing
        request = model.UpdateThingShadowRequest(thing_name=thing, shadow_name=name, payload=document)
        resource = f"$aws/things/{thing}/shadow/name/{name}"
        self._wait(self._ask("update_thing_shadow", request, "UpdateThingShadow", resource, _SHADOWS))

    def _lifecycle(self, base: type[Any]) -> Any:
        """What the SDK tells of the connection's end; an end that `close` asked for is none to tell."""
        lost = self._lost

        class Handler(base):  # type: ignore[misc]
            ended = False

            def on_disconnect(self, reason: Exception | None) -> None:
                lost(self, reason)

        return Handler()

    def _lost(self, link: Any, reason: Exception | None) -> None:
        """Hear that a connection has ended: the present one, or one that was given up while it was being made."""
        with self._lock:
            link.ended = True
            if self._client is None or self._link is not link:
                return
            self._client = None
        why = f"The connection to the nucleus was lost ({reason or 'it was closed'})."
        for listener in list(self._listeners):
            listener(why)

    def _ask(
        self, call: str, request: Any, operation: str, resource: str, service: str, handler: Any = None
    ) -> Future[Any]:
        """Start one operation and return its answer to come.

        Raises:
            Retryable: there is no connection.
        """
        client = self._client
        if client is None:
            raise Retryable("There is no connection to the Greengrass nucleus.")
        answer: Future[Any] = Future()
        explain = functools.partial(_error, operation, resource, service)
        try:
            begin = getattr(client, f"new_{call}")
            pending = begin(handler) if handler is not None else begin()
            sent = pending.activate(request)
            response = pending.get_response()
        except Exception as error:
            raise explain(error) from error

        def settle(outcome: Future[Any]) -> None:
            error = outcome.exception()
            try:
                if error is not None:
                    answer.set_exception(explain(error))
                else:
                    answer.set_result(outcome.result())
            except InvalidStateError:
                pass  # the sending failed and so the response did, too

        def unsent(outcome: Future[Any]) -> None:
            if outcome.exception() is not None:
                settle(outcome)

        sent.add_done_callback(unsent)
        response.add_done_callback(settle)
        return answer

    def _wait(self, answer: Future[Any]) -> Any:
        try:
            return answer.result(self._timeout)
        except (FutureTimeout, TimeoutError) as error:
            raise Retryable(f"The nucleus did not answer within {self._timeout:g} s.") from error


class _StreamEnd:
    """Tells of a subscription's end, but not of one that never began: the SDK says both alike."""

    def __init__(self, over: Callable[[], None]) -> None:
        self._over = over
        self._begun = self._closed = False

    def begun(self) -> None:
        self._begun = True
        if self._closed:
            self._over()

    def closed(self) -> None:
        self._closed = True
        if self._begun:
            self._over()


def frame_bytes(topic: str, payload: int) -> int:
    """Return how many bytes a message of so many needs over the IPC: base64 in JSON, and the frame around it."""
    return _FRAME_OVERHEAD + len(topic.encode()) + 4 * -(-payload // 3)


def _error(operation: str, resource: str, service: str, error: BaseException) -> LisiereError:
    """Put an error of the SDK into our tree. Nucleus lite gives no sentence that the SDK can read, only the kind."""
    name = type(error).__name__
    said = f": {text}" if (text := str(getattr(error, "message", None) or "").strip()) else "."
    on = f" on {resource}" if resource else ""
    if name == "UnauthorizedError":
        entry = f" under {service}, operation aws.greengrass#{operation}, resource {resource}" if resource else ""
        return Unauthorized(
            f"The nucleus does not allow {operation}{on}. The component's accessControl must have an entry{entry}."
        )
    if name in ("InvalidArgumentsError", "ResourceNotFoundError"):
        return Rejected(f"The nucleus refuses {operation}{on} ({name}){said}")
    if name in ("StreamClosedError", "ConnectionClosedError"):
        return Retryable("There is no connection to the Greengrass nucleus.")
    return Retryable(f"{operation}{on} failed in the nucleus ({name}){said}")
