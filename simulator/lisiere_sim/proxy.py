"""The network between device and broker: a TCP proxy that can be cut, slowed, stalled, deafened and made to reset."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lisiere_sim.broker import LOOPBACK, Address
from lisiere_sim.loopthread import LoopThread

Link = Literal["up", "cut", "stalled", "delayed", "deaf", "slow"]
Held: TypeAlias = "asyncio.Queue[tuple[float, bytes]]"

_CHUNK = 1 << 14
_CHUNKS = 256  # held a direction, 4 MB at most; beyond that the sender's own window fills, as on a real link


@dataclass(slots=True)
class Traffic:
    """What went through the proxy.

    Attributes:
        accepted: connections that were taken in.
        refused: connections closed at once because the link was cut.
        dropped: connections that a cut, a reset, or the end of a stall, closed.
        lost: bytes from the broker that a deaf link swallowed.
        up, down: bytes forwarded to the broker, and back.
    """

    accepted: int = 0
    refused: int = 0
    dropped: int = 0
    up: int = 0
    down: int = 0
    lost: int = 0


class _Pair:
    """One connection through the proxy: the device's end and the broker's."""

    def __init__(self, device: asyncio.StreamWriter) -> None:
        self.ends = [device]
        self.half_gone = False  # an end closed while nothing was forwarded
        self.up = 0  # bytes forwarded to the broker

    def abort(self) -> None:
        for writer in self.ends:
            writer.transport.abort()


class Proxy:
    """Forwards loopback connections to a broker. Its methods may be called from any thread.

    Bytes are never reordered or changed, but for what `upward` does. A cut loses what is on its way, as a cable does.

    Args:
        target: the broker.
        upward: makes, for each connection, what its bytes pass through on their way to the broker, such as
            `Discard.feed`.

    Attributes:
        traffic: counters; written by the proxy's own thread only.
    """

    def __init__(self, target: Address, upward: Callable[[], Callable[[bytes], bytes]] | None = None) -> None:
        self.traffic = Traffic()
        self._upward = upward or (lambda: lambda data: data)
        self._target = target
        self._thread = LoopThread("network")
        self._pairs: set[_Pair] = set()
        self._flowing = asyncio.Event()
        self._delay_s = 0.0
        self._bytes_per_s = 0.0
        self._reset_after: int | None = None
        self._link: Link = "up"
        self._server: asyncio.Server | None = None

    @property
    def link(self) -> Link:
        """The state of the link."""
        return self._link

    @property
    def open_connections(self) -> int:
        """How many connections are open through the proxy."""
        return len(self._pairs)

    def start(self) -> Address:
        """Listen on a free loopback port and return where."""

        async def begin() -> int:
            self._flowing.set()
            self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
            port: int = self._server.sockets[0].getsockname()[1]
            return port

        return LOOPBACK, self._thread.call(begin())

    def cut(self) -> None:
        """Close every connection at once, and every new one as it comes."""
        self._thread.call(self._switch("cut"))

    def stall(self) -> None:
        """Keep and accept connections but forward nothing, as a half-open network does."""
        self._thread.call(self._switch("stalled"))

    def delay(self, ms: float) -> None:
        """Hold everything back for `ms` milliseconds each way."""
        self._thread.call(self._switch("delayed", ms / 1000))

    def deafen(self) -> None:
        """Forward what the device sends and lose what the broker answers: every PUBACK is lost."""
        self._thread.call(self._switch("deaf"))

    def slow(self, bytes_per_s: float) -> None:
        """Forward so many bytes a second each way, one by one."""
        self._thread.call(self._switch("slow", bytes_per_s=bytes_per_s))

    def reset_after(self, size: int | None) -> None:
        """Reset each connection once so many bytes went to the broker, in the middle of a packet if need be.

        None ends that. Connections that are past it already are reset with their next byte.
        """

        async def change() -> None:
            self._reset_after = size

        self._thread.call(change())

    def heal(self) -> None:
        """Forward everything as it comes. Connections whose one end closed during a stall are dropped."""
        self._thread.call(self._switch("up"))

    def stop(self) -> None:
        """Close everything. Calling it twice does no harm."""
        if self._server is None:
            return
        server, self._server = self._server, None

        async def end() -> None:
            server.close()
            self._abort(list(self._pairs))

        self._thread.call(end())
        self._thread.stop()

    async def _switch(self, link: Link, delay_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        self._link, self._delay_s, self._bytes_per_s = link, delay_s, bytes_per_s
        if link == "cut":
            self._abort(list(self._pairs))
        if link == "stalled":
            self._flowing.clear()
        else:
            # What a NAT does to a connection that it has forgotten: the end that is left learns of it late.
            self._abort([pair for pair in self._pairs if pair.half_gone])
            self._flowing.set()

    def _abort(self, pairs: list[_Pair]) -> None:
        for pair in pairs:
            self.traffic.dropped += 1
            self._pairs.discard(pair)
            pair.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._link == "cut":
            self.traffic.refused += 1
            writer.transport.abort()
            return
        self.traffic.accepted += 1
        pair = _Pair(writer)
        self._pairs.add(pair)
        upward: Held = asyncio.Queue(_CHUNKS)
        downward: Held = asyncio.Queue(_CHUNKS)
        # Reading starts before there is another end, so that a device which gives up during a stall is noticed.
        tasks = [asyncio.ensure_future(self._read(pair, reader, upward))]
        try:
            await self._flowing.wait()
            if pair not in self._pairs:
                return
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            pair.ends.append(far_writer)
            if pair not in self._pairs:  # cut while connecting
                return
            tasks.append(asyncio.ensure_future(self._read(pair, far_reader, downward)))
            ways = [
                asyncio.ensure_future(self._write(pair, upward, far_writer, "up")),
                asyncio.ensure_future(self._write(pair, downward, writer, "down")),
            ]
            tasks += ways
            await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
        except OSError:
            pass  # the broker is not there: that is what the device is about to learn
        finally:
            self._pairs.discard(pair)
            pair.abort()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, pair: _Pair, reader: asyncio.StreamReader, held: Held) -> None:
        """Take what one end sends, stamped with when it may go on; an empty chunk stands for its end."""
        data = b"first"
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""  # a reset is for the other end the same as a close
            if not data and not self._flowing.is_set():
                pair.half_gone = True
            await held.put((time.monotonic() + self._delay_s, data))

    async def _write(self, pair: _Pair, held: Held, writer: asyncio.StreamWriter, way: Literal["up", "down"]) -> None:
        """Release what is held when it is time and the link flows.

        Raises:
            OSError: the end that is written to is gone, or the connection is reset here.
        """
        passing = self._upward() if way == "up" else (lambda data: data)
        while True:
            due, data = await held.get()
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            await self._flowing.wait()
            if not data:
                writer.write_eof()
                return
            if way == "down" and self._link == "deaf":
                self.traffic.lost += len(data)
                continue
            data = passing(data)
            while data and self._link == "slow":
                await asyncio.sleep(1 / self._bytes_per_s)
                await self._forward(pair, data[:1], writer, way)
                data = data[1:]
            await self._forward(pair, data, writer, way)

    async def _forward(
        self, pair: _Pair, data: bytes, writer: asyncio.StreamWriter, way: Literal["up", "down"]
    ) -> None:
        limit = self._reset_after
        reset = way == "up" and limit is not None and pair.up + len(data) > limit
        if reset and limit is not None:
            data = data[: max(0, limit - pair.up)]
        writer.write(data)
        await writer.drain()
        if way == "up":
            pair.up += len(data)
        setattr(self.traffic, way, getattr(self.traffic, way) + len(data))
        if reset:
            await asyncio.sleep(0)  # what is written goes before the reset
            self.traffic.dropped += 1
            raise ConnectionResetError
