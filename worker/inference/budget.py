"""How many token slots one forward may hold."""

from __future__ import annotations


class TokenBudget:
    """A bound that halves when a forward does not fit, and grows back while forwards succeed.

    It increases additively and decreases multiplicatively, as TCP finds the room in a network: another process on the
    device may take memory and give it back, and nothing announces that. The budget grows by one sixteenth of the limit
    after every `SUCCESSES_PER_STEP` successful forwards. Where the memory is gone for good, one forward in many
    therefore fails, and is tried again smaller.

    Args:
        limit: the most token slots of a forward, at least 1.

    Raises:
        ValueError: the limit is below 1.
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
        """Record that a forward of ``failed`` slots did not fit: allow half of that from now on."""
        self._tokens = max(1, min(self._tokens, failed) // 2)
        self._successes = 0

    def succeed(self) -> None:
        """Record that a forward fitted."""
        if self._tokens == self._limit:
            return
        self._successes += 1
        if self._successes == self.SUCCESSES_PER_STEP:
            self._successes = 0
            self._tokens = min(self._limit, self._tokens + max(1, self._limit // 16))

    def settle(self) -> None:
        """Make the present budget the limit: the warm-up has found what this device holds."""
        self._limit = self._tokens
