"""Worker processes that tests start, kill and restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCRIPTED = "tests.faults.scripted"
REAL = ("worker.cli", "run")
ROOT = Path(__file__).parents[2]
TETHER = ROOT / "tests" / "brokers" / "tether.py"


class WorkerProcess:
    """A worker as a process. Ends with the block; its log is a file whose events can be read back.

    ``checkout`` is where its code lies: this checkout, or one of another commit.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        log_path: Path,
        module: tuple[str, ...] | str = SCRIPTED,
        *,
        checkout: Path = ROOT,
    ) -> None:
        self._checkout = checkout
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
        inherited["PYTHONPATH"] = str(checkout)
        self._environment = inherited | {"XNLI_HTTP__PORT": "0", "XNLI_MODEL__NAME": "scripted"} | dict(environment)
        worker = [sys.executable, "-m", *([module] if isinstance(module, str) else module)]
        # A test run that is killed takes its workers with it.
        self._command = [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *worker]
        self.log_path = log_path
        self.starts = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        with self.log_path.open("ab") as log_file:
            return subprocess.Popen(
                self._command, env=self._environment, cwd=self._checkout, stdout=log_file, stderr=log_file
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start again after the process has ended, as a supervisor does."""
        if self.process.poll() is None:
            raise AssertionError("still running")
        self.process = self._start()

    def stop(self, timeout_s: float = 40.0) -> int:
        """SIGTERM, wait for the drain, return the exit code."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Log lines of all starts so far, those of one event if named."""
        found = []
        for line in self.log_path.read_bytes().splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if name is None or event.get("event") == name:
                found.append(event)
        return found

    def wait_for(self, what: str, timeout_s: float = 60.0) -> None:
        """Return once the log has an event of this name."""
        wait_until(lambda: bool(self.events(what)), timeout_s, f"{what} in {self.log_path}", self)


def wait_until(
    condition: Callable[[], bool],
    timeout_s: float,
    what: str,
    worker: WorkerProcess | None = None,
    every_s: float = 0.05,
) -> None:
    """Poll a condition of the world outside. Fails with the worker's log when time is up."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            tail = worker.log_path.read_text()[-3000:] if worker is not None else ""
            raise AssertionError(f"waited {timeout_s} s for {what}\n{tail}")
        time.sleep(every_s)
