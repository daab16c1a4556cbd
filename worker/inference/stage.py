"""What loading a model does at the moment, told to whoever waits for it."""

from __future__ import annotations

from typing import Protocol


class Tell(Protocol):
    """Called when a stage begins, and again whenever it has made progress."""

    def __call__(self, doing: str, limit_s: float, done: str = "") -> None:
        """Args.

        Args:
            doing: the stage, "reading the weights of X".
            limit_s: if nothing more is told for so long, it hangs.
            done: how far it is, "12 MB".
        """


def tell_nobody(doing: str, limit_s: float, done: str = "") -> None:
    """For callers that wait as long as it takes."""
