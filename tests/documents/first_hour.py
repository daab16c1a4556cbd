"""Records a newcomer's first hour on real Kafka: ``python -m tests.documents.first_hour`` prints docs/first-hour.md.

Each line is typed into tmux, in a terminal of 80 columns and 24 lines, and what stood there is printed as it stood,
colours aside. It needs tmux, and port 9092 for the broker. Three dots stand where lines are left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.brokers.kafka import KafkaCluster
from tests.documents.command_lines import ROOT

_PROMPT: Final = "$"
_PORT: Final = 9092
_SETTINGS: Final = """\
[kafka]
bootstrap_servers = "localhost:9092"

[model]
name = "demo"
"""
_HEAD: Final = """\
# The first hour, recorded

What a newcomer types, in the order of the [README](../README.md), and what it prints: on Apache Kafka in one JVM, in
tmux, in a terminal of 80 columns and 24 lines, on {cores} cores at a load of {load:.0f}, at commit {commit}.
`python -m tests.documents.first_hour` makes this page. Colours are left out; nothing else is changed, but for the
three dots in one place.
"""
_LONG: Final = (
    """python3 -c 'print("{\\"id\\": \\"long\\", \\"text\\": \\"" + "The parcel came two days late. " * 5000 + """
    """"\\", \\"labels\\": [\\"delivery\\", \\"payment\\"]}")' > long.jsonl"""
)


class Tmux:
    """Terminals of 80 columns and 24 lines in a folder, by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = f"first-hour-{os.getpid()}"

    def open(self, name: str) -> None:
        """A new terminal, with the worker on its path."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = [f"PATH={path}", f"PYTHONPATH={ROOT}", f"HOME={self._folder}", "LANG=C.UTF-8"]
        shell = ["env", "-i", *variables, "TERM=tmux-256color", "PS1=$ ", "bash", "--norc"]
        where = ["-s", name, "-x", "80", "-y", "24", "-c", str(self._folder)]
        self._tmux("new-session", "-d", *where, *shell)
        self._until(name, lambda text: text.rstrip().endswith(_PROMPT), 10)

    def enter(self, name: str, line: str, until: str | None = None, timeout_s: float = 240.0) -> str:
        """Type a line. Returns what stands there once it has ended, or has printed ``until`` and goes on."""
        self._tmux("send-keys", "-t", name, "-R", "clear", "Enter")
        time.sleep(0.5)
        self._tmux("clear-history", "-t", name)
        self._tmux("send-keys", "-t", name, "-l", line)
        self._tmux("send-keys", "-t", name, "Enter")
        time.sleep(1.0)
        if until is None:
            return self._until(name, lambda text: text.splitlines()[-1:] == [_PROMPT], timeout_s)
        return self._until(name, lambda text: until in text, timeout_s)

    def stop(self, name: str) -> str:
        """Ctrl-C. Returns all that stands there since the line was typed."""
        self._tmux("send-keys", "-t", name, "C-c")
        return self._until(name, lambda text: text.splitlines()[-1:] == [_PROMPT], 60)

    def _until(self, name: str, condition: Callable[[str], bool], timeout_s: float) -> str:
        deadline_s = time.monotonic() + timeout_s
        while not condition(text := self._tmux("capture-pane", "-p", "-t", name, "-S", "-").rstrip()):
            if time.monotonic() > deadline_s:
                raise TimeoutError(text)
            time.sleep(0.2)
        return text

    def _tmux(self, *words: str) -> str:
        command = ["tmux", "-L", self._socket, "-f", "/dev/null", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], check=False, capture_output=True)


def _show(title: str, text: str, said: str = "") -> None:
    shown = text.removesuffix(f"\n{_PROMPT}")
    said = f"{said}\n\n" if said else ""
    sys.stdout.write(f"\n## {title}\n\n{said}```text\n{shown}\n```\n")
    sys.stdout.flush()


def record(tmux: Tmux) -> None:
    """Type it all, and print what stood there."""
    tmux.open("one")
    _show("The demo", tmux.enter("one", "xnli-worker demo"), "`make demo` installs the package and runs this:")
    _show("Settings", tmux.enter("one", "cat worker.toml"))
    _show("Topics", tmux.enter("one", "xnli-worker topics create --config worker.toml"))
    _show("Check", tmux.enter("one", "xnli-worker check --config worker.toml"))
    started = tmux.enter("one", "xnli-worker run --config worker.toml", "held=12")
    _show("Run", started)
    tmux.open("two")
    send = "xnli-worker send --config worker.toml --wait"
    said = "In a second terminal. The last of the six has no labels, on purpose."
    _show("Send", tmux.enter("two", f"{send} schemas/examples/requests.jsonl"), said)
    tmux.enter("two", "xnli-worker tail --config worker.toml --last 5", "de-review")
    time.sleep(3)
    _show("Read", tmux.stop("two"), "Until Ctrl-C:")
    tmux.enter("two", _LONG)
    _show("A bad message", tmux.enter("two", f"{send} long.jsonl"), "One text of 155,000 letters:")
    _show("Its dead letter", tmux.enter("two", "xnli-worker dead-letters list --config worker.toml"))
    _mend(tmux, started)


def _mend(tmux: Tmux, started: str) -> None:
    """The worker takes longer texts from now on, and what was refused is sent again."""
    text = tmux.stop("one").replace(started.split("\n", 1)[1], "...")
    _show("What the worker said of it", text, "In the first terminal, from the start above to Ctrl-C:")
    tmux.enter("one", "XNLI_LIMITS__MAX_TEXT_CHARS=200000 xnli-worker run --config worker.toml", "held=12")
    replay = "xnli-worker dead-letters replay --config worker.toml --reason too_large"
    said = "The cause is mended first: the worker runs again, with `XNLI_LIMITS__MAX_TEXT_CHARS=200000`."
    _show("Replay", tmux.enter("two", f"{replay} --dry-run"), said)
    _show("In earnest", tmux.enter("two", f"{replay} --yes"))
    tmux.enter("two", "xnli-worker tail --config worker.toml --last 1", "long   ")
    time.sleep(1)
    _show("Its answer", tmux.stop("two"))
    said = "The page is at the same address without a path: [a picture of it](http-page.png)."
    _show("How the worker is", tmux.enter("two", "curl -s http://127.0.0.1:9400/readyz"), said)
    count = "curl -s http://127.0.0.1:9400/metrics | grep -E '^xnli_worker_records_(pub|dead).*_total'"
    said = "What Prometheus scrapes, of the worker that runs now; [the dashboard of it](dashboard.png)."
    _show("Figures", tmux.enter("two", count), said)
    tmux.stop("one")


def main() -> int:
    """Record it on a broker of its own."""
    commit = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], check=True, capture_output=True, text=True)
    sys.stdout.write(_HEAD.format(commit=commit.stdout.strip(), cores=os.cpu_count(), load=os.getloadavg()[0]))
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        (folder / "schemas").symlink_to(ROOT / "schemas")
        (folder / "worker.toml").write_text(_SETTINGS, encoding="utf-8")
        with KafkaCluster(port=_PORT), Tmux(folder) as tmux:
            record(tmux)
    return 0


if __name__ == "__main__":
    sys.exit(main())
