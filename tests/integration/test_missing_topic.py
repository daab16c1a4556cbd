"""A topic that is not there is named, with how to create it; once it is, all is answered."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

from tests.brokers.kafka import KafkaCluster
from tests.brokers.ports import free_ports
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, account, request, send
from tests.faults.workers import WorkerProcess, wait_until

pytestmark = pytest.mark.kafka


def _readiness(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as failing:
        return failing.code, " ".join(json.loads(failing.read())["problems"])


@pytest.mark.timeout(90)
def test_a_missing_results_topic_is_named_until_it_is_created(
    kafka: KafkaCluster, topic: TopicFactory, tmp_path: Path
) -> None:
    if not isinstance(kafka, KafkaCluster):
        pytest.skip("a broker that somebody else runs may create topics by itself")
    topics = Topics(topic("requests"), f"results-{uuid.uuid4().hex[:8]}", topic("dead"))
    (port,) = free_ports(1)
    environment = topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_HTTP__PORT": str(port),
    }
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        worker.wait_for("rebalance")
        send(kafka.bootstrap_servers, topics.requests, [("k0", request("k0", "plain"))])
        status, said = _readiness(port)
        assert status == 503
        assert f"topic {topics.results!r} is not there: create it (xnli-worker topics create)" in said
        assert [event["topic"] for event in worker.events("topic_missing")] == [topics.results]
        kafka.create_topic(topics.results)
        wait_until(lambda: _readiness(port)[0] == 200, 30, "the worker to be ready", worker)
        wait_until(lambda: not account(kafka.bootstrap_servers, topics).lost, 30, "the answer", worker)
        assert worker.stop() == 0
