"""amqtt, made to keep what it has acknowledged.

amqtt 0.12 sends a PUBACK when it has queued a message and passes it on later, one at a time. When the publisher's
connection ends, what is still queued is thrown away, acknowledged or not, and a connection that takes over a client id
leaves the old one open, whose will then follows the new one's birth. A broker that loses acknowledged messages cannot
tell whether a device does, so this subclass passes everything on before it lets a session go. Versions that rename
these methods are caught by tests/unit/sim/test_broker.py.
"""

from __future__ import annotations

import asyncio
from typing import Any

from amqtt.broker import Broker

CONFIG: dict[str, Any] = {
    "listeners": {"default": {"type": "tcp", "bind": "127.0.0.1:0"}},
    # Only the plugin that lets anybody in: the others log every packet or publish $SYS topics.
    "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
}


class KeepingBroker(Broker):  # type: ignore[misc]  # amqtt ships no types, so mypy sees Any
    """amqtt's broker without the two losses that the module describes."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self._ended: dict[str, asyncio.Event] = {}

    def port(self) -> int:
        """Return the port that the operating system gave."""
        port: int = self._servers["default"].instance.sockets[0].getsockname()[1]
        return port

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Serve one connection and close it; amqtt forgets to when no CONNECT comes."""
        try:
            await super().stream_connected(reader, writer, listener_name)
        finally:
            writer.close()

    async def _handle_client_session(
        self, reader: Any, writer: Any, client_session: Any, handler: Any, server: Any, listener_name: str
    ) -> None:
        """Serve one connection; whoever takes over its client id can wait for its end."""
        ended = self._ended[client_session.client_id] = asyncio.Event()
        try:
            await super()._handle_client_session(reader, writer, client_session, handler, server, listener_name)
        finally:
            ended.set()

    async def _client_message_loop(self, client_session: Any, handler: Any) -> None:
        """Serve one connection until it ends, then pass on what it has left behind, and only then its will."""
        gone = asyncio.ensure_future(handler.wait_disconnect())
        side = [
            asyncio.ensure_future(self._serve_subscriptions(client_session, handler)),
            asyncio.ensure_future(self._serve_unsubscriptions(client_session, handler)),
        ]
        try:
            if await self._pass_on(client_session, handler, gone):
                await self._handle_disconnect(client_session, handler, gone)
        finally:
            for task in [*side, gone]:
                task.cancel()
            await asyncio.gather(*side, gone, return_exceptions=True)

    async def _serve_subscriptions(self, session: Any, handler: Any) -> None:
        while True:
            request = _done(await handler.get_next_pending_subscription())
            await self._handle_subscription(session, handler, request)

    async def _serve_unsubscriptions(self, session: Any, handler: Any) -> None:
        while True:
            request = _done(await handler.get_next_pending_unsubscription())
            await self._handle_unsubscription(session, handler, request)

    async def _pass_on(self, session: Any, handler: Any, gone: asyncio.Future[Any]) -> bool:
        """Hand messages to their subscribers until the connection is gone and nothing waits.

        Returns:
            Whether it ended so; False when the client sent to a topic that it may not use.
        """
        queue = session.delivered_message_queue
        while True:
            if queue.empty():
                if gone.done():
                    return True
                waiting = asyncio.ensure_future(queue.get())
                await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    waiting.cancel()  # the queue keeps its item when a get is cancelled
                    continue
            else:
                waiting = _done(queue.get_nowait())
            if not await self._handle_message_delivery(session, handler, waiting):
                return False

    async def _delete_session(self, client_id: str) -> None:
        """Forget a session that a new connection replaces, once the old connection is closed and emptied."""
        _, handler = self._sessions.get(client_id, (None, None))
        if handler is not None and (ended := self._ended.get(client_id)) is not None:
            await handler.handle_connection_closed()
            await ended.wait()
        self._ended.pop(client_id, None)
        await super()._delete_session(client_id)


def _done(value: Any) -> asyncio.Future[Any]:
    """Wrap a value as amqtt's handlers want it: the result of a future."""
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future
