"""Asking a cluster what it has, and saying within a second or two why it does not answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from worker.errors import BrokerAway, FatalError
from worker.kafka import client_config, client_errors
from worker.kafka.client_errors import ALL_BROKERS_DOWN
from worker.rules.trouble import in_words
from worker.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka.admin._metadata import ClusterMetadata  # where the class is typed

# One attempt of a question that waits for longer: librdkafka's reports are heard in between.
_SLICE_S: Final = 0.5


class Unreachable:
    """What librdkafka reports of brokers that cannot be reached. Give it to a client as its error callback.

    ``cause`` is the last trouble in words. ``is_certain`` once every broker that the client knows was tried in vain.
    """

    def __init__(self) -> None:
        self.cause = ""
        self.is_certain = False

    def __call__(self, error: KafkaError) -> None:
        """Take an error."""
        if error.code() == ALL_BROKERS_DOWN:
            self.is_certain = True
        else:
            self.cause = in_words(error.str())


def cluster(
    client: Consumer | Producer | AdminClient,
    servers: str,
    unreachable: Unreachable,
    timeout_s: float,
    topic: str | None = None,
) -> ClusterMetadata:
    """What the cluster says of itself, and of ``topic`` or of all topics.

    It ends before its time if no broker can be reached: a person who mistyped an address need not wait.

    Args:
        client: Whom to ask with. Asked by a producer, a broker that creates topics by itself creates this one.
        servers: What it was told to begin with, for the message.
        unreachable: The client's error callback, or what hears the same.
        timeout_s: For the answer.
        topic: The topic; None for all.

    Raises:
        BrokerAway: no answer, and why.
        FatalError: this user is not allowed to be such a client.
    """
    deadline_s = time.monotonic() + timeout_s
    unreachable.is_certain = False
    while True:
        left_s = deadline_s - time.monotonic()
        try:
            if topic is None:
                return client.list_topics(timeout=max(0.05, min(_SLICE_S, left_s)))
            return client.list_topics(topic, timeout=max(0.05, min(_SLICE_S, left_s)))
        except KafkaException as error:
            if mend := client_errors.mend_of_access(found := _told(client, error)):
                raise FatalError(f"{in_words(found.str())}{mend}") from None
            if unreachable.is_certain and unreachable.cause:
                raise BrokerAway(
                    f"{unreachable.cause}; start the broker, or correct kafka.bootstrap_servers = {servers!r}"
                ) from None
            if left_s <= _SLICE_S:
                raise BrokerAway(
                    f"no answer from kafka.bootstrap_servers = {servers!r} in {timeout_s:g} s "
                    f"({unreachable.cause or error.args[0].str()}); start the broker, or correct the setting, or those "
                    "of TLS and SASL in kafka.properties"
                ) from None


def _told(client: Consumer | Producer | AdminClient, error: KafkaException) -> KafkaError:
    """What a client says went wrong; its error callback hears what else did."""
    try:
        client.poll(0)
    except KafkaException as told:  # of a producer that can never go on
        error = told
    found: KafkaError = error.args[0]
    return found


def cluster_id(settings: KafkaSettings, timeout_s: float) -> str | None:
    """The id of the cluster behind these settings; None of brokers that tell none.

    Raises:
        BrokerAway: no broker answered in time, and why.
    """
    unreachable = Unreachable()
    config = client_config.with_callbacks(client_config.common(settings, "reach"), unreachable)
    client = client_config.open_client(Producer, config | {"log_level": 0})
    return cluster(client, settings.bootstrap_servers, unreachable, timeout_s).cluster_id
