"""A camera that another program opens: it writes frames to a pipe, and lives as long as the source is read."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import TracebackType

from lisiere.clock import Clock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sources import CameraSource
from lisiere.sources.address import shown_within
from lisiere.sources.base import FaultReport
from lisiere.sources.csi import Command, camera_command
from lisiere.sources.streams import CHUNK_BYTES, JpegStream, RawStream, Stream
from lisiere.values import Frame

# What lets a component speak to its Greengrass nucleus and to AWS; a camera's program has no business there.
_NOT_ITS_OWN = frozenset({"SVCUID", "AWS_CONTAINER_AUTHORIZATION_TOKEN"})
_POLL_S = 0.2
_END_S = 2.0  # from asking a program to end until it is killed
_WORDS_BYTES = 4096  # of what it says on stderr
_WORDS_TOLD = 400  # characters, in a message


class ProcessCamera:
    """Yields the frames that a program writes. It has no shell, no input, and a process group of its own."""

    def __init__(self, config: CameraSource, name: str, clock: Clock, fault: FaultReport) -> None:
        self._config = config
        self._name = name
        self._clock = clock
        self._fault = fault

    def items(self, stop: threading.Event) -> Iterator[Frame]:
        """Run the program and yield its frames until stopped; then it is ended. See `Source.items`."""
        command = camera_command(self._config)
        with Child(command) as child:
            stream = self._stream(command, child.what)
            while not stop.is_set():
                chunk = child.read(_POLL_S)
                if chunk:
                    yield from stream.feed(chunk)
                elif chunk is not None:
                    raise Retryable(child.last_words())
                stream.check_silence()

    def _stream(self, command: Command, what: str) -> Stream:
        if command.format == "mjpeg":
            return JpegStream(self._config, self._name, what, self._clock, self._fault)
        shape = (command.height, command.width, 3) if command.format == "bgr" else (command.height, command.width)
        return RawStream(self._config, self._name, what, self._clock, shape)


class Child:
    """A program while it runs, to be used in `with`: what it writes, what it says, and its certain end.

    Raises:
        Permanent: there is no such program, or it must not be run.
        Retryable: it cannot be started now.
    """

    def __init__(self, command: Command) -> None:
        program = command.arguments[0]
        self.what = f"The camera program {program}"
        try:
            # A group of its own, so that what it starts can be ended with it.
            self._process = subprocess.Popen(  # noqa: S603 - it is what the configuration names
                command.arguments,
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name not in _NOT_ITS_OWN},
            )
        except (FileNotFoundError, PermissionError) as error:
            help_ = f" Install {command.package}." if command.package else ""
            raise Permanent(f"{self.what} cannot be run: {error.strerror}.{help_}") from error
        except OSError as error:  # no memory, no more processes
            raise Retryable(f"{self.what} cannot be started: {error.strerror}.") from error
        self._words = bytearray()
        self._listener = threading.Thread(target=self._listen, name=f"{program}-stderr", daemon=True)
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Child:
        """Begin to read what it says, so that it never waits for that."""
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the program and all that it has started: asked first, then killed."""
        self._end()

    def read(self, timeout: float) -> bytes | None:
        """Return what it has written; None when nothing came in `timeout` seconds; nothing (b"") at its end."""
        if not self._selector.select(timeout):
            return None
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        return os.read(self._process.stdout.fileno(), CHUNK_BYTES)

    def last_words(self) -> str:
        """End it, and return a sentence on how it ended and what it said last."""
        code = self._end()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        said = " ".join(self._words.decode("utf-8", "replace").split())
        said = "".join(letter if letter.isprintable() else "?" for letter in shown_within(said))[-_WORDS_TOLD:]
        return f"{self.what} has ended {how}" + (f", and said: {said.rstrip('.')}." if said else " without a word.")

    def _listen(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - it is a pipe
        while said := os.read(self._process.stderr.fileno(), CHUNK_BYTES):
            self._words += said
            del self._words[:-_WORDS_BYTES]

    def _end(self) -> int:
        process = self._process
        if process.returncode is None:
            self._selector.close()
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            process.stdout.close()  # so that it does not wait for somebody to read
            self._signal(signal.SIGTERM)
            self._listener.join(_END_S)  # which ends with the last of the group that can speak
            # Nobody has waited for it yet, so that the group's number is still its own.
            self._signal(signal.SIGKILL)
            process.wait()
            self._listener.join(_END_S)
            if not self._listener.is_alive():
                assert process.stderr is not None  # noqa: S101 - it is a pipe
                process.stderr.close()
        return process.returncode

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
