"""Exactly-once where the network hides how a transaction ended, and where an old EndTxn arrives in the next one.

An EndTxn that was lost with its connection is asked for again by librdkafka itself. Should the first arrive after all,
under the same producer epoch, a broker takes it for the end of whatever transaction is open then (KIP-890).

``XNLI_TEST_AMBIGUOUS_MESSAGES`` and ``XNLI_TEST_AMBIGUOUS_SEEDS`` are the size of the random runs: 2,000 messages under
each of 2 seeds; in full 100,000 under 20.
"""

from __future__ import annotations

import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer

from tests.brokers.proxy import Api, Delay, Fault, Hold, ProxiedKafka, Request, Swallow
from tests.conftest import running
from tests.faults.requests_at_risk import PUBLISH_TIMEOUT_S, STEPS, RequestsAtRisk
from tests.faults.verifier import Account, Topics, account, group_lag, read_all, request, send
from tests.faults.workers import WorkerProcess, wait_until
from tests.integration.test_dead_letters import Scene, once
from worker.errors import Unpublishable
from worker.kafka.transactional import TransactionalPublisher
from worker.messages import CommitBatch, Output, OutputKind, Partition, Position

pytestmark = pytest.mark.kafka

MESSAGES = int(os.environ.get("XNLI_TEST_AMBIGUOUS_MESSAGES", "2000"))
SEEDS = range(int(os.environ.get("XNLI_TEST_AMBIGUOUS_SEEDS", "2")))
PARTITIONS = 4
REFUSED = 2
# What a failure shows of both logs.
NEAR_S = 1.0
MOST_LINES = 300
TAIL_LINES = 60
APPENDED = {"message.timestamp.type": "LogAppendTime"}


@pytest.fixture(scope="module")
def proxied() -> Iterator[ProxiedKafka]:
    cluster = ProxiedKafka()
    for started in running(cluster):
        assert started is cluster
        yield cluster


@pytest.fixture
def topics(proxied: ProxiedKafka) -> Iterator[Topics]:
    mark = uuid.uuid4().hex[:8]
    topics = Topics(f"requests-{mark}", f"results-{mark}", f"dead-{mark}")
    proxied.create_topic(topics.requests, PARTITIONS)
    # By the broker's clock, so that a record can be found among the frames.
    proxied.create_topic(topics.dead_letters, PARTITIONS, APPENDED)
    proxied.create_topic(topics.results, PARTITIONS, APPENDED | {"max.message.bytes": "20000"})
    yield topics
    proxied.proxy.decide = lambda _: None


def _huge(number: int) -> bytes:
    """A request whose result the results topic refuses: the transaction that it is in is aborted, at once."""
    return request(f"huge{number}", "plain", [random.Random(number).randbytes(20_000).hex()])


def _environment(proxied: ProxiedKafka, topics: Topics, batch: int) -> dict[str, str]:
    return topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": proxied.proxied_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_DELIVERY__GUARANTEE": "exactly_once",
        "XNLI_BATCH__MAX_MESSAGES": str(batch),
        "XNLI_RETRY__INITIAL_MS": "50",
        "XNLI_LIMITS__MAX_LABEL_CHARS": "50000",
    }


