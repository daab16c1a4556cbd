"""The publisher that the settings ask for."""

from __future__ import annotations

import time

from worker.kafka import client_config
from worker.kafka.at_least_once import AtLeastOncePublisher
from worker.kafka.consumer import Consumer
from worker.kafka.fencing import RecoveringPublisher
from worker.kafka.known_limits import KnownLimits
from worker.kafka.publisher import Publisher
from worker.kafka.transactional import TransactionalPublisher
from worker.kafka.trial import Trial
from worker.rules import names
from worker.settings import Settings


def open_publisher(settings: Settings, consumer: Consumer, instance: str, limits: KnownLimits) -> Publisher:
    """The publisher of ``delivery.guarantee``, not started yet.

    Args:
        settings: Everything it goes by.
        consumer: Whose offsets it commits.
        instance: Name of this worker within its group, part of the transactional id.
        limits: What topics take, which bounds the size of batches.
    """
    kafka = settings.kafka
    if settings.delivery.guarantee == "exactly_once":
        config = client_config.producer(kafka, transactional_id=names.transactional_id(kafka.group_id, instance))
        return RecoveringPublisher(
            lambda most_bytes: TransactionalPublisher(limits.fitted(config, most_bytes), consumer, time.monotonic),
            lambda: Trial(config, consumer, time.monotonic),
            consumer,
            consumer.commits.committed,
            time.monotonic,
            consumer.commits.prove_membership if kafka.group_instance_id is not None else None,
        )
    config = limits.fitted(client_config.producer(kafka, transactional_id=None))
    return AtLeastOncePublisher(config, consumer, time.monotonic)
