"""Every command under what a platform may do to it: streams that are closed, full or of another encoding, a home that
is read-only, a user without a name, a folder of hostile modules, half a core.

Prints what came of each, as a table in Markdown: ``pytest -m "" -s tests/contract/test_platforms.py -k send``.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.brokers.ports import free_ports
from worker.demo.play import CHECKPOINT
from worker.kafka.embedded import EmbeddedBroker
from worker.rules.dead_letter import PREFIX

ROOT = Path(__file__).parents[2]
_SCRIPT = Path(sys.executable).with_name("xnli-worker")
PROGRAM = [str(_SCRIPT)] if _SCRIPT.exists() else [sys.executable, "-P", "-m", "worker.cli"]
HOSTILE = ("worker", "queue", "torch", "json", "argparse", "functools", "types", "http", "signal", "structlog", "tests")
TIMEOUT_S = 300.0
REQUEST = json.dumps({"id": "1", "text": "東京は晴れ", "labels": ["weather", "sport"]}).encode() + b"\n"


@dataclass(frozen=True)
class Condition:
    """What is different. ``around`` is a shell line that ends in running ``"$@"``, with a folder of its own in $D."""

    name: str
    around: str = 'exec "$@"'
    environment: Mapping[str, str] = field(default_factory=dict)
    lost: str = ""  # a standard stream that takes or gives nothing
    needs: Callable[[], bool] = lambda: True
    terminal: bool = False


def _is_root() -> bool:
    return os.geteuid() == 0 and all(map(shutil.which, ("setpriv", "unshare")))


def _has_cpu_groups() -> bool:
    return _is_root() and os.access("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", os.W_OK)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CONDITIONS = [
    Condition("as it is"),
    Condition("stdin closed", 'exec "$@" <&-', lost="stdin"),
    Condition("stdin full", 'exec "$@" </dev/full', lost="stdin"),
    Condition(
        "stdin latin-1", r'''printf '{"id": "1", "text": "caf\351"}\n' >"$D/in"; exec "$@" <"$D/in"''', lost="stdin"
    ),
    Condition("stdout closed", 'exec "$@" >&-', lost="stdout"),
    Condition("stdout full", 'exec "$@" >/dev/full', lost="stdout"),
    Condition("stderr closed", 'exec "$@" 2>&-', lost="stderr"),
    Condition("stderr full", 'exec "$@" 2>/dev/full', lost="stderr"),
    Condition("streams latin-1", environment={"PYTHONIOENCODING": "latin-1"}),
    Condition("terminal latin-1", environment={"PYTHONIOENCODING": "latin-1"}, terminal=True),
    Condition("LC_ALL=C", environment={"LC_ALL": "C"}),
    Condition("ASCII", environment=ASCII),
    Condition(
        "read-only home",
        'export HOME="$D"; exec unshare -m sh -c \'mount -t tmpfs -o ro none "$HOME" && exec "$@"\' sh "$@"',
        needs=_is_root,
    ),
    # It may read what it could not otherwise, for the interpreter may lie in root's home.
    Condition(
        "nameless user",
        "exec setpriv --reuid=12345 --regid=12345 --clear-groups --inh-caps=+dac_read_search "
        '--ambient-caps=+dac_read_search "$@"',
        {"HOME": "/nonexistent"},
        needs=_is_root,
    ),
    Condition("hostile folder", 'cd "$D/hostile" && exec "$@"'),
    Condition(
        "half a core",
        'G=/sys/fs/cgroup/cpu/xnli-$$; mkdir "$G" && echo 50000 >"$G/cpu.cfs_quota_us" && '
        'echo $$ >"$G/cgroup.procs" && exec "$@"',
        needs=_has_cpu_groups,
    ),
]
# Whose work is what they print.
PRINTS = {"version", "help", "classify", "tail", "list", "show", "rehearse", "bench"}
PRINTS |= {"schemas", "config show", "config schema", "evaluate", "sets list", "sets show"}
READS_STDIN = {"send", "classify"}
# {port} is a free one; {folder} is what $D is above; {examples} are those of the schemas.
COMMANDS = {
    "version": ("--version",),
    "help": ("--help",),
    "no command": ("dead-letters",),
    "wrong settings": ("run", "--config", "nö-such.toml"),
    "run": ("run",),
    "demo": ("demo", "--count", "8"),
    "broker": ("broker", "--port", "{port}"),
    "classify": ("classify", "--labels", "weather,sport"),
    "send": ("send",),
    "tail": ("tail", "--dead-letters", "--from-beginning", "--count", "1"),
    "list": ("dead-letters", "list"),
    "show": ("dead-letters", "show", "0:0"),
    "rehearse": ("dead-letters", "replay", "--dry-run"),
    "replay": ("dead-letters", "replay", "--yes"),
    "topics create": ("topics", "create"),
    "topics check": ("topics", "check"),
    "schemas": ("schemas", "show"),
    "config init": ("config", "init", "{folder}/worker.toml"),
    "config show": ("config", "show"),
    "config schema": ("config", "schema"),
    "check": ("check",),
    "bench": ("bench", "--no-pipeline", "--runs", "1", "--messages", "16"),
    "serve": ("serve", "--label-sets", "{examples}/label-set-moderation.json"),
    "sets put": ("label-sets", "put", "{examples}/label-set-support-ar.json", "--name", "support"),
    "sets list": ("label-sets", "list"),
    "sets show": ("label-sets", "show", "weather"),
    "evaluate": ("evaluate", "{examples}/labelled.csv"),
    "calibrate": ("calibrate", "{examples}/labelled.csv", "-o", "{folder}/calibration.json"),
    "adapt": ("adapt", "{examples}/labelled-hobbies.csv", "-o", "{folder}/adapted", "--epochs", "1"),
}
SERVES = {"run", "broker", "serve"}  # until they are told to stop
WRITES = {"config init", "calibrate", "adapt"}  # into {folder}


def expected(command: str, condition: Condition) -> int:
    if command in {"no command", "wrong settings"}:
        return 2
    if command in WRITES:  # the home is where it would write, and the folder is another user's
        return 2 if condition.name in {"read-only home", "nameless user"} else 0
    if command == "replay":  # the embedded broker only pretends to have transactions
        return 1
    if command in READS_STDIN and condition.lost == "stdin":
        return 2 if condition.name == "stdin closed" else 1
    return int(condition.lost == "stdout" and command in PRINTS)


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, str]]:
    """Of an embedded broker that has a dead letter for those who read."""
    unique = uuid.uuid4().hex[:8]
    topics = {
        "XNLI_TOPICS__INPUT": f"requests-{unique}",
        "XNLI_TOPICS__OUTPUT": f"results-{unique}",
        "XNLI_TOPICS__DEAD_LETTER": f"dead-letters-{unique}",
    }
    with EmbeddedBroker() as broker:
        sets = label_sets_of(topics)
        broker.create(*topics.values(), sets)
        client = Producer({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
        headers = {"reason": "invalid", "message": "kein Wort für 東京", "topic": topics["XNLI_TOPICS__INPUT"]}
        client.produce(
            topics["XNLI_TOPICS__DEAD_LETTER"],
            "nicht Avro: 東京".encode(),
            "schlüssel",
            partition=0,
            headers={f"{PREFIX}{name}": value for name, value in headers.items()},
        )
        client.produce(sets, json.dumps(["sunny", "rainy"]), "weather", partition=0)
        assert client.flush(10) == 0
        yield topics | {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "XNLI_MODEL__NAME": str(CHECKPOINT),
            "XNLI_DELIVERY__GUARANTEE": "at_least_once",
        }


def label_sets_of(settings: Mapping[str, str]) -> str:
    """The topic of the label sets, which only their own commands are told of."""
    return f"{settings['XNLI_TOPICS__INPUT']}-label-sets"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        lines = [line for line in (self.err.strip() or self.out.strip()).splitlines() if line.strip()]
        return lines[-1] if lines else ""


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


def stopped_when(process: subprocess.Popen[bytes], serves: Callable[[int], bool], port: int) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S - 60
    while process.poll() is None and not serves(port) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)


def run(command: str, condition: Condition, settings: dict[str, str], folder: Path) -> Ended:
    folder.chmod(0o755)
    hostile = folder / "hostile"
    hostile.mkdir()
    for name in HOSTILE:
        (hostile / f"{name}.py").write_text(f"raise SystemExit('hostile {name}.py was executed')\n")
    port, other = free_ports(2)
    examples = ROOT / "schemas" / "examples"
    arguments = [argument.format(port=other, folder=folder, examples=examples) for argument in COMMANDS[command]]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
    mine = {"PYTHONPATH": str(ROOT), "D": str(folder), "XNLI_HTTP__PORT": str(port), "OMP_NUM_THREADS": "2"}
    if arguments[0] == "label-sets":
        mine["XNLI_TOPICS__LABEL_SETS"] = label_sets_of(settings)
    environment = kept | settings | mine | dict(condition.environment)
    terminal, side = pty.openpty() if condition.terminal else (-1, subprocess.PIPE)
    process = subprocess.Popen(
        ["sh", "-c", condition.around, "sh", *PROGRAM, *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=side,
        stderr=side,
    )
    if command in SERVES:
        how = (listens, other) if command == "broker" else (is_ready, port)
        threading.Thread(target=stopped_when, args=(process, *how), daemon=True).start()
    if condition.terminal:
        os.close(side)
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.write(REQUEST)
                process.stdin.close()
        shown = b""
        with suppress(OSError):  # EIO: the last one who had the terminal open is gone
            while piece := os.read(terminal, 65536):
                shown += piece
        os.close(terminal)
        return Ended(process.wait(TIMEOUT_S), shown.decode("latin-1"), "")
    try:
        out, err = process.communicate(REQUEST, timeout=TIMEOUT_S)
    finally:
        process.kill()
        for group in Path("/sys/fs/cgroup/cpu").glob(f"xnli-{process.pid}"):
            group.rmdir()
    return Ended(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def show(*cells: str) -> None:
    """A row of the table, at once: a run that is broken off has shown what it found."""
    print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201 (what the run is for; -s shows it)


@pytest.fixture(scope="module", autouse=True)
def table() -> None:
    show("command", "condition", "exit code", "last line")
    show(*["---"] * 4)


@pytest.mark.acceptance
@pytest.mark.timeout(400)
@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_its_work_wherever_it_runs(
    command: str, condition: Condition, settings: dict[str, str], tmp_path: Path
) -> None:
    if not condition.needs():
        pytest.skip("needs root, setpriv and unshare, or cgroups that may be written to")
    ended = run(command, condition, settings, tmp_path)
    show(command, condition.name, str(ended.code), ended.last.replace("|", "\\|"))
    everything = ended.out + ended.err
    assert "Traceback" not in everything, everything
    assert "Exception ignored" not in everything, everything
    assert "was executed" not in everything, everything
    assert ended.code == expected(command, condition), everything
    if expected(command, condition) and condition.name != "as it is":
        assert everything.strip(), "a failure without a word"
