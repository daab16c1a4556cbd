"""How many token slots one forward may hold."""

from __future__ import annotations


class TokenBudget:
    """A bound that halves when a forward does not fit, and creeps back while forwards succeed.

    Additive increase and multiplicative decrease, as TCP finds the room in a network: another process on the device
    may take memory and give it back, and nobody tells us. One sixteenth of the limit returns after every
    `SUCCESSES_PER_STEP` forwards in a row, so that where the room is gone for good one forward in many fails, and is
    tried again smaller.
    """

    SUCCESSES_PER_STEP = 64

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a token budget is at least 1, not {limit}")
        self._limit = limit
        self._tokens = limit
        self._successes = 0

    @property
    def tokens(self) -> int:
        """Slots that the next forward may hold."""
        return self._tokens

    def shrink(self, failed: int) -> None:
        """A forward of ``failed`` slots did not fit: allow half of that from now on."""
        self._tokens = max(1, min(self._tokens, failed) // 2)
        self._successes = 0

    def succeed(self) -> None:
        """A forward fitted."""
        if self._tokens == self._limit:
            return
        self._successes += 1
        if self._successes == self.SUCCESSES_PER_STEP:
            self._successes = 0
            self._tokens = min(self._limit, self._tokens + max(1, self._limit // 16))

    def settle(self) -> None:
        """Take what is allowed now as the limit: the warm-up has found what this device holds."""
        self._limit = self._tokens
