"""What the verifier counts as lost must be lost."""

from __future__ import annotations

import threading

import pytest
from confluent_kafka import Producer

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import read_all

pytestmark = pytest.mark.kafka


def test_what_an_open_transaction_hides_is_waited_for(kafka: Kafka, topic: TopicFactory) -> None:
    name = topic()
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": name})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(name, b"one")
    assert producer.flush(30) == 0
    commit = threading.Timer(1.0, producer.commit_transaction, [30])
    commit.start()
    try:
        assert [message.value() for message in read_all(kafka.bootstrap_servers, name)] == [b"one"]
    finally:
        commit.join()
