"""Standard streams that may be closed, full, unread or in any encoding, and what a command does about it.

What a command has done decides its exit code, not whether the last line found its way. So stderr never raises and never
waits, and stdout raises `OutputLost` once and takes everything from then on.
"""

from __future__ import annotations

import errno
import io
import os
import select
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TextIO

from worker import redaction, terminal

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# How long a line waits for a reader that is slow, before it and all that follow are dropped until one is taken again.
PATIENCE_S: Final = 0.1
_CLOSED: Final = "it is closed"


class OutputLost(OSError):  # noqa: N818 (a state of the stream)
    """Stdout takes nothing: it is closed, its disk is full, or its reader went away (``errno.EPIPE``)."""


class Output(io.RawIOBase):
    """Stdout's bytes. The first failure is raised; what comes after it is let go, the interpreter's last flush too."""

    def __init__(self, descriptor: int, lost: OutputLost | None = None) -> None:
        self._descriptor = descriptor
        self._untold = lost
        self._lost = lost is not None

    def writable(self) -> bool:
        """Always: see the class."""
        return True

    def fileno(self) -> int:
        """The file descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a person looks on."""
        return os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of the bytes, waiting for as long as it takes. Raises OutputLost once."""
        if self._untold is not None:
            told, self._untold = self._untold, None
            raise told
        while not self._lost:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # another program has made the terminal or the pipe that we share non-blocking
                select.select((), (self._descriptor,), ())
            except OSError as error:
                self._lost = True
                raise OutputLost(error.errno, error.strerror) from None
        return memoryview(data).nbytes


class Diagnostics(io.RawIOBase):
    """Stderr's bytes, in whole lines. Never raises and never waits for longer than `PATIENCE_S`: it drops and counts.

    A pipe that nobody reads takes 64 KiB, and whoever writes more into it stands still for ever.
    """

    def __init__(self, descriptor: int, *, closed: bool = False) -> None:
        self._descriptor = descriptor
        self._closed = closed
        self._write = _without_waiting(descriptor)
        self._lock = threading.Lock()
        self._line = b""  # begun, and not yet ended
        self._rest = b""  # of a line that is written in part: what comes next must not land in its middle
        self._stuck = False
        self.lost = closed  # or full, or without a reader
        self.dropped = 0  # lines

    def writable(self) -> bool:
        """Always: see the class."""
        return True

    def fileno(self) -> int:
        """The file descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a person looks on."""
        return os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer, /) -> int:
        """Take all of the bytes, and pass on the lines that are whole."""
        taken = bytes(data)
        with self._lock:
            whole, newline, self._line = (self._line + taken).rpartition(b"\n")
            if newline:
                self._emit(whole + newline)
        return len(taken)

    def flush(self) -> None:
        """Pass on a line that has no end yet, such as a progress bar."""
        with self._lock:
            if self._line:
                line, self._line = self._line, b""
                self._emit(line)

    def take_dropped(self) -> int:
        """How many lines were dropped, once somebody reads again; the count begins anew."""
        if not self.dropped:
            return 0
        with self._lock:
            if not self._send(b"") or self.lost or not _is_ready(self._descriptor, 0):
                return 0
            count, self.dropped = self.dropped, 0
            return count

    def _emit(self, lines: bytes) -> None:
        if not self._send(lines):
            self.dropped += lines.count(b"\n") or 1

    def _send(self, data: bytes) -> bool:
        """Write what is left of the last line, then this. False if nothing of it was written."""
        self._rest = self._write_some(self._rest)
        if self._rest:
            return False
        left = self._write_some(data)
        if data and len(left) == len(data):
            return False
        self._rest = left
        return True

    def _write_some(self, data: bytes) -> bytes:
        """Write as much as there is room for; returns the rest."""
        while data:
            try:
                data = data[self._write(data) :]
            except BlockingIOError:
                if self._stuck or not _is_ready(self._descriptor, PATIENCE_S):
                    self._stuck = True
                    break
            except OSError:
                self.lost = True
                break
            else:
                self._stuck, self.lost = False, self._closed
        return data


def _without_waiting(descriptor: int) -> Callable[[bytes], int]:
    """A function that writes as many bytes as there is room for now, and raises BlockingIOError where there is none.

    The flag that says so belongs to the open file, which other programs share: a shell would not expect it on its
    terminal. So the file is opened once more.
    """
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            connection = socket.socket(fileno=os.dup(descriptor))
            return lambda data: connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if stat.S_ISFIFO(mode) or os.isatty(descriptor):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
            return partial(os.write, os.open(f"/proc/self/fd/{descriptor}", flags))
    except OSError:  # no Linux, or a terminal of another user

        def write(data: bytes) -> int:
            if not _is_ready(descriptor, 0):
                raise BlockingIOError
            return os.write(descriptor, data[: select.PIPE_BUF])  # so many never wait once there is room

        return write
    return partial(os.write, descriptor)


def _is_ready(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1000))


def stand_in() -> None:
    """Replace the interpreter's stdout and stderr by ours, unless somebody has replaced them already.

    A closed descriptor is opened first: else the next file or socket takes its number, and what is meant for a person
    goes there.
    """
    closed = set()
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            closed.add(descriptor)
    if sys.stdout is sys.__stdout__:
        lost = OutputLost(errno.EBADF, _CLOSED) if 1 in closed or sys.stdout is None else None
        raw = io.BufferedWriter(Output(1, lost))
        # What the encoding lacks is escaped; JSON goes through the buffer, in UTF-8.
        sys.stdout = io.TextIOWrapper(
            raw, _encoding(sys.stdout), "backslashreplace", line_buffering=os.isatty(1), write_through=False
        )
    if sys.stderr is sys.__stderr__:
        diagnostics = Diagnostics(2, closed=2 in closed or sys.stderr is None)
        sys.stderr = io.TextIOWrapper(diagnostics, _encoding(sys.stderr), "backslashreplace", write_through=True)


def _encoding(stream: TextIO | None) -> str:
    return "utf-8" if stream is None else stream.encoding


def diagnostics_of(stream: TextIO) -> Diagnostics | None:
    """Ours under a text stream, if it is."""
    found = getattr(stream, "buffer", None)
    return found if isinstance(found, Diagnostics) else None


def is_lost(stream: TextIO) -> bool:
    """Whether what is written to stderr goes nowhere."""
    found = diagnostics_of(stream)
    return found is not None and found.lost


def complain(line: str) -> None:
    """A line on stderr, or on stdout where that takes none: harmless on a terminal, and without secrets on both."""
    line = terminal.harmless(redaction.in_text(line))
    sys.stderr.write(f"xnli-worker: {line}\n")
    sys.stderr.flush()
    if is_lost(sys.stderr):
        try:
            sys.stdout.write(f"xnli-worker: {line}\n")
            sys.stdout.flush()
        except OutputLost:
            return  # nobody is left to be told; the exit code tells


@contextmanager
def reporting() -> Iterator[None]:
    """Around what a command prints of work that is done: what stdout does not take of it fails nothing, and is said."""
    try:
        yield
    except OutputLost as lost:
        if lost.errno != errno.EPIPE:  # a reader that went away had enough
            complain(f"stdout: {lost.strerror}; what was done is not told there")


def last_words(text: str, *, otherwise: str) -> None:
    """What a command that has done its work writes to stdout; ``otherwise`` is for stderr, where stdout is lost."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OutputLost as lost:
        complain(f"stdout: {lost.strerror}; {otherwise}")
