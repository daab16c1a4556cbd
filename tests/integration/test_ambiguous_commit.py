"""Exactly-once where the network hides how a transaction ended, and where an old EndTxn arrives in the next one.

An EndTxn that was lost with its connection is asked for again by librdkafka itself. Should the first arrive after all,
under the same producer epoch, a broker takes it for the end of whatever transaction is open then (KIP-890).

``XNLI_TEST_AMBIGUOUS_MESSAGES`` and ``XNLI_TEST_AMBIGUOUS_SEEDS`` are the size of the random runs: 2,000 messages under
each of 2 seeds; in full 100,000 under 20.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.brokers.proxy import Api, Cut, Delay, Fault, Hold, ProxiedKafka, Request, Swallow
from tests.conftest import running
from tests.faults.verifier import Account, Topics, account, group_lag, request, send
from tests.faults.workers import WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

MESSAGES = int(os.environ.get("XNLI_TEST_AMBIGUOUS_MESSAGES", "2000"))
SEEDS = range(int(os.environ.get("XNLI_TEST_AMBIGUOUS_SEEDS", "2")))
PARTITIONS = 4
REFUSED = 2
PUBLISH_TIMEOUT_S = 5.0  # of the worker: an answer that comes later than this comes too late
STEPS = (Api.ADD_PARTITIONS_TO_TXN, Api.PRODUCE, Api.ADD_OFFSETS_TO_TXN, Api.TXN_OFFSET_COMMIT)


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
    for topic in (topics.requests, topics.dead_letters):
        proxied.create_topic(topic, PARTITIONS)
    proxied.create_topic(topics.results, PARTITIONS, {"max.message.bytes": "20000"})
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


def _play(
    proxied: ProxiedKafka,
    topics: Topics,
    folder: Path,
    decide: Callable[[Request], Fault | None],
    records: Sequence[tuple[str, bytes]],
    batch: int,
) -> Account:
    """Answer all messages with a worker behind the proxy, whose faults begin with the first record."""
    with WorkerProcess(_environment(proxied, topics, batch), folder / "worker.log") as worker:
        worker.wait_for("rebalance")
        proxied.proxy.events.clear()
        proxied.proxy.decide = decide
        send(proxied.bootstrap_servers, topics.requests, records)
        try:
            wait_until(
                lambda: group_lag(proxied.bootstrap_servers, topics.requests, topics.requests) == 0,
                60 + len(records) / 20,
                "all to be answered",
                worker,
                every_s=0.5,
            )
            proxied.proxy.decide = lambda _: None
            assert worker.stop() == 0
        finally:
            (folder / "frames.log").write_text(
                "\n".join(proxied.proxy.log(Api.INIT_PRODUCER_ID, *STEPS, Api.END_TXN)), encoding="utf-8"
            )
    return account(proxied.bootstrap_servers, topics)


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
    assert (found.lost, found.duplicated) == ((), ())
    assert found.buried == {"huge"}


class Weather:
    """Seeded faults of the requests that a transaction is made of. ``slow`` bounds those that cost a time-out each."""

    def __init__(self, seed: int, slow: int) -> None:
        self._random = random.Random(seed)
        self._slow = slow

    def __call__(self, request: Request) -> Fault | None:
        chance = self._random.random()
        if request.api == Api.END_TXN:
            return self._late(request) if chance < 0.25 else self._cut() if chance < 0.3 else self._slowly()
        if request.api in STEPS:
            return self._late(request) if chance < 0.01 else self._cut() if chance < 0.02 else self._slowly()
        return None

    def _late(self, request: Request) -> Fault:
        # Most harm is done where results are written and their offsets are not.
        until = (*STEPS, Api.ADD_OFFSETS_TO_TXN) if request.api == Api.END_TXN else (Api(request.api),)
        return Hold(self._random.choice(until), cut=True)

    def _cut(self) -> Fault:
        return Cut(reached=self._random.random() < 0.5)

    def _slowly(self) -> Fault | None:
        if not self._slow or self._random.random() > 0.01:
            return None
        self._slow -= 1
        too_late = Delay(PUBLISH_TIMEOUT_S + 2)
        return self._random.choice(
            (too_late, Swallow(), Delay(self._random.uniform(0, 4)), Hold(Api.PRODUCE, cut=False))
        )


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
    weather = Weather(seed, slow=2 + MESSAGES // 10_000)
    found = _play(proxied, topics, tmp_path, weather, records, batch=max(10, MESSAGES // 400))
    assert len(proxied.proxy.resent) > arrived
    assert (found.lost, found.duplicated, found.out_of_order) == ((), (), 0)
    assert found.buried == {f"huge{i}" for i in refused}
