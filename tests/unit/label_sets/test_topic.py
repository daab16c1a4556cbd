"""Records of a label-set topic that are none, through the embedded broker."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from structlog.testing import capture_logs

from tests.builders import followed_sets
from worker.kafka.client_config import Properties
from worker.kafka.embedded import EmbeddedBroker

BAD = {
    b"[" + b"9" * 5000 + b"]": "the value is no JSON: Exceeds the limit",
    b"[" * 100_000: "the value is no JSON: maximum recursion depth",
    b'["a", "\\ud800"]': "[1] = '\\ud800': ",
    b'["a", "\xe2\x80\x8b"]': "[1] = '\\u200b': is blank",
    b'["a", ""]': "[1] = '': is blank",
    b'["a", 1]': "[1] = 1: Input should be a valid string",
    b'{"a": 1}': "labels is missing; a is no field; fields are name, version",
    b'"a"': "the value is no object with labels, and no array of them",
    b"[]": "the value is an empty array",
    b"\xff": "the value is no JSON",
    b"": "the value is no JSON",
}


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as found:
        yield found


def test_one_bad_value_is_refused_with_its_place_and_reason_and_the_former_set_stays(broker: EmbeddedBroker) -> None:
    topic = f"label-sets-{uuid.uuid4().hex[:8]}"
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
    producer.produce(topic, b'["a", "b"]', b"kept", partition=0)
    for value in BAD:
        producer.produce(topic, value, b"kept", partition=0)
    producer.produce(topic, b'["a"]', b"no UTF-8: \xff", partition=0)
    producer.produce(topic, b'["a"]', b"\xe2\x80\x8b", partition=0)
    producer.produce(topic, b'["a"]', None, partition=0)
    producer.produce(topic, b'["c"]', b"later", partition=0)
    assert producer.flush(10) == 0

    servers: Properties = {"bootstrap.servers": broker.bootstrap_servers}
    sets = followed_sets(broker.bootstrap_servers, AdminClient(servers), topic)
    with capture_logs() as told:
        sets.load(lambda: False)
    sets.close()
    assert set(sets.stored) == {"kept", "later"}
    assert (kept := sets.stored.find("kept", None)) is not None
    assert kept.labels == ("a", "b")
    refused = [line for line in told if line["event"] == "label_set_refused"]
    assert [line["offset"] for line in refused] == list(range(1, len(BAD) + 4))
    for line, why in zip(
        refused, [*BAD.values(), *["the key is no valid Unicode", *["the key is blank"] * 2]], strict=True
    ):
        assert line["why"].startswith(why)
        assert (line["topic"], line["partition"]) == (topic, 0)
        json.dumps(line, ensure_ascii=False).encode()
    assert [line["stays"] for line in refused] == ["the former set"] * len(BAD) + ["no set of this name"] * 3
