"""Which of two members with one group.instance.id is fenced: the old one, or under KIP-848 the new one."""

from __future__ import annotations

import time
import uuid

import pytest

from tests.brokers.kafka import Kafka
from tests.builders import IgnoreRebalances
from tests.conftest import TopicFactory
from worker.errors import Fenced
from worker.kafka import client_config
from worker.kafka.consumer import Consumer
from worker.settings import KafkaSettings

pytestmark = pytest.mark.kafka


def _is_fenced(consumer: Consumer) -> bool:
    try:
        consumer.poll(1, 0.1)
    except Fenced:
        return True
    return False


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("protocol", "fenced"), [("classic", "old"), ("consumer", "new")])
def test_of_two_static_members_with_one_name_one_is_fenced(
    kafka: Kafka, topic: TopicFactory, protocol: str, fenced: str
) -> None:
    name = topic()
    settings = KafkaSettings.model_validate(
        {
            "bootstrap_servers": kafka.bootstrap_servers,
            "group_id": uuid.uuid4().hex,
            "group_instance_id": "worker-0",
            "group_protocol": protocol,
        }
    )
    members: dict[str, Consumer] = {}
    try:
        members["old"] = old = Consumer(client_config.consumer(settings))
        old.subscribe([name], IgnoreRebalances())
        deadline_s = time.monotonic() + 30
        while not old.assignment and time.monotonic() < deadline_s:
            old.poll(1, 0.1)
        members["new"] = new = Consumer(client_config.consumer(settings))
        new.subscribe([name], IgnoreRebalances())
        found = ""
        while not found and time.monotonic() < deadline_s:
            found = next((which for which, member in members.items() if _is_fenced(member)), "")
        assert found == fenced
    finally:
        for member in members.values():
            member.close()
