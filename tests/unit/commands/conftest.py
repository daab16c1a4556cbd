from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from worker.kafka.embedded import EmbeddedBroker


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedBroker]:
    """One embedded broker for the session: use topics of your own."""
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture(autouse=True)
def _own_logs_and_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands configure logging and read the environment, and must not hand either on to the next test."""
    root, librdkafka = logging.getLogger(), logging.getLogger("librdkafka")
    before = root.handlers[:], root.level, librdkafka.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level, librdkafka.level = before
    structlog.reset_defaults()
