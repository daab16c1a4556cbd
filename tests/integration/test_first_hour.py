"""What a newcomer types, on a terminal of 80 columns and 24 lines."""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from pathlib import Path

import pytest

from tests.brokers.kafka import Kafka, KafkaCluster
from tests.brokers.ports import free_ports
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics
from tests.faults.workers import ROOT, WorkerProcess
from tests.terminal import Terminal
from worker import screen
from worker.kafka.embedded import EmbeddedBroker

CLI = [sys.executable, "-m", "worker.cli"]


def environment(**ours: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
    return kept | {"PYTHONPATH": str(ROOT)} | ours


def run(*arguments: str, **ours: str) -> tuple[int, str]:
    """Exit code and text of a command on a terminal."""
    terminal = Terminal([*CLI, *arguments], environment(**ours), ROOT)
    return terminal.end(), terminal.text


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_demo_fits_a_terminal_and_says_what_to_type_next() -> None:
    code, text = run("demo")
    assert code == 0
    lines = text.splitlines()
    head = next(number for number, line in enumerate(lines) if line.split() == ["text", "answer"])
    table = lines[head:]
    assert len(table) <= 22  # with the command and the bar above it 24
    assert all(screen.width(line) <= 80 for line in table), table
    assert re.search(r"each: (technology|finance)", text)  # scored each by itself
    assert "✗ dead letter: invalid" in text
    assert ["vector of" in line for line in table].index(True) == 12  # the last row
    assert re.search(r"next: .*xnli-worker classify", text)
    assert "worker/demo/checkpoint" not in text


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_ctrl_c_ends_the_demo_without_a_heap_of_complaints() -> None:
    terminal = Terminal([*CLI, "demo"], environment(), ROOT)
    terminal.read_until("starting the worker")
    terminal.type("\x03")
    assert terminal.end() == 1
    assert "stopping; again to quit" in terminal.text
    assert "Traceback" not in terminal.text
    assert "wrong" not in terminal.text


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_broker_a_worker_and_a_request_in_three_terminals(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    broker = Terminal([*CLI, "broker", "--port", str(port)], environment(), ROOT)
    broker.read_until("until Ctrl-C")
    # The settings that it prints are all that the worker needs.
    config = tmp_path / "worker.toml"
    config.write_text(broker.text[broker.text.index("  [kafka]") : broker.text.index("In a second")])
    ours = {"XNLI_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{port}"}
    worker = Terminal([*CLI, "run", "--config", str(config)], environment(XNLI_HTTP__PORT="0"), tmp_path)
    worker.read_until("starting", 20)
    worker.read_until("rebalance", 90)
    file = tmp_path / "requests.json"
    file.write_text(
        json.dumps([{"id": "1", "text": "The parcel came two days late.", "labels": ["delivery", "weather"]}], indent=2)
    )
    code, text = run("send", "--wait", str(file), **ours)
    assert code == 0, text
    (line,) = [line for line in text.splitlines() if re.match(r"\d\d:\d\d:\d\d", line)]
    assert re.search(r"\b1\b .*\d\.\d\d .*(delivery|weather)", line)
    assert "1 delivered to xnli.requests" in text
    code, text = run("tail", "--last", "5", "--count", "1", "--json", **ours)
    assert '"name": "demo"' in text
    worker.type("\x03")
    assert worker.end() == 0
    assert "draining; again to quit" in worker.text
    assert "tqdm" not in worker.text
    broker.type("\x03")
    assert broker.end() == 0


def test_exactly_once_is_refused_where_transactions_are_hollow() -> None:
    with EmbeddedBroker() as broker:
        code, text = run("run", XNLI_KAFKA__BOOTSTRAP_SERVERS=broker.bootstrap_servers, XNLI_MODEL__NAME="demo")
    assert code == 2
    assert "set delivery.guarantee = 'at_least_once', or use Apache Kafka" in text
    assert "torch" not in text  # before the model is loaded


@pytest.mark.kafka
def test_topics_are_created_as_declared_and_only_where_they_are_missing(kafka: Kafka) -> None:
    if not isinstance(kafka, KafkaCluster):
        pytest.skip("a broker that somebody else runs need not let us create topics")
    group = f"g-{uuid.uuid4().hex[:8]}"
    ours = {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": group,
        "XNLI_TOPICS__INPUT": f"{group}-in",
        "XNLI_TOPICS__OUTPUT": f"{group}-out",
        "XNLI_TOPICS__DEAD_LETTER": f"{group}-dead",
        "XNLI_TOPICS__LABEL_SETS": f"{group}-sets",
        "XNLI_TOPICS__RETRY": "5",
    }
    code, text = run("topics", "check", **ours)
    assert code == 1
    assert text.count("missing") == 5
    assert "xnli-worker topics create" in text
    code, text = run("topics", "create", "--partitions", "2", **ours)
    assert code == 0, text
    assert f"created  {group}-in: 2 partitions, 1 replica" in text
    assert f"created  {group}-sets: 1 partition, 1 replica" in text
    assert f"created  {group}.retry.5s: 2 partitions" in text
    code, text = run("topics", "create", "--partitions", "2", **ours)
    assert (code, text.count("ok  ")) == (0, 5)
    code, text = run("topics", "check", "--partitions", "3", **ours)
    assert code == 1
    assert f"{group}-out: has 2 partitions, declared are 3" in text


@pytest.mark.kafka
@pytest.mark.slow
def test_with_a_topic_missing_the_worker_says_so_every_ten_seconds(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path
) -> None:
    if not isinstance(kafka, KafkaCluster):
        pytest.skip("a broker that somebody else runs may create topics by itself")
    missing = f"requests-{uuid.uuid4().hex[:8]}"
    topics = Topics(missing, topic("results"), topic("dead"))
    ours = topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": missing,
    }
    with WorkerProcess(ours, tmp_path / "worker.log") as worker:
        worker.wait_for("not_ready", 30)
        said = worker.events("not_ready")[0]["problems"]
        assert f"topic {missing!r} is not there: create it (xnli-worker topics create) or correct the setting" in said


@pytest.mark.kafka
@pytest.mark.slow
def test_two_workers_of_one_name_are_told_how_to_have_two(kafka: Kafka, topic: TopicFactory, tmp_path: Path) -> None:
    topics = Topics(topic("requests", partitions=2), topic("results"), topic("dead"))
    ours = topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_KAFKA__GROUP_INSTANCE_ID": "worker-0",
    }
    with WorkerProcess(ours, tmp_path / "first.log") as first:
        first.wait_for("rebalance")
        with WorkerProcess(ours, tmp_path / "second.log") as second:
            second.wait_for("rebalance")
            assert first.process.wait(60) == 1
    said = first.log_path.read_text()
    assert "another worker has the name 'worker-0'" in said
    assert '"worker-{hostname}"' in said


def test_ctrl_c_leaves_the_prompt_a_line_of_its_own() -> None:
    with EmbeddedBroker() as broker:
        broker.create("xnli.results")
        ours = environment(XNLI_KAFKA__BOOTSTRAP_SERVERS=broker.bootstrap_servers)
        terminal = Terminal([*CLI, "tail"], ours, ROOT)
        terminal.read_until("following")
        terminal.type("\x03")
        terminal.end()
    assert terminal.text.endswith("^C\n")
