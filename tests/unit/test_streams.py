"""Standard streams as a shell, a container or a careless parent leaves them."""

from __future__ import annotations

import errno
import json
import os
import pty
import socket
import subprocess
import sys
import tty
from collections.abc import Callable
from pathlib import Path

import pytest

from worker import streams

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}


def shell(redirect: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-m", "worker.cli", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("redirect", "arguments", "code", "out", "err"),
    [
        (">/dev/full", ["--help"], 1, "", "xnli-worker: stdout: No space left on device"),
        pytest.param(">&-", ["--help"], 1, "", "xnli-worker: stdout: it is closed", marks=pytest.mark.acceptance),
        pytest.param(
            "2>&-", ["run"], 2, "xnli-worker: kafka.bootstrap_servers: is required", "", marks=pytest.mark.acceptance
        ),
        ("2>/dev/full", ["run", "--nonsense"], 2, "xnli-worker: No such option: --nonsense", ""),
        pytest.param("<&- >&- 2>&-", ["run"], 2, "", "", marks=pytest.mark.acceptance),
        ("2>/dev/full", ["topics"], 2, "Usage: xnli-worker topics", ""),
        ("<&-", ["send"], 2, "", "xnli-worker: stdin is closed; name a file"),
    ],
)
def test_the_exit_code_is_right_and_the_stream_that_is_left_says_why(
    redirect: str, arguments: list[str], code: int, out: str, err: str
) -> None:
    given = {} if "run" in arguments else {"XNLI_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    ended = shell(redirect, *arguments, **given)
    assert ended.returncode == code
    assert ended.stdout.startswith(out)
    assert ended.stderr.startswith(err)
    assert bool(ended.stdout) == bool(out)
    assert bool(ended.stderr) == bool(err)


CHATTERBOX = """
import sys
import structlog
from worker import streams
from worker.telemetry import log
streams.stand_in()
log.configure("info", "json", sys.stderr)
for number in range(3000):
    structlog.get_logger("test").info("a line", number=number, text="x" * 100)
print(sys.stderr.buffer.dropped, flush=True)
sys.stdin.readline()
structlog.get_logger("test").info("read again")
"""


def _pipe() -> tuple[int, int]:
    return os.pipe()


def _socket() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def _terminal() -> tuple[int, int]:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    return ours, theirs


@pytest.mark.parametrize(
    "opened",
    [_pipe, pytest.param(_socket, marks=pytest.mark.acceptance), pytest.param(_terminal, marks=pytest.mark.acceptance)],
)
def test_a_stderr_that_nobody_reads_stops_nobody(opened: Callable[[], tuple[int, int]]) -> None:
    ours, theirs = opened()
    command = [sys.executable, "-c", CHATTERBOX]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        dropped = int(process.stdout.readline())
        assert 1000 < dropped < 3000
        assert os.get_blocking(theirs)  # whoever shares the file finds it as it was
        os.close(theirs)
        with os.fdopen(ours, "rb", buffering=0) as reader:
            shown = reader.read(65536)
            process.stdin.write("\n")
            process.stdin.flush()
            while b"read again" not in shown:
                shown += reader.read(65536)
        lines = [json.loads(line)["event"] for line in shown.splitlines()]  # none is torn
        assert lines[-2:] == [f"{dropped} lines were dropped here: nobody read them in time", "read again"]
        assert lines.count("a line") == 3000 - dropped
        assert process.wait(10) == 0


def test_where_the_file_cannot_be_opened_again_nothing_waits_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    reader, writer = os.pipe()
    monkeypatch.setattr(os, "open", refuse)
    diagnostics = streams.Diagnostics(writer)
    for _ in range(1000):
        diagnostics.write(b"x" * 999 + b"\n")
    assert diagnostics.dropped > 900
    assert os.read(reader, 1000) == b"x" * 999 + b"\n"
    os.close(reader)
    diagnostics.write(b"nobody\n")
    assert diagnostics.lost
    os.close(writer)


def test_a_failed_output_is_told_once() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    output = streams.Output(full)
    with pytest.raises(streams.OutputLost) as lost:
        output.write(b"a line\n")
    assert lost.value.errno == errno.ENOSPC
    assert output.write(b"another\n") == 8
    os.close(full)


def test_an_output_that_another_program_made_non_blocking_is_waited_for() -> None:
    program = "import sys; from worker import streams; streams.stand_in(); sys.stdout.write('x' * 300_000)"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=writer) as process:
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            assert len(file.read()) == 300_000
    assert process.returncode == 0
