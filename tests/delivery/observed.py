"""What a read_committed reader of the in-memory broker sees, and a worker that has begun to read."""

from __future__ import annotations

import pytest

from tests.brokers.memory import MemoryBroker
from tests.delivery.doubles import answered, partition, reason
from tests.delivery.worker import Guarantee, Worker
from worker.messages import Partition
from worker.rules.offset_metadata import mark_of

P0, P1 = partition(0), partition(1)
BOTH = pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])


def started(broker: MemoryBroker, guarantee: Guarantee = "exactly_once", **options: object) -> Worker:
    worker = Worker(broker, guarantee, **options)  # type: ignore[arg-type]  # options are the worker's own fields
    broker.assign(P0, P1)
    worker.loop.step()
    return worker


def offsets(broker: MemoryBroker, where: Partition = P0, *, dead: bool | None = None) -> list[int]:
    """Offsets of the records answered, in the order a reader sees; with ``dead`` only (or without) dead letters."""
    return [
        answered(output)[1]
        for output in broker.visible
        if answered(output)[0] == where and dead in {None, bool(reason(output))}
    ]


def committed(broker: MemoryBroker) -> dict[Partition, int]:
    """Committed offsets, without partitions that are still at their beginning."""
    return {where: offset for where, offset in broker.committed.items() if offset}


def reasons(broker: MemoryBroker) -> dict[int, str]:
    return {answered(output)[1]: reason(output) for output in broker.visible if reason(output)}


def starts(broker: MemoryBroker, where: Partition = P0) -> int:
    """The count of starts beside the committed offset."""
    return mark_of(broker.metadata.get(where)).starts
