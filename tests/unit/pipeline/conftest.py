from __future__ import annotations

import pytest

from tests.brokers.memory import Clock, MemoryBroker


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(Clock())
