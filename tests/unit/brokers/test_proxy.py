"""The proxy between a client and a real broker: what it does to single requests, and that all others pass."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import KafkaException, Producer

from tests.brokers.proxy import Api, Cut, Delay, Fault, Hold, ProxiedKafka, Request, Rewrite, Swallow
from tests.conftest import running
from tests.faults.verifier import read_all

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def proxied() -> Iterator[ProxiedKafka]:
    cluster = ProxiedKafka()
    for started in running(cluster):
        assert started is cluster
        yield cluster


@pytest.fixture
def name(proxied: ProxiedKafka) -> Iterator[str]:
    topic = f"topic-{uuid.uuid4().hex[:8]}"
    proxied.create_topic(topic)
    yield topic
    proxied.proxy.decide = lambda _: None


def _once(api: Api, fault: Fault) -> Callable[[Request], Fault | None]:
    """The fault of the first request of this key."""
    faults = [fault]

    def decide(request: Request) -> Fault | None:
        return faults.pop() if faults and request.api == api else None

    return decide


def _producer(proxied: ProxiedKafka, **properties: str | int) -> Producer:
    return Producer({"bootstrap.servers": proxied.proxied_servers, "linger.ms": 0, "log_level": 0, **properties})


def _values(proxied: ProxiedKafka, topic: str) -> list[bytes | None]:
    return [message.value() for message in read_all(proxied.bootstrap_servers, topic)]


def test_a_client_never_leaves_the_proxy(proxied: ProxiedKafka, name: str) -> None:
    known = _producer(proxied).list_topics(name, timeout=30)
    assert [f"{broker.host}:{broker.port}" for broker in known.brokers.values()] == [proxied.proxied_servers]
    assert [f"{b.host}:{b.port}" for b in proxied.admin().list_topics(timeout=30).brokers.values()] == [
        proxied.bootstrap_servers
    ]


@pytest.mark.parametrize("fault", [Cut(reached=False), Cut(reached=True), Swallow(), Delay(1.0)])
def test_an_idempotent_record_survives_whatever_becomes_of_its_request(
    proxied: ProxiedKafka, name: str, fault: Fault
) -> None:
    proxied.proxy.decide = _once(Api.PRODUCE, fault)
    producer = _producer(proxied, **{"enable.idempotence": True, "socket.timeout.ms": 2000})
    began_s = time.monotonic()
    producer.produce(name, b"one")
    assert producer.flush(30) == 0
    assert _values(proxied, name) == [b"one"]
    if isinstance(fault, Delay):
        assert time.monotonic() - began_s >= 1.0


def test_cut_says_whether_the_broker_had_the_request(proxied: ProxiedKafka, name: str) -> None:
    for reached in (False, True):
        proxied.proxy.decide = _once(Api.PRODUCE, Cut(reached=reached))
        producer = _producer(proxied, retries=0, acks="all")
        producer.produce(name, b"%d" % reached)
        assert producer.flush(30) == 0
    assert _values(proxied, name) == [b"1"]


def test_an_answer_is_rewritten(proxied: ProxiedKafka, name: str) -> None:
    other = Rewrite(lambda answer: answer.replace(name.encode(), b"x" * len(name)))
    proxied.proxy.decide = lambda request: other if request.api == Api.METADATA else None
    assert "x" * len(name) in _producer(proxied).list_topics(timeout=30).topics


@pytest.mark.parametrize("cut", [True, False])
def test_a_held_abort_ends_the_next_transaction(proxied: ProxiedKafka, name: str, cut: bool) -> None:
    """What KIP-890 is about: under the same epoch a broker cannot tell a late EndTxn from a timely one."""
    proxied.proxy.decide = _once(Api.END_TXN, Hold(until=Api.PRODUCE, cut=cut))
    before = len(proxied.proxy.resent)
    producer = _producer(proxied, **{"transactional.id": name})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(name, b"aborted")
    producer.flush(30)
    if cut:
        producer.abort_transaction(30)  # the client asks again by itself, over a new connection
    else:
        with pytest.raises(KafkaException, match="TIMED_OUT"):
            producer.abort_transaction(1)
        proxied.proxy.cut()
        producer.abort_transaction(30)
    producer.begin_transaction()
    producer.produce(name, b"wanted")
    producer.flush(30)
    assert proxied.proxy.resent[before:] == [0]
    with pytest.raises(KafkaException, match="INVALID_TXN_STATE"):
        producer.commit_transaction(30)
    assert _values(proxied, name) == []


def test_a_producer_that_begins_anew_fences_what_was_held(proxied: ProxiedKafka, name: str) -> None:
    proxied.proxy.decide = _once(Api.END_TXN, Hold(until=Api.PRODUCE, cut=False))
    before = len(proxied.proxy.resent)
    first = _producer(proxied, **{"transactional.id": name})
    first.init_transactions(30)
    first.begin_transaction()
    first.produce(name, b"aborted")
    first.flush(30)
    with pytest.raises(KafkaException, match="TIMED_OUT"):
        first.abort_transaction(1)
    second = _producer(proxied, **{"transactional.id": name})
    second.init_transactions(30)
    second.begin_transaction()
    second.produce(name, b"wanted")
    second.flush(30)
    second.commit_transaction(30)
    assert proxied.proxy.resent[before:] == [47]  # INVALID_PRODUCER_EPOCH
    assert _values(proxied, name) == [b"wanted"]
