"""How much of the device goes to calls over HTTP while the stream has a backlog. Pure.

Calls earn tokens while the stream computes, and spend them: the account of deficit round robin (Shreedhar and Varghese
1996) with two queues. A call larger than what is left is served all the same, and its debt is paid before the next.
"""

from __future__ import annotations


class DeviceShare:
    """The account of the calls, in tokens.

    Args:
        share: Of the device's work, between 0 and 1, that calls may take while the stream has a backlog.
        most_tokens: What calls may have saved: as many they may take at once, a batch as a rule.
    """

    def __init__(self, share: float, most_tokens: int) -> None:
        self._earned = share / (1.0 - share)
        self._most = most_tokens
        self._credit: float = most_tokens

    @property
    def allowance(self) -> int:
        """Tokens that calls may take now. With more than 0 at least one call goes, whatever it costs."""
        return max(0, int(self._credit))

    def streamed(self, tokens: int) -> None:
        """The stream computed so many tokens."""
        self._credit = min(self._most, self._credit + tokens * self._earned)

    def called(self, tokens: int) -> None:
        """Calls took so many tokens."""
        self._credit -= tokens

    def stream_is_idle(self) -> None:
        """The stream has nothing to compute: calls owe it nothing."""
        self._credit = self._most
