"""Brokers, registries and programs as fixtures.

``kafka`` is the broker of ``XNLI_TEST_KAFKA=host:port``, or one of our own for the whole session. A machine without
Java, Maven or promtool skips what needs them and says what to install; under ``CI=true`` it fails: there a skipped
suite is a silent hole.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from typing import NoReturn, Protocol

import pytest
import structlog

from tests.brokers.java import Unavailable
from tests.brokers.kafka import Kafka, KafkaCluster
from tests.brokers.registry import Apicurio, LoopbackRegistry
from tests.examples import load_profiles
from worker import redaction

load_profiles()
# The models of the tests are tiny. On a busy machine two threads that wait for each other took seven times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")


class TopicFactory(Protocol):
    """Creates a topic with a name nobody else has, and returns the name once it is visible."""

    def __call__(self, hint: str = "topic", *, partitions: int = 1, config: Mapping[str, str] | None = None) -> str: ...


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Commands and workers configure logging for their process: no test may find it so.

    It is undone before a test too: a fixture of a whole module that ran a command did it outside any test.
    """
    _undo_logging()
    yield
    _undo_logging()


def _undo_logging() -> None:
    redaction.know(())
    logging.captureWarnings(capture=False)
    root, librdkafka = logging.getLogger(), logging.getLogger("librdkafka")
    # `log.configure` replaces the handlers of the root; pytest puts its own back for each phase of a test.
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(handler)
    root.setLevel(logging.WARNING)
    librdkafka.setLevel(logging.NOTSET)
    librdkafka.filters.clear()
    structlog.reset_defaults()


def without(missing: Unavailable) -> NoReturn:
    """Skip the test, or fail it in CI, with what to install."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(str(missing), pytrace=False)
    warnings.warn(f"tests left out: {missing}", stacklevel=2)  # in the summary even where skips are not listed
    pytest.skip(str(missing))


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A real broker for the session; share it by using topics and groups of your own, and never stop it."""
    if given := os.environ.get("XNLI_TEST_KAFKA"):
        yield Kafka(given)
        return
    yield from running(KafkaCluster())


def running(cluster: KafkaCluster) -> Iterator[KafkaCluster]:
    """The body of a fixture: a cluster, started and stopped; without Java the test is skipped, or fails under CI."""
    try:
        cluster.start()
    except Unavailable as missing:
        without(missing)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def kafka_cluster() -> Iterator[KafkaCluster]:
    """Three nodes that the module's tests may kill, suspend and restart. Always our own; leave all three running."""
    yield from running(KafkaCluster(nodes=3))


@pytest.fixture
def topic(kafka: Kafka) -> Iterator[TopicFactory]:
    """A factory of topics on ``kafka``. On a broker that somebody else runs they are deleted afterwards."""
    yield from topics_on(kafka)


@pytest.fixture
def cluster_topic(kafka_cluster: KafkaCluster) -> Iterator[TopicFactory]:
    """A factory of topics on ``kafka_cluster``, replicated three times."""
    yield from topics_on(kafka_cluster)


def topics_on(broker: Kafka) -> Iterator[TopicFactory]:
    """The body of a fixture: a factory of topics on this broker."""
    created: list[str] = []

    def create(hint: str = "topic", *, partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
        name = f"{hint}-{uuid.uuid4().hex[:8]}"
        broker.create_topic(name, partitions, config)
        created.append(name)
        return name

    yield create
    if not isinstance(broker, KafkaCluster):
        for name in created:
            broker.delete_topic(name)


@pytest.fixture(scope="session")
def schema_registry() -> Iterator[Apicurio]:
    """A real schema registry for the session, at ``schema_registry.url``; use subjects of your own."""
    registry = Apicurio()
    try:
        registry.start()
    except Unavailable as missing:
        without(missing)
    yield registry
    registry.stop()


@pytest.fixture
def loopback_registry() -> Iterator[LoopbackRegistry]:
    """A registry of our own at ``loopback_registry.url``, for GUIDs and for outages."""
    with LoopbackRegistry() as registry:
        yield registry


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus' own checker of rules and configurations: its command."""
    command = shutil.which("promtool")
    if command is None:
        without(Unavailable("alert rules need promtool, and it was not found: install Debian's package prometheus"))
    return command
