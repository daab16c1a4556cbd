"""What strangers wrote, on a real pseudo-terminal and in a pipe: every command that shows it, and the demo's table."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.builders import as_written
from worker.avro import json_request
from worker.avro.codec import Codecs, schema_folder
from worker.kafka.embedded import EmbeddedBroker
from worker.rules.dead_letter import PREFIX

ROOT = Path(__file__).parents[2]
# Clears the screen, sets the window's title, rings, deletes, ends lines, and reverses what follows: C0, C1 and DEL.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b2J\x9d0;owned\x9c\x7f\r\x85\u2028\u2029\u202e\u2066x\ufeff[red]"
# What a terminal may see: printable text, the ends of lines, and colours and cursors of rich's own making.
_STYLE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
PROGRAM = """
import sys
import structlog
from worker import cli
from worker.demo.outcome_table import Answer, Sample, print_table
from worker.errors import Reason
from worker.telemetry import log
HOSTILE = {hostile!r}
for arguments in {commands!r}:
    cli.main(arguments)
outcome = {{"labels": [{{"label": HOSTILE, "score": 0.5}}] * 4, "multi_label": False}}
judged = {{"judgements": [{{"hypothesis": HOSTILE, "entailment": 1.0, "neutral": 0.0, "contradiction": 0.0}}]}}
samples = [Sample(key, "en", HOSTILE, b"") for key in ("a", "b", "c")]
answers = {{
    "a": Answer("t", {{"task": HOSTILE, "outcome": outcome}}, None, "", 0.0),
    "b": Answer("t", {{"task": HOSTILE, "outcome": judged}}, None, "", 0.0),
    "c": Answer("t", None, HOSTILE, HOSTILE, 0.0),
}}
summary = dict.fromkeys(("answered", "dead_lettered", "batches", "messages_per_s", "pairs", "wrong", "messages"), 0)
print_table(samples, answers, summary, show_all=True)
log.configure("info", "console", sys.stderr)
try:
    raise ValueError(HOSTILE)
except ValueError:
    structlog.get_logger(HOSTILE).exception(HOSTILE, name=HOSTILE, names=[HOSTILE])
print("that was all")
"""


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as found:
        yield found


@pytest.fixture
def environment(broker: EmbeddedBroker) -> dict[str, str]:
    """Topics with one hostile result and one hostile dead letter."""
    unique = uuid.uuid4().hex[:8]
    found = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")} | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "XNLI_TOPICS__INPUT": f"requests-{unique}",
        "XNLI_TOPICS__OUTPUT": f"results-{unique}",
        "XNLI_TOPICS__DEAD_LETTER": f"dead-letters-{unique}",
        "PYTHONUTF8": "1",
        "TERM": "xterm",
    }
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
    result = json.loads((schema_folder() / "examples" / "result-classification.json").read_text("utf-8"))
    result["outcome"]["labels"][0]["label"] = HOSTILE
    headers: list[tuple[str, str | bytes | None]] = [
        ("h", HOSTILE.encode()),
        ("h", b"second"),
        ("h", None),
        (HOSTILE, b""),
    ]
    value = Codecs().encode_result(as_written(result))[0]
    producer.produce(found["XNLI_TOPICS__OUTPUT"], value, HOSTILE.encode(), partition=0, headers=headers)
    request = Codecs().encode_request(json_request.request({"id": "1", "text": HOSTILE, "labels": ["a"]}))[0]
    said = ("reason", "stage", "error", "message", "topic", "partition", "offset", "attempts", "group", "worker")
    headers += [(f"{PREFIX}{name}", HOSTILE.encode()) for name in said]
    producer.produce(found["XNLI_TOPICS__DEAD_LETTER"], request, HOSTILE.encode(), partition=0, headers=headers)
    producer.produce(found["XNLI_TOPICS__INPUT"], b"")
    assert producer.flush(10) == 0
    return found


def on_a_terminal(program: str, environment: dict[str, str]) -> str:
    """What the program writes to a pseudo-terminal, which is its stdout and stderr."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # Linux' way to say that the other end is closed
                break
        assert process.wait(timeout=60) == 0, shown
    os.close(ours)
    return shown.decode()


def test_no_command_lets_a_stranger_steer_the_terminal(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps({"id": "1", "text": "x", HOSTILE: 1}, ensure_ascii=False) + "\n")
    commands = [
        ["tail", "--from-beginning", "--count", "1"],
        ["tail", "--dead-letters", "--from-beginning", "--count", "1"],
        ["dead-letters", "list"],
        ["dead-letters", "show", "0:0"],
        ["dead-letters", "replay", "--dry-run"],
        ["send", str(file)],
    ]
    shown = on_a_terminal(PROGRAM.format(hostile=HOSTILE, commands=commands), environment)
    assert "that was all" in shown
    assert shown.count("owned") >= 3 * len(commands)  # it was shown
    left = _STYLE.sub("", shown.replace("\r\n", "\n")).replace("\x1b[2J", "!")
    lines = re.split("[\r\n]", left)  # a progress bar goes back to the beginning of its line
    assert [line for line in lines if not line.replace("\t", "").isprintable()] == []
    assert "\x1b[2J" not in shown.replace("\x1b[2K", "")


def test_in_a_pipe_a_record_is_exact_and_one_line_for_every_reader(environment: dict[str, str]) -> None:
    program = """
from worker import cli
for arguments in (["tail"], ["tail", "--dead-letters"]):
    cli.main([*arguments, "--from-beginning", "--count", "1"])
"""
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=True).stdout
    lines = out.decode().splitlines()
    assert len(lines) == 2
    for line in lines:
        shown = json.loads(line)
        assert shown["key"] == HOSTILE
        assert shown["headers"]["h"] == [HOSTILE, "second", None]
        assert shown["headers"][HOSTILE] == ""
        text = shown["request"]["text"] if "request" in shown else shown["result"]["outcome"]["labels"][0]["label"]
        assert text == HOSTILE
