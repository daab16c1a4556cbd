"""Programs on a pseudo-terminal, and what a person would see there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_COLUMN = re.compile(r"\x1b\[\d+G")  # where a column of a table begins
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command whose three streams are a terminal of so many columns and lines."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        columns: int = 80,
        lines: int = 24,
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        left_out = {"COLUMNS", "LINES", "NO_COLOR"}
        kept = {name: value for name, value in environment.items() if name not in left_out}
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=kept | {"TERM": "xterm-256color", "PYTHONUTF8": "1"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 (Ctrl-C comes from a terminal)
        )
        os.close(theirs)
        self.raw = b""

    def type(self, text: str) -> None:
        """Type this; ``\\x03`` is Ctrl-C."""
        os.write(self._ours, text.encode())

    def read_until(self, wanted: str, timeout_s: float = 60.0) -> None:
        """Read until this was written. Fails with what was when time is up."""
        deadline_s = time.monotonic() + timeout_s
        while wanted not in self.text:
            if time.monotonic() > deadline_s or not self._read(1.0):
                raise AssertionError(f"no {wanted!r} in {self.text}")

    def end(self, timeout_s: float = 90.0) -> int:
        """Read to the end, and return the exit code."""
        deadline_s = time.monotonic() + timeout_s
        while self._read(1.0):
            if time.monotonic() > deadline_s:
                self.process.kill()
                raise AssertionError(f"it does not end: {self.text}")
        os.close(self._ours)
        return self.process.wait(timeout=10)

    @property
    def text(self) -> str:
        """What was written, without what steers the terminal."""
        return _ESCAPES.sub("", _COLUMN.sub(" ", self.raw.decode("utf-8", "replace"))).replace("\r\n", "\n")

    def _read(self, timeout_s: float) -> bool:
        """False once the other end is closed."""
        if not select.select([self._ours], [], [], timeout_s)[0]:
            return True
        try:
            part = os.read(self._ours, 65536)
        except OSError:  # Linux' way to say that the other end is closed
            return False
        self.raw += part
        return bool(part)
