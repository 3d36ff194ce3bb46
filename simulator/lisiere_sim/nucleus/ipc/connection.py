"""One client's connection: its handshake, its streams, its calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import msgspec

from lisiere_sim.nucleus.call import Call, IpcError, Operation
from lisiere_sim.nucleus.ipc import frames
from lisiere_sim.nucleus.ipc.frames import Decoder, Frame, FrameError
from lisiere_sim.nucleus.ipc.journal import resource_of

if TYPE_CHECKING:
    from lisiere_sim.nucleus.ipc.server import IpcServer

_PREFIX = "aws.greengrass#"
_VERSION = "0.1.0"
_EARLY_MAX = 1000
# Who has not shown a token may send this much; a connect message is about 100 bytes.
_FRAME_MAX_UNKNOWN = 4096
# What a client may hold back, half of a frame, beyond the payload that is allowed.
_FRAME_MARGIN = 256 * 1024
# Besides its own errors, which are ValueErrors, msgspec lets out these: for wrong UTF-8, and for too many levels.
_NOT_JSON = (ValueError, RecursionError)
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])


class OpenStream:
    """A stream of a connection: the call that opened it, and the events that follow if it is a subscription."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._early: list[tuple[str, dict[str, Any]]] = []
        self._answered = False
        self._closed = False
        self._callbacks: list[Callable[[], None]] = []

    def send(self, shape: str, body: dict[str, Any]) -> None:
        """Send one event; what comes before the response waits for it."""
        if self._closed:
            return
        if not self._answered:
            self._early.append((shape, body))
            if len(self._early) > _EARLY_MAX:
                self._connection.cut_off(f"{_EARLY_MAX} events came before the response to the subscription.")
            return
        self._connection.write(frames.MESSAGE, 0, self._number, shape, _encoder.encode(body))

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have something called when the stream ends, at once if it has."""
        if self._closed:
            callback()
        else:
            self._callbacks.append(callback)

    def answered(self) -> None:
        """Let the events go that came before the response did."""
        self._answered = True
        early, self._early = self._early, []
        for shape, body in early:
            self.send(shape, body)

    def close(self) -> None:
        """Call what waits for the end."""
        self._closed = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class Connection(asyncio.Protocol):
    """One client. Whatever it does wrong ends this connection alone.

    Attributes:
        component: who it is; None until it has shown a token.
        gone: done once nothing of the connection is left.
    """

    def __init__(self, server: IpcServer) -> None:
        self.component: str | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._server = server
        self._limits = server.limits
        self._transport: asyncio.Transport
        self._decoder = Decoder(_FRAME_MAX_UNKNOWN)
        self._streams: dict[int, OpenStream] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._ending = False
        self._paused = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the client's token."""
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        reason = ""
        if len(self._server.connections) > self._limits.connections:
            reason = f"{self._limits.connections} connections are open already."
        elif self._count(None) > self._limits.strangers:
            reason = f"{self._limits.strangers} clients have connected and not shown a token yet."
        if reason:
            self._record("refused", reason)
            self.end()
            return
        self._timer = asyncio.get_running_loop().call_later(self._limits.connect_s, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        try:
            for frame in () if self._ending else self._decoder.feed(data):
                if self._ending:
                    return
                self._take(frame)
        except FrameError as error:
            self._protocol_error(str(error))

    def connection_lost(self, _error: Exception | None) -> None:
        """Close the streams and end the calls that are under way."""
        self._ending = True
        if self._timer is not None:
            self._timer.cancel()
        self._server.connections.discard(self)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.close()
        for call in self._calls:
            call.cancel()
        if not self._calls:
            self._is_gone()

    # What the server and the streams call.

    def end(self) -> None:
        """End the connection once what is written has been sent, or its time is over."""
        self._ending = True
        self._transport.close()
        asyncio.get_running_loop().call_later(self._limits.linger_s, self._transport.abort)

    def cut_off(self, reason: str) -> None:
        """End the connection at once, with what waits to be sent."""
        self._record("disconnected", reason)
        self._ending = True
        self._transport.abort()

    def write(self, kind: int, flags: int, stream: int, shape: str, body: bytes) -> None:
        """Send one message with a body in JSON."""
        headers = {":content-type": "application/json", "service-model-type": _PREFIX + shape}
        self._send(frames.encode(kind, flags, stream, headers, body))

    def _send(self, data: bytes) -> None:
        """Send bytes. A client that has left too much unread is disconnected, so nobody waits for it."""
        if self._ending:
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > self._limits.unsent:
            self.cut_off(f"It left more than {self._limits.unsent} bytes unread.")

    # The protocol.

    def _take(self, frame: Frame) -> None:
        if frame.type == frames.MESSAGE and self.component is not None and frame.stream > 0:
            self._message(frame)
        elif frame.type == frames.CONNECT and self.component is None:
            self._connect(frame)
        elif frame.type == frames.PING and self.component is not None:
            self._send(frames.encode(frames.PING_RESPONSE, 0, 0, None, frame.payload))
        elif frame.type == frames.PING_RESPONSE and self.component is not None:
            pass
        elif frame.type in (frames.PROTOCOL_ERROR, frames.INTERNAL_ERROR):
            self._record("disconnected", f"The client reported an error of type {frame.type}.")
            self.end()
        else:
            self._protocol_error(f"A message of type {frame.type} on stream {frame.stream} was not expected here.")

    def _connect(self, frame: Frame) -> None:
        if self._timer is not None:
            self._timer.cancel()
        reason = ""
        if frame.stream != 0 or frame.headers.get(":version") != _VERSION:
            reason = f"The connect message is not one of version {_VERSION}."
        else:
            try:
                token = msgspec.json.decode(frame.payload, type=dict[str, str]).get("authToken", "")
            except _NOT_JSON:
                token = ""
            self.component = self._server.authenticate(token)
            if self.component is None:
                reason = "The token (SVCUID) is not one of this nucleus; it may be from before a restart."
            elif self._count(self.component) > self._limits.each:
                reason = f"{self._limits.each} connections of {self.component} are open already."
        if reason:
            self._record("refused", reason)
            self._send(frames.encode(frames.CONNECT_ACK, 0, 0))
            self._dismiss()
            return
        self._decoder.frame_max = max(self._server.flavour.ipc_payload_max * 3 // 2, 64 * 1024) + _FRAME_MARGIN
        self._record("ok")
        self._send(frames.encode(frames.CONNECT_ACK, frames.ACCEPTED, 0))

    def _count(self, component: str | None) -> int:
        return sum(1 for one in self._server.connections if one.component == component)

    def _message(self, frame: Frame) -> None:
        open_stream = self._streams.get(frame.stream)
        if frame.flags & frames.TERMINATE:
            # On a stream that the response has ended already there is nothing left to say.
            if open_stream is not None:
                self._close(frame.stream)
                self._send(frames.encode(frames.MESSAGE, frames.TERMINATE, frame.stream))
        elif open_stream is not None:
            self._protocol_error(f"Stream {frame.stream} is open already, and no operation takes a second message.")
        else:
            self._request(frame)

    def _request(self, frame: Frame) -> None:
        name = frame.headers.get("operation")
        if not isinstance(name, str):
            self._protocol_error(f"The message that opens stream {frame.stream} names no operation.")
            return
        short = name.removeprefix(_PREFIX)
        request: dict[str, Any] = {}
        try:
            operation = self._operation(name)
            request = self._body(short, frame.payload)
        except IpcError as error:
            self._fail(frame.stream, short[:100], request, error)
            return
        stream = self._streams[frame.stream] = OpenStream(self, frame.stream)
        call = Call(self.component or "", short, request, stream)
        task = asyncio.get_running_loop().create_task(self._run(frame.stream, operation, call, stream))
        self._calls.add(task)
        task.add_done_callback(self._over)
        if not self._paused and len(self._calls) >= self._limits.calls:
            self._paused = True
            self._transport.pause_reading()

    def _operation(self, name: str) -> Operation:
        operation = self._server.operations.get(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
        if operation is None:
            raise IpcError("ServiceError", f"This nucleus does not have the operation {name[:100]}.")
        if len(self._streams) >= self._limits.streams:
            raise IpcError("ServiceError", f"{self._limits.streams} streams are open; close some first.")
        return operation

    def _body(self, operation: str, payload: bytes) -> dict[str, Any]:
        flavour = self._server.flavour
        if len(payload) > flavour.ipc_payload_max:
            raise IpcError(
                "InvalidArgumentsError",
                f"A message of {len(payload)} bytes is too long: the {flavour.name} nucleus takes "
                f"{flavour.ipc_payload_max} over IPC. Send less at once.",
            )
        try:
            return _decoder.decode(payload) if payload else {}
        except _NOT_JSON as error:
            raise IpcError("InvalidArgumentsError", f"The body of {operation} is not a JSON object: {error}.") from None

    async def _run(self, number: int, operation: Operation, call: Call, stream: OpenStream) -> None:
        try:
            body = _encoder.encode(await operation(call))
        except IpcError as error:
            self._close(number)
            self._fail(number, call.operation, call.request, error)
        except Exception as error:  # noqa: BLE001 - a defect in one operation must not end the nucleus
            self._close(number)
            sentence = f"{call.operation} failed in the nucleus: {type(error).__name__}: {error}"
            self._fail(number, call.operation, call.request, IpcError("ServiceError", sentence))
        else:
            self._server.journal.record(call.component, call.operation, resource_of(call.request))
            if self._streams.get(number) is not stream:
                return
            subscription = call.operation.startswith("SubscribeTo")
            if not subscription:
                self._close(number)
            self.write(
                frames.MESSAGE, 0 if subscription else frames.TERMINATE, number, f"{call.operation}Response", body
            )
            if subscription:
                stream.answered()

    def _over(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if self._paused and len(self._calls) < self._limits.calls // 2 and not self._ending:
            self._paused = False
            self._transport.resume_reading()
        if self._ending and not self._calls and self not in self._server.connections:
            self._is_gone()

    def _fail(self, number: int, operation: str, request: dict[str, Any], error: IpcError) -> None:
        self._server.journal.record(
            self.component or "(unknown)", operation, resource_of(request), error.code, error.message
        )
        body = {self._server.flavour.message_key: error.message, "_errorCode": error.code}
        self.write(frames.ERROR, frames.TERMINATE, number, error.code, _encoder.encode(body))

    def _close(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.close()

    def _protocol_error(self, reason: str) -> None:
        self._record("disconnected", reason)
        body = _encoder.encode({"message": reason})
        headers = {":content-type": "application/json"}
        self._send(frames.encode(frames.PROTOCOL_ERROR, 0, 0, headers, body))
        self._dismiss()

    def _dismiss(self) -> None:
        """Leave the client a moment to read why and to go by itself: the SDK forgets the reason if it is cut off."""
        self._ending = True
        asyncio.get_running_loop().call_later(self._limits.linger_s, self.end)

    def _too_slow(self) -> None:
        self._record("disconnected", f"It did not show a token within {self._limits.connect_s:g} s.")
        self.end()

    def _record(self, outcome: str, reason: str = "") -> None:
        self._server.journal.record(self.component or "(unknown)", "connection", "", outcome, reason)

    def _is_gone(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)
