"""A network that loses, delays and repeats the requests that a transaction is made of, an EndTxn above all."""

from __future__ import annotations

import random
from typing import Final

from tests.brokers.proxy import Api, Cut, Delay, Fault, Hold, Request, Swallow

PUBLISH_TIMEOUT_S: Final = 5.0  # of the worker: an answer that comes later than this comes too late
STEPS: Final = (Api.ADD_PARTITIONS_TO_TXN, Api.PRODUCE, Api.ADD_OFFSETS_TO_TXN, Api.TXN_OFFSET_COMMIT)


class RequestsAtRisk:
    """Names faults at random, of the requests that a transaction is made of.

    Args:
        draws: seeded.
        slow: how many faults there may be that cost the worker a time-out each.
    """

    def __init__(self, draws: random.Random, slow: int) -> None:
        self._random = draws
        self._slow = slow

    def __call__(self, request: Request) -> Fault | None:
        chance = self._random.random()
        if request.api == Api.END_TXN:
            return self._late(request) if chance < 0.25 else self._cut() if chance < 0.3 else self._slowly()
        if request.api in STEPS:
            return self._late(request) if chance < 0.01 else self._cut() if chance < 0.02 else self._slowly()
        return None

    def _late(self, request: Request) -> Fault:
        # Most harm is done where results are written and their offsets are not.
        until = (*STEPS, Api.ADD_OFFSETS_TO_TXN) if request.api == Api.END_TXN else (Api(request.api),)
        return Hold(self._random.choice(until), cut=True)

    def _cut(self) -> Fault:
        return Cut(reached=self._random.random() < 0.5)

    def _slowly(self) -> Fault | None:
        if not self._slow or self._random.random() > 0.01:
            return None
        self._slow -= 1
        too_late = Delay(PUBLISH_TIMEOUT_S + 2)
        return self._random.choice(
            (too_late, Swallow(), Delay(self._random.uniform(0, 4)), Hold(Api.PRODUCE, cut=False))
        )
