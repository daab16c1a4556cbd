"""What the commands that talk to Kafka share: settings, quiet clients, and whether a topic is there."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka.admin import AdminClient

from worker import settings as settings_module
from worker import terminal
from worker.kafka import client_config, client_errors, reach, topics
from worker.kafka.client_config import Properties
from worker.kafka.reach import Unreachable
from worker.kafka.reader import Reader
from worker.rules import names
from worker.settings import KafkaSettings, Settings

if TYPE_CHECKING:
    from confluent_kafka.admin._metadata import ClusterMetadata  # where the class is typed

_Client = TypeVar("_Client")

# The same trouble is told again after so long: librdkafka reports every attempt to connect.
_TELL_EVERY_S: Final = 30.0


def load_settings(config: Path | None) -> Settings:
    """Settings for a command that talks to Kafka alone.

    ``model.name`` is required, for the worker's sake; these commands load no model, and a person who sends requests
    from a laptop need not invent one. What the user sets wins over the preset.
    """
    return settings_module.load(config, defaults={"model": {"name": "none"}})


def say(text: str) -> None:
    """A line on stderr for the person who watches; stdout belongs to the command's output."""
    sys.stderr.write(f"xnli-worker: {terminal.harmless(text)}\n")
    sys.stderr.flush()


class Reports(Unreachable):
    """What librdkafka finds out between our calls, such as a connection that is refused. Give it to `connect`.

    Args:
        tell: gets what a person can act on, not more often than every half minute for each kind of error.
    """

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self.is_asking = False  # a question is under way, whose answer, or failure, its asker tells
        self._fatal: KafkaError | None = None
        self._tell = tell
        self._told: dict[str, float] = {}

    def __call__(self, error: KafkaError) -> None:
        """Take an error from librdkafka: called inside ``poll`` and ``flush``, on the thread that calls them."""
        if client_errors.is_fatal(error):
            self._fatal = error
        super().__call__(error)
        if error.code() == client_errors.ALL_BROKERS_DOWN or self.is_asking:
            return
        now = time.monotonic()
        if self._tell is not None and now - self._told.get(error.name(), -_TELL_EVERY_S) >= _TELL_EVERY_S:
            self._told[error.name()] = now
            self._tell(f"{self.cause}; still trying")

    def check(self) -> None:
        """Raise FatalError if librdkafka has said that its client cannot go on."""
        if self._fatal is not None:
            raise client_errors.cannot_go_on("Kafka client", self._fatal)


def connect(kind: Callable[[Properties], _Client], config: Properties, reports: Reports) -> _Client:
    """A client of librdkafka that writes nothing by itself: ``reports`` hears what matters.

    Raises:
        SettingsError: a property is unknown or has a value that librdkafka refuses.
    """
    logging.getLogger("librdkafka").setLevel(logging.CRITICAL + 1)
    return client_config.open_client(kind, client_config.with_callbacks(config, reports))


def open_reader(kafka: KafkaSettings, topic: str, reports: Reports, *, client: str, group: str | None = None) -> Reader:
    """A reader of a topic outside any group, with the worker's own properties: whatever lets the worker in lets us in.

    Args:
        kafka: The settings.
        topic: The topic.
        reports: Hears of errors.
        client: What the broker's logs call it, behind the group's name.
        group: Whose committed offsets it may read, and move by a transaction; None: it asks for none.
    """
    config = client_config.reader(client_config.consumer(kafka), group or kafka.group_id)
    connected = connect(Consumer, config | {"client.id": names.client_id(kafka.group_id, client)}, reports)
    return Reader(connected, topic, reports, has_group=group is not None)


def metadata(
    client: Consumer | Producer | AdminClient, kafka: KafkaSettings, reports: Reports, timeout_s: float
) -> ClusterMetadata:
    """What the cluster says of itself and of all topics, which creates none.

    Raises:
        BrokerAway: no broker answered in time.
    """
    return _ask(client, kafka, reports, timeout_s)


def partitions(
    client: Consumer | Producer, kafka: KafkaSettings, reports: Reports, topic: str, timeout_s: float
) -> list[int]:
    """The partitions of a topic. Asked by a producer, a broker that creates topics by itself creates this one.

    Raises:
        BrokerAway: no broker answered in time.
        TopicMissing: it is not there.
    """
    return topics.numbers_in(_ask(client, kafka, reports, timeout_s, topic), topic)


def _ask(
    client: Consumer | Producer | AdminClient,
    kafka: KafkaSettings,
    reports: Reports,
    timeout_s: float,
    topic: str | None = None,
) -> ClusterMetadata:
    reports.is_asking = True
    try:
        return reach.cluster(client, kafka.bootstrap_servers, reports, timeout_s, topic)
    finally:
        reports.is_asking = False


class Waiting:
    """Waits for something that is away, and says so: each reason once, however often it is met in a row.

    Args:
        tell: Gets the reason.
        retry_s: How long one wait takes.
    """

    def __init__(self, tell: Callable[[str], None], retry_s: float) -> None:
        self._tell = tell
        self._retry_s = retry_s
        self._told = ""

    def __call__(self, why: str) -> None:
        """Wait once."""
        if why != self._told:
            self._tell(f"{why}; waiting")
            self._told = why
        time.sleep(self._retry_s)
