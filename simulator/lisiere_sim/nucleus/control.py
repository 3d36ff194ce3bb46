"""The control socket: one request and one answer, each a line of JSON, and both ends of it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from lisiere.errors import ConfigError, LisiereError, Permanent

_LINE_MAX = 4 << 20
_REQUEST_S = 10.0

Command = Callable[[dict[str, Any]], Awaitable[Any]]


class Control:
    """Answers requests such as `{"do": "status"}` with `{"answer": …}` or `{"error": …, "usage": …}`.

    Only the user who runs the nucleus may connect.
    """

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._commands = commands
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Listen."""
        self._path.unlink(missing_ok=True)
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)  # from its first moment on
        try:
            line.bind(str(self._path))
        except OSError:
            line.close()
            raise
        finally:
            os.umask(mask)
        self._server = await asyncio.start_unix_server(self._serve, sock=line, limit=_LINE_MAX)

    async def stop(self) -> None:
        """End, requests under way included."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            answer = await self._answer(await asyncio.wait_for(reader.readline(), _REQUEST_S))
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError, asyncio.TimeoutError):
            return  # the other side has gone, or said nothing or too much
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            command = self._commands[request["do"]]
        except (ValueError, KeyError, TypeError):
            return {"error": f"There is no such request; known are {', '.join(self._commands)}.", "usage": True}
        try:
            return {"answer": await command(request)}
        except LisiereError as error:
            return {"error": str(error), "usage": isinstance(error, ConfigError)}


def ask(path: Path, request: Mapping[str, Any], timeout: float | None = None) -> Any:
    """Send a request to a nucleus and return its answer. Blocks.

    Raises:
        Permanent: no nucleus answers, or what was asked for has failed.
        ConfigError: the request is wrong.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(timeout)
        try:
            line.connect(str(path))
            line.sendall(json.dumps(request).encode() + b"\n")
            with line.makefile("rb") as stream:
                answer = stream.readline()
        except OSError as error:
            raise Permanent(
                f"No nucleus runs there: nothing answers at {path} ({error.strerror or error}). "
                "Start one with `lisiere nucleus run --root DIR`."
            ) from error
    if not answer:
        raise Permanent(f"The nucleus at {path} stopped before it answered.")
    reply = json.loads(answer)
    if "error" in reply:
        if reply.get("usage"):
            place, _, text = reply["error"].partition(": ")
            raise ConfigError(text, place) if text else ConfigError(reply["error"])
        raise Permanent(reply["error"])
    return reply["answer"]
