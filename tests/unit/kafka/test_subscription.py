from __future__ import annotations

from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError

from worker.kafka.subscription import Subscription

HIDDEN = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
SLOW = KafkaError(KafkaError._TIMED_OUT)
MISSING = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)


class Client:
    """Keeps what was subscribed to, in order. What a group makes of it is in test_partition_errors."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def subscribe(self, topics: list[str], **_: Any) -> None:
        self.asked.append(topics)


def subscribed(client: Client, *, is_all_or_nothing: bool = True) -> Subscription:
    subscription = Subscription(cast("Consumer", client), is_all_or_nothing=is_all_or_nothing)
    subscription.begin(["a", "b"])
    return subscription


def test_a_hidden_topic_is_left_out_until_it_is_seen() -> None:
    client = Client()
    subscription = subscribed(client)
    subscription.learn(["a"], {"b": HIDDEN})
    subscription.learn(["a"], {"b": HIDDEN})
    assert client.asked == [["a", "b"], ["a"]]
    assert "kafka-acls.sh" in subscription.problems["b"]
    subscription.learn([], {"a": SLOW, "b": SLOW})  # which says nothing of them
    assert "b" in subscription.problems
    subscription.learn(["a", "b"], {})
    assert client.asked[2:] == [["a", "b"]]
    assert not subscription.problems


@pytest.mark.parametrize("errors", [{"b": MISSING}, {"a": HIDDEN, "b": HIDDEN}])
def test_what_is_missing_holds_nothing_up_and_something_stays_subscribed(errors: dict[str, KafkaError]) -> None:
    client = Client()
    subscription = subscribed(client)
    subscription.learn([], errors)
    assert client.asked == [["a", "b"]]
    assert subscription.problems.keys() == errors.keys()


def test_the_classic_protocol_passes_over_a_hidden_topic_by_itself() -> None:
    client = Client()
    subscribed(client, is_all_or_nothing=False).learn(["a"], {"b": HIDDEN})
    assert client.asked == [["a", "b"]]
