"""A header whose name is not UTF-8 concerns its own message only, wherever it is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import Message

from tests.brokers import librdkafka
from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, group_lag, read_all, request, send
from tests.faults.workers import ROOT, WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

NAME = b"caf\xe9"
TIMESTAMP_MS = 1_600_000_000_000


def _environment(kafka: Kafka, topics: Topics, guarantee: str) -> dict[str, str]:
    return topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_DELIVERY__GUARANTEE": guarantee,
    }


def _only(messages: list[Message]) -> Message:
    (message,) = messages
    return message


@pytest.mark.timeout(90)
@pytest.mark.parametrize("guarantee", ["exactly_once", pytest.param("at_least_once", marks=pytest.mark.acceptance)])
def test_it_becomes_a_dead_letter_and_its_neighbours_are_answered(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path, guarantee: str
) -> None:
    topics = Topics(topic("requests"), topic("results"), topic("dead"))
    send(kafka.bootstrap_servers, topics.requests, [("before", request("before", "plain"))])
    value = request("bad", "plain")
    librdkafka.produce(
        kafka.bootstrap_servers,
        topics.requests,
        key=b"bad",
        value=value,
        headers=[(b"trace", b"1"), (NAME, b"au lait")],
        timestamp_ms=TIMESTAMP_MS,
    )
    send(kafka.bootstrap_servers, topics.requests, [("behind", request("behind", "plain"))])
    with WorkerProcess(_environment(kafka, topics, guarantee), tmp_path / "worker.log") as worker:
        wait_until(
            lambda: group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0, 30, "the end", worker
        )
        assert worker.stop() == 0
    assert worker.starts == 1
    results = read_all(kafka.bootstrap_servers, topics.results)
    assert [m.key() for m in results] == [b"before", b"behind"]
    dead_letter = _only(read_all(kafka.bootstrap_servers, topics.dead_letters))
    headers = dict(dead_letter.headers() or [])
    assert (dead_letter.key(), dead_letter.value(), dead_letter.timestamp()[1]) == (b"bad", value, TIMESTAMP_MS)
    assert headers["xnli.dlq.reason"] == b"malformed"
    assert headers["xnli.dlq.headers"] == b"unreadable"
    assert "trace" not in headers


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("command", "said"),
    [
        pytest.param(
            ("tail", "--dead-letters", "--from-beginning", "--count", "3"), "three", marks=pytest.mark.acceptance
        ),
        pytest.param(("dead-letters", "list"), "three", marks=pytest.mark.acceptance),
        pytest.param(("dead-letters", "show", "0:1"), "not UTF-8", marks=pytest.mark.acceptance),
        (("dead-letters", "replay", "--yes"), '"replayed": 2, "refused": {"unreadable": 1}'),
    ],
)
def test_commands_go_on_to_the_others(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path, command: tuple[str, ...], said: str
) -> None:
    topics = Topics(topic("requests"), topic("results"), topic("dead"))
    for key, name in ((b"one", b"a"), (b"two", NAME), (b"three", b"a")):
        headers = [(name, b"1"), (b"xnli.dlq.reason", b"invalid"), (b"xnli.dlq.topic", topics.requests.encode())]
        librdkafka.produce(
            kafka.bootstrap_servers, topics.dead_letters, key=key, value=request("id", "t"), headers=headers
        )
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n[model]\nname = "demo"\n'
        f'[topics]\ninput = "{topics.requests}"\noutput = "{topics.results}"\ndead_letter = "{topics.dead_letters}"\n'
    )
    run = subprocess.run(
        [sys.executable, "-m", "worker.cli", command[0], *command[1:], "--config", str(settings)],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == ("refused" in said), run.stderr  # a replay that refuses says so by its exit code too
    assert "Traceback" not in run.stderr
    assert said in run.stdout


@pytest.mark.timeout(90)
@pytest.mark.acceptance
def test_retry_and_label_set_topics_go_on_behind_it(kafka: Kafka, topic: TopicFactory, tmp_path: Path) -> None:
    """On a retry topic nothing is known of its way, so it is its own origin; a label set is read all the same."""
    topics, sets = Topics(topic("requests"), topic("results"), topic("dead")), topic("sets")
    retry = f"{topics.requests}.retry.1s"
    kafka.create_topic(retry, 1)
    for name, key in ((NAME, b"first"), (b"plain", b"second")):
        librdkafka.produce(kafka.bootstrap_servers, sets, key=key, value=b'["a", "b"]', headers=[(name, b"1")])
    librdkafka.produce(
        kafka.bootstrap_servers, retry, key=b"bad", value=request("bad", "plain"), headers=[(NAME, b"1")]
    )
    send(kafka.bootstrap_servers, retry, [("behind", request("behind", "plain"))])
    settings = _environment(kafka, topics, "exactly_once") | {
        "XNLI_TOPICS__RETRY": "1",
        "XNLI_TOPICS__LABEL_SETS": sets,
    }
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        wait_until(lambda: bool(read_all(kafka.bootstrap_servers, topics.results)), 30, "the neighbour", worker, 0.5)
        assert worker.stop() == 0
        assert worker.events("label_sets_loaded")[0]["sets"] == 2
    dead_letter = _only(read_all(kafka.bootstrap_servers, topics.dead_letters))
    headers = dict(dead_letter.headers() or [])
    assert headers["xnli.dlq.headers"] == b"unreadable"
    assert headers["xnli.dlq.topic"] == retry.encode()
