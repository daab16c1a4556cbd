"""A server process of the tests: it logs to a file and never outlives the test run."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

_TETHER = Path(__file__).with_name("tether.py")
_running: weakref.WeakSet[Process] = weakref.WeakSet()


class Process:
    """A started command, in a session of its own so that Ctrl-C reaches the tests and not their servers.

    On Linux the kernel kills it when the *thread* that started it ends: start servers from the main thread. Elsewhere
    only a normal exit of the test run ends it.
    """

    def __init__(self, command: Sequence[str | Path], log: Path, directory: Path) -> None:
        self.log = log
        self._suspended = False
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _TETHER, str(os.getpid()), *command],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _running.add(self)

    @property
    def pid(self) -> int:
        """The command's own process id: the tether became the command."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal number when a signal ended it."""
        return self._process.poll()

    @property
    def responsive(self) -> bool:
        """Running, and not suspended."""
        return self.exit_code is None and not self._suspended

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone; a suspended process dies too."""
        self._process.kill()
        self._process.wait()

    def terminate(self, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL if it still runs after ``timeout_s``."""
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def suspend(self) -> None:
        """SIGSTOP: its sockets stay open and nothing answers, as in a long collection pause or a frozen machine."""
        self._process.send_signal(signal.SIGSTOP)
        self._suspended = True

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)
        self._suspended = False

    def tail(self, lines: int = 40) -> str:
        """The last lines it logged."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


@atexit.register
def _end_all() -> None:
    for process in list(_running):
        if process.exit_code is None:
            process.kill()
