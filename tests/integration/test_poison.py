"""No message, however poisonous, stops a partition or harms its neighbour: real Kafka, real processes."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, account, count, group_lag, read_all, request, send
from tests.faults.workers import WorkerProcess, wait_until
from worker.rules.crash_count import STARTS

pytestmark = pytest.mark.kafka

# `make acceptance` takes 10,000.
MESSAGES = int(os.environ.get("XNLI_TEST_POISON_MESSAGES", "3000"))


@pytest.fixture
def topics(topic: TopicFactory) -> Topics:
    return Topics(topic("requests", partitions=4), topic("results", partitions=4), topic("dead", partitions=1))


def _environment(kafka: Kafka, topics: Topics) -> dict[str, str]:
    return topics.environment() | {
        "XNLI_LOG__LEVEL": "debug",  # a line for each batch
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_KAFKA__CONSUMER_PROPERTIES": '{"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}',
        "XNLI_RETRY__MAX_ATTEMPTS": "2",
        "XNLI_RETRY__INITIAL_MS": "50",
    }


def _finished(kafka: Kafka, topics: Topics) -> bool:
    return group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0


@pytest.mark.timeout(240)
@pytest.mark.parametrize("culprits", [1, pytest.param(100, marks=pytest.mark.acceptance)])
def test_poison_is_found_by_quartering(kafka: Kafka, topics: Topics, tmp_path: Path, culprits: int) -> None:
    places = set(random.Random(culprits).sample(range(MESSAGES), culprits))
    texts = ((f"k{i}", f"poison {i}" if i in places else f"plain {i}") for i in range(MESSAGES))
    send(kafka.bootstrap_servers, topics.requests, ((key, request(key, text)) for key, text in texts))
    with WorkerProcess(_environment(kafka, topics), tmp_path / "worker.log") as worker:
        wait_until(lambda: _finished(kafka, topics), 180, "the end", worker)
        assert worker.stop() == 0
        pairs = sum(event["pairs"] for event in worker.events("batch"))
        in_vain = sum(event["pairs_failed"] for event in worker.events("batch"))
    found = account(kafka.bootstrap_servers, topics)
    assert (found.lost, found.duplicated, found.out_of_order) == ((), (), 0)
    assert (found.results, found.dead_letters) == (MESSAGES - culprits, culprits)
    assert found.reasons == {"inference": culprits}
    assert pairs == 2 * (MESSAGES - culprits)  # two labels each, none answered twice
    if culprits == 1:
        # Two labels each; a batch of 256 and a third at most to find it, and its two attempts.
        assert in_vain <= 2 * (256 * 4 / 3 + 2)
    else:
        assert in_vain <= 3 * pairs  # about ten to a batch: hardly a quarter is clean


def _supervised(worker: WorkerProcess, kafka: Kafka, topics: Topics, timeout_s: float) -> int:
    """Restart the worker whenever it ends, until the group has no lag; return the number of restarts."""
    deadline_s = time.monotonic() + timeout_s
    for turn in _turns(deadline_s):
        if worker.process.poll() is not None:
            assert worker.process.returncode == 137, worker.log_path.read_text()[-3000:]
            worker.restart()
        elif turn % 10 == 0 and _finished(kafka, topics):
            return worker.starts - 1
    raise AssertionError(
        f"not finished after {timeout_s} s and {worker.starts} starts\n{worker.log_path.read_text()[-3000:]}"
    )


def _turns(deadline_s: float) -> Iterator[int]:
    turn = 0
    while time.monotonic() < deadline_s:
        yield turn
        turn += 1
        time.sleep(0.05)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("killers", [1, pytest.param(2, marks=pytest.mark.acceptance)])
def test_a_message_that_kills_the_process_is_quarantined(
    kafka: Kafka, topics: Topics, tmp_path: Path, killers: int
) -> None:
    # The keys of the killers land in one partition.
    total = 5000
    places = {2000: "killer-0", 2040: "killer-1"} if killers == 2 else {2000: "killer-0"}
    records = []
    for i in range(total):
        records.append((f"k{i}", request(f"k{i}", f"plain {i}")))
        if i in places:
            records.append((places[i], request(places[i], f"kill=137 {places[i]}")))
    send(kafka.bootstrap_servers, topics.requests, records)
    # Small batches, because two of them are what a quarantined partition is read one record at a time for.
    environment = _environment(kafka, topics) | {
        "XNLI_KAFKA__GROUP_INSTANCE_ID": "one",
        "XNLI_BATCH__MAX_MESSAGES": os.environ.get("XNLI_TEST_POISON_BATCH", "64"),
    }
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        restarts = _supervised(worker, kafka, topics, 240)
        assert worker.stop() == 0
    found = account(kafka.bootstrap_servers, topics)
    assert (found.lost, found.duplicated, found.out_of_order) == ((), (), 0)
    assert found.reasons == {"crash": killers}
    assert found.results == total
    # For each: its first death, one for each start that is counted, and one with its mark in place.
    assert STARTS + 1 <= restarts <= killers * (STARTS + 2)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_retry_topic_keeps_its_delay_and_the_main_topic_goes_on(
    kafka: Kafka, topic: TopicFactory, topics: Topics, tmp_path: Path
) -> None:
    delays_s = (2.5, 4.0)
    for delay_s in delays_s:
        kafka.create_topic(f"{topics.requests}.retry.{delay_s:g}s", 2)
    environment = _environment(kafka, topics) | {
        "XNLI_TOPICS__RETRY": ",".join(f"{delay_s:g}" for delay_s in delays_s),
        "XNLI_RETRY__MAX_ATTEMPTS": "4",
    }
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        wait_until(lambda: any(event["held"] == 8 for event in worker.events("rebalance")), 60, "8 partitions", worker)
        send(kafka.bootstrap_servers, topics.requests, [("flaky", request("flaky", "flaky=2 times"))])
        send(kafka.bootstrap_servers, topics.requests, ((f"k{i}", request(f"k{i}", f"plain {i}")) for i in range(500)))
        wait_until(lambda: _finished(kafka, topics), 30, "the main topic's end", worker)
        answered = {m.key() for m in read_all(kafka.bootstrap_servers, topics.results)}
        assert answered == {b"k%d" % i for i in range(500)}  # nobody waited for the flaky one
        wait_until(
            lambda: b"flaky" in {m.key() for m in read_all(kafka.bootstrap_servers, topics.results)}, 30, "it", worker
        )
        assert worker.stop() == 0
    found = account(kafka.bootstrap_servers, topics)
    assert (found.lost, found.duplicated, found.dead_letters) == ((), (), 0)
    result = {m.key(): m for m in read_all(kafka.bootstrap_servers, topics.results)}[b"flaky"]
    tries_s = [datetime.fromisoformat(event["timestamp"]).timestamp() for event in worker.events("retry")]
    tries_s.append(result.timestamp()[1] / 1000)
    for delay_s, (earlier_s, later_s) in zip(delays_s, pairwise(tries_s), strict=True):
        assert delay_s <= later_s - earlier_s <= delay_s * 1.2
    assert not [name for name in dict(result.headers() or []) if name.startswith("xnli.retry")]


@pytest.mark.timeout(120)
def test_too_many_dead_letters_halt_the_worker_and_lose_nothing(kafka: Kafka, topics: Topics, tmp_path: Path) -> None:
    records = [(f"k{i}", request(f"k{i}", f"plain {i}")) for i in range(50)]
    records += [(f"bad{i}", b"\x17 no Avro") for i in range(20)]
    send(kafka.bootstrap_servers, topics.requests, records)
    environment = _environment(kafka, topics) | {"XNLI_DEAD_LETTER__MAX_CONSECUTIVE": "5"}
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        assert worker.process.wait(60) == 1
        log = worker.log_path.read_text()
        assert "dead_letter.max_consecutive is 5" in log
    assert count(kafka.bootstrap_servers, topics.dead_letters) <= 10
    with WorkerProcess(_environment(kafka, topics), tmp_path / "second.log") as second:
        wait_until(lambda: _finished(kafka, topics), 60, "the end", second)
        assert second.stop() == 0
    found = account(kafka.bootstrap_servers, topics)
    assert (found.lost, found.duplicated) == ((), ())
    assert (found.results, found.dead_letters) == (50, 20)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("guarantee", [pytest.param("exactly_once", marks=pytest.mark.acceptance), "at_least_once"])
def test_a_result_the_broker_refuses_does_not_take_its_neighbours_along(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path, guarantee: str
) -> None:
    # The results topic takes small records only, and a result carries its request's attributes.
    topics = Topics(
        topic("requests"), topic("results", config={"max.message.bytes": "20000"}), topic("dead", partitions=1)
    )
    records = [(f"k{i}", request(f"k{i}", f"plain {i}")) for i in range(200)]
    for place in (50, 51, 120):
        # Incompressible: the limit holds for the compressed request.
        label = random.Random(place).randbytes(20_000).hex()
        records.insert(place, (f"huge-{place}", request(f"huge-{place}", "plain", [label])))
    environment = _environment(kafka, topics) | {
        "XNLI_DELIVERY__GUARANTEE": guarantee,
        "XNLI_LIMITS__MAX_LABEL_CHARS": "50000",
    }
    send(kafka.bootstrap_servers, topics.requests, records)
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        wait_until(lambda: _finished(kafka, topics), 60, "the end", worker)
        assert worker.stop() == 0
    found = account(kafka.bootstrap_servers, topics)
    assert (found.lost, found.duplicated) == ((), ())
    # Without a transaction a later request may have been taken before the refusal of an earlier one is known.
    assert guarantee == "at_least_once" or found.out_of_order == 0
    assert found.reasons == {"too_large": 3}
    assert found.results == 200
