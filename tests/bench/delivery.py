"""Delivery: accepting on disk, what a queue's length costs, draining to a broker, and how late a result arrives.

The broker is a Mosquitto in a process of its own; each comparison's two sides send it the same messages.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho

from bench.outcome import Outcome
from lisiere.clock import SystemClock
from lisiere.config import SpoolConfig
from lisiere.settings.links import MqttConfig
from lisiere.spool import Spool, SpoolReader
from lisiere.sync.drain import Drain
from lisiere.sync.topics import Topics
from lisiere.sync.transports.mqtt import MqttTransport
from support.brokers import running_mosquitto

ROW = json.dumps({"x": "y" * 980}).encode()  # 1 kB
_WINDOW = 16
_MESSAGES = 8000
_TOPICS = Topics("lisiere", "bench")
_SHORT, _LONG = 1_000, 1_000_000  # queues


def run(rounds: int, work: Path) -> list[Outcome]:
    """Measure all of it."""
    with running_mosquitto() as port:
        return [accepted(rounds, work), cost(rounds, work), drained(rounds, work, port), latency(work, port)]


def accepted(rounds: int, work: Path) -> Outcome:
    """Accepted rows a second, against a bare sqlite3 loop that commits the same batches of the same rows."""
    count = 8000
    ratios = []
    for number in range(rounds):
        batches: list[int] = []
        last = 0

        def committed(seq: int, batches: list[int] = batches) -> None:
            nonlocal last
            batches.append(seq - last)
            last = seq

        queue = Spool(SpoolConfig(path=str(work / f"spool{number}")), SystemClock(), committed)
        started = time.perf_counter()
        for _ in range(count):
            queue.append("bench", ROW)
        queue.flush()
        seconds = time.perf_counter() - started
        queue.close()
        db = sqlite3.connect(work / f"bare{number}.db", isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE queue (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, p TEXT, ts REAL, body BLOB)")
        started = time.perf_counter()
        for batch in batches:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "INSERT INTO queue (kind, p, ts, body) VALUES ('result', ?, ?, ?)", [("bench", 0.0, ROW)] * batch
            )
            db.execute("COMMIT")
        ratios.append((time.perf_counter() - started) / seconds)
        db.close()
    ratio = statistics.median(ratios)
    against = "a bare sqlite3 loop that commits the same batches, synchronous=FULL"
    return Outcome("spool, accepted rows/s", against, ratio, "x", ">= 0.8", ratio >= 0.8)


def cost(rounds: int, work: Path) -> Outcome:
    """The time of a row that is accepted, read and let go of, while a million wait against while a thousand do."""
    queues = [_Queue(work / f"queue{size}", size) for size in (_SHORT, _LONG)]
    for queue in queues:
        queue.pass_through()  # the first pass fills caches
    ratios = []
    for _ in range(max(rounds, 5)):
        short, long = (queue.pass_through() for queue in queues)
        ratios.append(long / short)
    for queue in queues:
        queue.close()
    ratio = statistics.median(ratios)
    against = f"the same with {_SHORT:,} rows in the queue"
    return Outcome(f"cost of a row, {_LONG:,} queued", against, ratio, "x", "<= 1.2", ratio <= 1.2)


class _Queue:
    """A spool with so many rows in it, whose rows pass through from end to end."""

    def __init__(self, folder: Path, size: int) -> None:
        self._spool = Spool(SpoolConfig(path=str(folder), max_rows=2 * size, max_mb=4000), SystemClock())
        body = b'{"x": "' + b"y" * 200 + b'"}'
        for _ in range(size):
            self._spool.append("bench", body)
        self._spool.flush()
        self._reader = SpoolReader(folder)
        self._body, self._at = body, 0

    def pass_through(self, count: int = 4096) -> float:
        """Accept, read and let go of so many rows; return seconds."""
        started = time.perf_counter()
        for _ in range(count // 64):
            for _ in range(64):
                self._spool.append("bench", self._body)
            rows = self._reader.after(self._at, 64)
            self._at = rows[-1].seq
            self._spool.acknowledge([row.seq for row in rows])
            self._spool.flush()
        return time.perf_counter() - started

    def close(self) -> None:
        self._reader.close()
        self._spool.close()


def drained(rounds: int, work: Path, port: int) -> Outcome:
    """Messages a second from a full spool to a broker with the limits off, against a bare loop of paho."""
    ratios = []
    for number in range(rounds):
        ours = _drained(work / f"drain{number}", port)
        ratios.append(_paho(port) / ours)
    ratio = statistics.median(ratios)
    against = f"a bare loop of paho with {_WINDOW} under way, from memory"
    return Outcome("drain, messages/s", against, ratio, "x", ">= 0.8", ratio >= 0.8)


def _drained(folder: Path, port: int) -> float:
    """Drain a spool; return seconds."""
    spool = Spool(SpoolConfig(path=str(folder)), SystemClock(), lambda seq: drain.committed(seq))
    drain = _drain(spool, folder, port)
    for _ in range(_MESSAGES):
        spool.append("bench", ROW)
    spool.flush()
    drain.finish()
    started = time.perf_counter()
    drain.run()
    seconds = time.perf_counter() - started
    if spool.waiting:
        raise RuntimeError(f"{spool.waiting} messages were not delivered.")
    spool.close()
    return seconds


def _drain(spool: Spool, folder: Path, port: int) -> Drain:
    config = MqttConfig(host="127.0.0.1", port=port, window=_WINDOW)
    return Drain(
        "bench", _TOPICS, spool, lambda: SpoolReader(folder), lambda: MqttTransport(config, "bench"), SystemClock()
    )


def _paho(port: int) -> float:
    """Publish as many messages of the same size with QoS 1, a window of them under way; return seconds."""
    room = threading.Semaphore(_WINDOW)
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, "bare")
    client.max_inflight_messages_set(_WINDOW)
    client.on_publish = lambda *_: room.release()
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    connected.wait(10)
    payload = ROW + b"z" * 160  # what the envelope adds
    started = time.perf_counter()
    for _ in range(_MESSAGES):
        room.acquire()
        client.publish(_TOPICS.backlog("bench"), payload, 1)
    for _ in range(_WINDOW):
        room.acquire()
    seconds = time.perf_counter() - started
    client.disconnect()
    client.loop_stop()
    return seconds


def latency(work: Path, port: int) -> Outcome:
    """From a result that is handed to the spool until a subscriber has it from the broker, 50 a second, online."""
    folder = work / "latency"
    arrived: dict[int, float] = {}
    subscribed = threading.Event()
    ear = paho.Client(paho.CallbackAPIVersion.VERSION2)

    def heard(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        arrived[json.loads(message.payload)["number"]] = time.perf_counter()

    ear.on_message = heard
    ear.on_subscribe = lambda *_: subscribed.set()
    ear.connect("127.0.0.1", port)
    ear.loop_start()
    ear.subscribe(_TOPICS.live("bench"), 0)
    subscribed.wait(10)
    spool = Spool(SpoolConfig(path=str(folder)), SystemClock(), lambda seq: drain.committed(seq))
    drain = _drain(spool, folder, port)
    runner = threading.Thread(target=drain.run)
    runner.start()
    while not drain.connected:
        time.sleep(0.01)
    sent = dict(_send(spool, 200))
    drain.finish()
    runner.join(30)
    spool.close()
    for _ in range(100):
        if len(arrived) == len(sent):
            break
        time.sleep(0.01)
    ear.disconnect()
    ear.loop_stop()
    median = statistics.median(arrived[number] - sent[number] for number in sent) * 1000
    return Outcome("latency, result to subscriber", "50 results a second, p50", median, "ms", "<= 15", median <= 15)


def _send(spool: Spool, count: int) -> Iterator[tuple[int, float]]:
    for number in range(count):
        yield number, time.perf_counter()
        spool.append("bench", b'{"number": %d, "x": "%s"}' % (number, b"y" * 900))
        time.sleep(0.02)
