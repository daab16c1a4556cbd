"""Every command line that README and docs/ print, as printed, in their order, on real Kafka."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.brokers.kafka import Kafka
from tests.brokers.ports import free_ports
from tests.documents.command_lines import DOCUMENTS, ROOT, command_lines
from tests.faults.workers import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]

# They go on until they are told to stop; each with what it prints when it works.
GO_ON = {"run": "rebalance", "broker": "listens on", "tail": "en-moderation", "serve": "started"}
# Where documents say that a worker answers.
_ADDRESS = "127.0.0.1:9400"
# One of the requests sent becomes a dead letter on purpose, and `send --wait` says so.
CODES = {"send": 1}


class Shell:
    """A user's terminal: a folder with the repository's schemas, a settings file, and the worker on PATH."""

    def __init__(self, folder: Path, kafka: Kafka, port: int) -> None:
        self._folder = folder
        self._port = port
        (folder / "schemas").symlink_to(ROOT / "schemas")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
        self._environment = kept | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "XNLI_HTTP__PORT": str(port),
        }
        self._running: list[subprocess.Popen[bytes]] = []

    def enter(self, line: str) -> None:
        """Run a line to its end, or leave it running once it works."""
        line = line.replace(_ADDRESS, f"127.0.0.1:{self._port}")
        words = shlex.split(line)
        verb = next((word for word in words[1:] if not word.startswith("-")), "")
        log = self._folder / f"{len(list(self._folder.iterdir()))}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self._folder,
                env=self._environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        if verb not in GO_ON:
            assert process.wait(300) == CODES.get(verb, 0), f"{line}\n{log.read_text(encoding='utf-8')}"
            return
        self._running.append(process)
        shown = GO_ON[verb]
        wait_until(lambda: shown in log.read_text(encoding="utf-8") or process.poll() is not None, 120, line)
        assert process.poll() is None, f"{line}\n{log.read_text(encoding='utf-8')}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Ctrl-C in every terminal."""
        for process in reversed(self._running):
            process.send_signal(signal.SIGINT)
        codes = [process.wait(60) for process in self._running]
        assert kind is not None or set(codes) <= {0, 130}, codes


def _settings(document: str) -> str:
    """The first settings that a document prints which a worker can run with."""
    blocks = re.findall(r"^```toml\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return next((block for block in blocks if "bootstrap_servers" in block and "[model]" in block), "")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_line_works_as_printed(kafka: Kafka, tmp_path: Path, document: str) -> None:
    lines = [found.line for found in command_lines(document) if found.reason is None]
    if not lines:
        return
    if not any("config init" in line for line in lines):
        (tmp_path / "worker.toml").write_text(_settings(document) or _settings("README.md"), encoding="utf-8")
    port = free_ports(1)[0] if any(_ADDRESS in line for line in lines) else 0
    with Shell(tmp_path, kafka, port) as shell:
        for line in lines:
            shell.enter(line)