class Evidence:
    """Whatever a failure has to say for itself: it may not come again for weeks."""

    def __init__(self, proxied: ProxiedKafka, topics: Topics, folder: Path) -> None:
        self._proxied = proxied
        self._topics = topics
        self._folder = folder

    def save(self) -> None:
        """Write down what passed the proxy, beside the worker's log."""
        frames = self._proxied.proxy.log(Api.INIT_PRODUCER_ID, *STEPS, Api.END_TXN)
        (self._folder / "frames.log").write_text("\n".join(frames), encoding="utf-8")

    def ends(self) -> str:
        """The ends of both logs."""
        self.save()
        return "\n".join([f"logs in {self._folder}", *self._around([])])

    def of(self, found: Account) -> str:
        """The wrong records with every place where they lie, aborted ones too, and what happened in those moments."""
        wrong = (*found.lost, *found.duplicated)
        lines = [f"{found}", f"logs in {self._folder}"]
        moments_s: list[float] = []
        for topic in (self._topics.requests, self._topics.results, self._topics.dead_letters):
            committed = {(m.partition(), m.offset()) for m in read_all(self._proxied.bootstrap_servers, topic)}
            for message in read_all(self._proxied.bootstrap_servers, topic, "read_uncommitted"):
                key = (message.key() or b"").decode()
                if key not in wrong:
                    continue
                place = message.partition(), message.offset()
                at_s = message.timestamp()[1] / 1000
                fate = "" if place in committed else " ABORTED"
                lines.append(f"{key} {topic} {place[0]}@{place[1]} {datetime.fromtimestamp(at_s, UTC)}{fate}")
                if topic != self._topics.requests:
                    moments_s.append(at_s)
        return "\n".join([*lines, *self._around(moments_s)])

    def _around(self, moments_s: Sequence[float]) -> list[str]:
        """The lines of both logs in the second before and after each moment, and the ends of both."""
        found: list[str] = []
        for name in ("frames.log", "worker.log"):
            lines = (self._folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
            times = [re.search(r"20\d\d-\d\d-\d\dT[\d:.]+", line) for line in lines]
            near = [
                line
                for line, time in zip(lines, times, strict=True)
                if time and any(abs(_seconds(time[0]) - moment_s) < NEAR_S for moment_s in moments_s)
            ]
            if moments_s:
                found += [f"---- {name}, near", *near[:MOST_LINES]]
            found += [f"---- {name}, end", *lines[-TAIL_LINES:]]
        return found


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).replace(tzinfo=UTC).timestamp()


def _play(
    proxied: ProxiedKafka,
    topics: Topics,
    folder: Path,
    decide: Callable[[Request], Fault | None],
    records: Sequence[tuple[str, bytes]],
    batch: int,
) -> Account:
    """Answer all messages with a worker behind the proxy, whose faults begin with the first record.

    Fails where one is lost, doubled or out of order, with what happened around it.
    """
    evidence = Evidence(proxied, topics, folder)
    with WorkerProcess(_environment(proxied, topics, batch), folder / "worker.log") as worker:
        worker.wait_for("rebalance")
        proxied.proxy.events.clear()
        proxied.proxy.decide = decide
        send(proxied.bootstrap_servers, topics.requests, records)

        def is_done() -> bool:
            assert worker.process.poll() is None, f"the worker has ended with {worker.process.returncode}"
            return group_lag(proxied.bootstrap_servers, topics.requests, topics.requests) == 0

        try:
            wait_until(is_done, 60 + len(records) / 20, "all to be answered", worker, every_s=0.5)
            proxied.proxy.decide = lambda _: None
            assert worker.stop() == 0
        except AssertionError as error:
            error.add_note(evidence.ends())
            raise
        finally:
            evidence.save()
    found = account(proxied.bootstrap_servers, topics)
    if found.lost or found.duplicated or found.out_of_order:
        pytest.fail(evidence.of(found), pytrace=False)
    return found


@pytest.mark.timeout(120)
def test_an_abort_that_arrives_in_the_next_transaction_takes_nothing_away(
    proxied: ProxiedKafka, topics: Topics, tmp_path: Path
) -> None:
    """The broker refuses a result, so its transaction is aborted.

    The abort is lost, asked for again, and arrives after all. By then the next transaction has written the dead
    letter, which is aborted; its offset, which is sent after it, is not.
    """
    aborts = [Hold(until=Api.PRODUCE, cut=True)]
    arrived = len(proxied.proxy.resent)
    found = _play(
        proxied,
        topics,
        tmp_path,
        lambda request: aborts.pop(0) if aborts and request.aborts else None,
        [("huge", _huge(0))],
        batch=20,
    )
    assert len(proxied.proxy.resent) == arrived + 1  # or the fault was none
    assert found.buried == {"huge"}


@pytest.mark.acceptance
@pytest.mark.timeout(120)
def test_an_answer_that_never_comes_does_not_end_the_process(
    proxied: ProxiedKafka, topics: Topics, tmp_path: Path
) -> None:
    """Partitions are added to a transaction and nobody says so, so the worker gives the transaction up.

    librdkafka 2.16.1 ends the process by an assertion if a client is given up whose transaction was aborted meanwhile.
    """
    answers = [Swallow()]
    records = [(f"k{i}", request(f"k{i}", "plain")) for i in range(40)]
    found = _play(
        proxied,
        topics,
        tmp_path,
        lambda request: answers.pop() if answers and request.api == Api.ADD_PARTITIONS_TO_TXN else None,
        records,
        batch=20,
    )
    assert not answers  # or the fault was none
    assert found.results == len(records)


