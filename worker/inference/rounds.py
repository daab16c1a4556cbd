"""Work that is known only when other work is done: a request asks for rows, gets their logits, and may ask again.

Flat scoring is one round and needs none of this. A taxonomy and evidence take several. What such a request computes is
a generator: it yields rows and is sent their logits, until it returns its outcome. The requests of a batch go from
round to round together, so that their rows share forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from worker.messages import Outcome, Row

Logits = npt.NDArray[np.float32]
_Found = TypeVar("_Found")
Asking = Generator[Sequence[Row], Logits, _Found]
"""Yields at least one row, is sent (rows, classes), and returns what it found."""

_TOKENS_IN_HAND: Final = 1 << 20  # of the rows that wait for a forward: many forwards full, few megabytes


class Meter:
    """How many tokens the rows of a request may still have. ``limit`` None: any number."""

    def __init__(self, limit: int | None, spent: int) -> None:
        self._left = None if limit is None else limit - spent

    def allows(self, tokens: int) -> bool:
        """Whether rows of so many tokens may still be computed."""
        return self._left is None or tokens <= self._left

    def charge(self, rows: Iterable[Row]) -> None:
        """These rows are computed."""
        if self._left is not None:
            self._left -= sum(len(row.token_ids) for row in rows)


def in_lockstep(
    asking: dict[int, Asking[Outcome]], compute: Callable[[Sequence[Sequence[Row]]], Sequence[Logits]]
) -> dict[int, Outcome]:
    """Drive requests to their outcomes, round by round.

    Args:
        asking: Requests by a number of the caller's.
        compute: Gives the logits of each of several lists of rows.

    Returns:
        Outcomes by the same numbers.
    """
    outcomes: dict[int, Outcome] = {}
    steps: dict[int, Callable[[], Sequence[Row]]] = {i: partial(next, one) for i, one in asking.items()}
    while steps:
        wanted: dict[int, Sequence[Row]] = {}
        tokens = 0
        # Those that find no room wait for the next forwards, before anybody asks for a further round.
        for i in list(steps):
            try:
                wanted[i] = steps.pop(i)()
            except StopIteration as done:
                outcomes[i] = done.value
                continue
            tokens += sum(len(row.token_ids) for row in wanted[i])
            if tokens >= _TOKENS_IN_HAND:
                break
        if wanted:
            for i, logits in zip(wanted, compute(list(wanted.values())), strict=True):
                steps[i] = partial(asking[i].send, logits)
    return outcomes
