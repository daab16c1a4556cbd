from __future__ import annotations

from collections.abc import Iterator

import pytest

from worker.kafka.embedded import EmbeddedBroker


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedBroker]:
    """One embedded broker for the session: use topics of your own."""
    with EmbeddedBroker() as broker:
        yield broker