@pytest.mark.acceptance
@pytest.mark.timeout(120)
def test_a_replay_is_not_harmed_by_the_end_of_its_last_transaction(proxied: ProxiedKafka, topics: Topics) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
    environment = kept | _environment(proxied, topics, batch=20)
    scene = Scene(proxied, topics.requests, topics.dead_letters, environment)
    scene.add(range(40))
    ends = [Hold(until=Api.PRODUCE, cut=True)]
    arrived = len(proxied.proxy.resent)
    proxied.proxy.decide = lambda request: ends.pop() if ends and request.commits else None
    code, _, said = scene.run("replay", "--rate", "40")  # ten in each transaction
    assert len(proxied.proxy.resent) == arrived + 1  # or the fault was none
    assert (code, scene.keys()) == (0, once(range(40))), said


@pytest.mark.acceptance
@pytest.mark.timeout(300 + MESSAGES // 50)
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_or_doubled_whatever_becomes_of_requests(
    proxied: ProxiedKafka, topics: Topics, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    refused = set(rng.sample(range(MESSAGES), REFUSED))
    records = [
        (f"huge{i}", _huge(i)) if i in refused else (f"k{i}", request(f"k{i}", f"plain {i}")) for i in range(MESSAGES)
    ]
    arrived = len(proxied.proxy.resent)
    at_risk = RequestsAtRisk(random.Random(seed), slow=2 + MESSAGES // 10_000)
    found = _play(proxied, topics, tmp_path, at_risk, records, batch=max(10, MESSAGES // 400))
    assert len(proxied.proxy.resent) > arrived
    assert found.buried == {f"huge{i}" for i in refused}


class Owner:
    """Of the offsets of a group that has no members."""

    def __init__(self, servers: str, group: str) -> None:
        self._consumer = Consumer({"bootstrap.servers": servers, "group.id": group, "log_level": 0})

    def group_metadata(self) -> Any:
        return self._consumer.consumer_group_metadata()

    def owns(self, generations: Mapping[Partition, int]) -> bool:
        return bool(generations)


def test_an_abort_drops_what_comes_back_behind_a_refusal_and_is_asked_for_once(
    proxied: ProxiedKafka, topics: Topics
) -> None:
    ends: list[Request] = []

    def decide(request: Request) -> Fault | None:
        if request.aborts:
            ends.append(request)
            return Delay(0.5)
        # What was sent behind the refused record comes back when the abort has begun.
        produced.extend([request] if request.api == Api.PRODUCE else [])
        return Delay(0.4) if request.api == Api.PRODUCE and len(produced) > 1 else None

    produced: list[Request] = []
    config = {"bootstrap.servers": proxied.proxied_servers, "transactional.id": topics.results, "batch.size": 1}
    publisher = TransactionalPublisher(
        config | {"enable.idempotence": True, "log_level": 0},
        Owner(proxied.bootstrap_servers, topics.requests),
        time.monotonic,
    )
    publisher.start(30)
    partition = Partition(topics.requests, 0)

    def answered(*values: bytes) -> None:
        outputs = [Output(OutputKind.RESULT, topics.results, b"one key", value, ()) for value in values]
        positions = [Position(partition, offset, 1) for offset in range(len(values))]
        release = CommitBatch(tuple(zip(positions, outputs, strict=True)), {partition: len(values)}, {partition: 1})
        while not publisher.publish(release, PUBLISH_TIMEOUT_S):
            time.sleep(0.01)

    proxied.proxy.decide = decide
    with pytest.raises(Unpublishable):
        answered(random.Random(0).randbytes(30_000), b"1", b"2", b"3")
    assert len(produced) > 1
    assert len(ends) == 1
    proxied.proxy.decide = lambda _: None
    answered(b"1", b"2", b"3")
    publisher.close()
    assert [m.value() for m in read_all(proxied.bootstrap_servers, topics.results)] == [b"1", b"2", b"3"]
