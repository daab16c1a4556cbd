"""`send`, `tail` and `check` as a person runs them: processes, exit codes, and what is on stdout and stderr."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.brokers.kafka import Kafka, KafkaCluster
from tests.brokers.ports import free_ports
from tests.builders import as_written
from tests.conftest import TopicFactory
from tests.faults.workers import WorkerProcess
from tests.terminal import Terminal
from worker.avro.codec import Codecs, schema_folder
from worker.kafka.embedded import EmbeddedBroker
from worker.rules.dead_letter import PREFIX

ROOT = Path(__file__).parents[2]
RESULT = json.loads((schema_folder() / "examples" / "result-classification.json").read_text("utf-8"))
REQUESTS = [
    json.loads(file.read_text("utf-8")) for file in sorted((schema_folder() / "examples").glob("request-*.json"))
]


class Shell:
    """Runs `xnli-worker` with these settings in its environment."""

    def __init__(self, **settings: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
        self.environment = kept | settings

    def start(self, *arguments: str, **how: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "worker.cli", *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, text=True, **how)

    def run(self, *arguments: str, given: str = "") -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        how = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with self.start(*arguments, **how) as process:
            out, err = process.communicate(given, timeout=60)
        assert "Traceback" not in out + err
        assert "%3|" not in err  # how librdkafka writes to stderr by itself
        return process.returncode, out, err


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def shell(embedded: EmbeddedBroker) -> Shell:
    """Settings for the embedded broker with topics of the test's own, of which the output is where `send` sends."""
    unique = uuid.uuid4().hex[:8]
    topics = {
        "XNLI_TOPICS__INPUT": f"requests-{unique}",
        "XNLI_TOPICS__OUTPUT": f"results-{unique}",
        "XNLI_TOPICS__DEAD_LETTER": f"dead-letters-{unique}",
    }
    embedded.create(*topics.values())
    return Shell(XNLI_KAFKA__BOOTSTRAP_SERVERS=embedded.bootstrap_servers, **topics)


def json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n")[:-1]]


def as_lines(*requests: Any) -> str:
    return "".join(json.dumps(request, ensure_ascii=False) + "\n" for request in requests)


def reader_of_requests(shell: Shell) -> Shell:
    """The same, with the requests taken for dead letters: how `tail` shows what `send` sent."""
    requests = shell.environment["XNLI_TOPICS__INPUT"]
    return Shell(**shell.environment | {"XNLI_TOPICS__INPUT": "elsewhere", "XNLI_TOPICS__DEAD_LETTER": requests})


def test_what_is_sent_can_be_tailed(shell: Shell) -> None:
    code, out, err = shell.run("send", given=as_lines(*REQUESTS))
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "topic": shell.environment["XNLI_TOPICS__INPUT"],
        "delivered": len(REQUESTS),
        "refused": 0,
        "failed": 0,
        "unconfirmed": 0,
    }
    code, out, _ = reader_of_requests(shell).run(
        "tail", "--dead-letters", "--from-beginning", "--count", str(len(REQUESTS))
    )
    assert code == 0
    shown = {line["key"]: line["request"] for line in json_lines(out)}
    assert {key: {name: shown[key][name] for name in request} for request in REQUESTS for key in [request["id"]]} == {
        request["id"]: request for request in REQUESTS
    }


