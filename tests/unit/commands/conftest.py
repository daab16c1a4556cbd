from __future__ import annotations

from collections.abc import Iterator

import pytest

from worker.kafka.embedded import EmbeddedBroker


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedBroker]:
    """One embedded broker for a file of tests: use topics of your own."""
    with EmbeddedBroker() as broker:
        yield broker