def test_a_file_with_a_bad_line_exits_with_1_and_names_the_line(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(as_lines(REQUESTS[0]) + "{]\n" + as_lines(REQUESTS[1]))
    code, out, err = shell.run("send", str(file))
    assert code == 1
    assert err.startswith(f"{file}:2: no JSON")
    assert (json.loads(out)["delivered"], json.loads(out)["refused"]) == (2, 1)


def test_sending_with_a_terminal_shows_a_bar_and_a_sentence(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(as_lines(*[{**REQUESTS[0], "id": str(number)} for number in range(2000)], {"id": "bad"}))
    ours, theirs = pty.openpty()
    with shell.start("send", str(file), stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # Linux' way to say that the other end is closed
                break
        assert process.wait(timeout=60) == 1
    os.close(ours)
    text = shown.decode()
    assert "100%" in text
    assert "2,001 sent" in text
    assert "2001: text is required" in text.replace("\r\n", "")
    assert f"2,000 delivered to {shell.environment['XNLI_TOPICS__INPUT']}, 1 refused" in text


def test_tail_follows_until_it_is_told_to_stop(shell: Shell, embedded: EmbeddedBroker) -> None:
    producer = Producer({"bootstrap.servers": embedded.bootstrap_servers})
    value, _ = Codecs().encode_result(as_written(RESULT))
    with shell.start("tail", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline().startswith("xnli-worker: following results-")
        for key in ("first", "second"):
            producer.produce(shell.environment["XNLI_TOPICS__OUTPUT"], value, key)
            producer.flush(10)
            line = json.loads(process.stdout.readline())  # each line is flushed: it is here before the next is sent
            assert (line["key"], line["result"]) == (key, RESULT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""


def test_a_reader_that_goes_away_is_no_failure(shell: Shell, embedded: EmbeddedBroker) -> None:
    producer = Producer({"bootstrap.servers": embedded.bootstrap_servers})
    value, _ = Codecs().encode_result(as_written(RESULT))
    with shell.start("tail", "--from-beginning", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stderr.readline()
        process.stdout.close()
        producer.produce(shell.environment["XNLI_TOPICS__OUTPUT"], value)
        producer.flush(10)
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in process.stderr.read()


# A broker that is not there, and what is said within two seconds


@pytest.mark.parametrize("arguments", [["send"], ["dead-letters", "list"], ["topics", "check"]])
def test_a_wrong_broker_is_named_at_once(arguments: list[str]) -> None:
    began_s = time.monotonic()
    code, out, err = Shell(XNLI_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1").run(*arguments)
    took_s = time.monotonic() - began_s
    assert (code, out) == (1, "")
    assert err.startswith("xnli-worker: cannot reach 127.0.0.1:1: connection refused; start the broker, or correct ")
    assert err.count("\n") == 1
    assert took_s < 6  # of which a busy machine spends most on starting Python


def test_a_worker_with_a_wrong_broker_says_so_in_its_log_and_on_its_page(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    wrong = {"XNLI_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "XNLI_HTTP__PORT": str(port)}
    with WorkerProcess(wrong, tmp_path / "worker.log") as worker:
        worker.wait_for("broker_away", 20)
        assert worker.events("broker_away")[0]["error"].startswith("cannot reach 127.0.0.1:1: connection refused")
        with pytest.raises(urllib.error.HTTPError) as failing:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5)
        problems = json.loads(failing.value.read())["problems"]
        assert any(problem.startswith("cannot reach 127.0.0.1:1: connection refused") for problem in problems)
        assert "no partitions are assigned" not in problems
        assert worker.stop() == 0


def test_check_in_json_is_an_object_for_each_step() -> None:
    _, out, err = Shell(XNLI_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1", XNLI_MODEL__NAME="./none").run("check", "--json")
    assert err == ""
    steps = {line["check"]: line["status"] for line in json_lines(out)}
    assert (steps["settings"], steps["broker"], steps["topics"], steps["model"]) == ("ok", "fail", "skip", "fail")


# What check says of what an operator gets wrong: one clear line each.


def failures(text: str) -> list[str]:
    return [line["message"] for line in json_lines(text) if line["status"] == "fail"]


def test_check_finds_everything_that_is_wrong_at_once(tmp_path: Path) -> None:
    began_s = time.monotonic()
    code, out, err = Shell(XNLI_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1", XNLI_MODEL__NAME=str(tmp_path)).run("check")
    assert time.monotonic() - began_s < 50
    assert (code, err) == (2, "")
    broker, model = failures(out)
    assert "cannot reach 127.0.0.1:1: connection refused" in broker
    assert f'model.name = "{tmp_path}"' in model


def test_check_names_an_unknown_setting(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text('[kafka]\nbootstrap_servers = "h:1"\nbootstrap = "h:1"\n[model]\nname = "m"\n')
    code, out, err = Shell().run("check", "--config", str(file))
    assert (code, err) == (2, "")
    (line,) = failures(out)
    assert "kafka.bootstrap: no such setting; [kafka] knows bootstrap_servers" in line


def test_check_on_a_terminal_is_for_people() -> None:
    checking = Terminal(
        [sys.executable, "-m", "worker.cli", "check"],
        Shell(XNLI_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1", XNLI_MODEL__NAME="./none").environment,
        ROOT,
    )
    assert checking.end() == 2
    assert re.search(r"^FAIL  broker +cannot reach 127\.0\.0\.1:1", checking.text, re.MULTILINE)


# On real Kafka


@pytest.fixture
def real(kafka: Kafka, topic: TopicFactory) -> Shell:
    return Shell(
        XNLI_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
        XNLI_TOPICS__INPUT=topic("requests", partitions=3),
        XNLI_TOPICS__OUTPUT=topic("results", partitions=3),
        XNLI_TOPICS__DEAD_LETTER=topic("dead-letters"),
        XNLI_MODEL__NAME="./none",
    )


@pytest.mark.kafka
def test_check_tries_transactions_and_creates_no_topic(real: Shell, kafka: Kafka) -> None:
    missing = f"missing-{uuid.uuid4().hex[:8]}"
    _, out, err = Shell(**real.environment | {"XNLI_TOPICS__OUTPUT": missing}).run("check")
    assert err == ""
    topics, _ = failures(out)
    assert f"topics.output = '{missing}'" in topics
    assert "create it (xnli-worker topics create)" in topics
    (transactions,) = [line for line in json_lines(out) if line["check"] == "transactions"]
    assert transactions["status"] == "ok"
    assert transactions["message"].startswith("granted")
    assert missing not in kafka.admin().list_topics(timeout=30).topics


@pytest.mark.kafka
def test_tail_shows_no_record_of_an_aborted_transaction(real: Shell, kafka: Kafka) -> None:
    topic = real.environment["XNLI_TOPICS__OUTPUT"]
    value, _ = Codecs().encode_result(as_written(RESULT))
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": uuid.uuid4().hex})
    producer.init_transactions(30)
    for key, end in (("aborted", producer.abort_transaction), ("committed", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(topic, value, key, partition=0)
        producer.flush(30)
        end(30)
    code, out, _ = real.run("tail", "--from-beginning", "--count", "1")
    assert code == 0
    assert [line["key"] for line in json_lines(out)] == ["committed"]


@pytest.mark.kafka
def test_what_the_broker_refuses_is_named_and_counted(kafka: Kafka, topic: TopicFactory) -> None:
    # Smaller than the header of a batch: the broker takes nothing.
    shell = Shell(
        XNLI_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
        XNLI_TOPICS__INPUT=topic(config={"max.message.bytes": "50"}),
    )
    code, out, err = shell.run("send", given=as_lines(*REQUESTS))
    assert code == 1
    assert (json.loads(out)["delivered"], json.loads(out)["failed"]) == (0, len(REQUESTS))
    complaints = [line for line in err.splitlines() if line.startswith("stdin:")]
    assert len(complaints) == len(REQUESTS)
    assert "max.message.bytes" in complaints[0]


@pytest.mark.kafka
def test_send_to_a_topic_that_is_not_there_sends_nothing(kafka: Kafka) -> None:
    if not isinstance(kafka, KafkaCluster):
        pytest.skip("a given broker may create topics by itself")
    shell = Shell(XNLI_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers, XNLI_TOPICS__INPUT="not-there")
    code, out, err = shell.run("send", given=as_lines(*REQUESTS))
    assert (code, out) == (1, "")
    assert "topics.input: topic 'not-there' is not there" in err


@pytest.mark.kafka
def test_a_dead_letter_is_shown_with_where_it_came_from(real: Shell, kafka: Kafka) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    headers = {f"{PREFIX}reason": "malformed", f"{PREFIX}topic": real.environment["XNLI_TOPICS__INPUT"]}
    producer.produce(
        real.environment["XNLI_TOPICS__DEAD_LETTER"],
        b"\x17\x2a",
        b"key",
        headers=[(name, value.encode()) for name, value in headers.items()],
    )
    producer.flush(30)
    code, out, _ = real.run("tail", "--dead-letters", "--from-beginning", "--count", "1")
    (line,) = json_lines(out)
    assert code == 0
    assert (line["key"], line["headers"], line["value_base64"]) == ("key", headers, "Fyo=")
