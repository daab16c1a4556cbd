"""Offsets on their way into a transaction, on a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import Producer, TopicPartition

# Runs a call that may never return, elsewhere.
Spawn = Callable[[Callable[[], None]], None]


def on_thread(call: Callable[[], None]) -> None:
    """Run a call on a thread that does not keep the process alive."""
    threading.Thread(target=call, name="offsets", daemon=True).start()


class PendingOffsets:
    """Offsets that are being sent to the open transaction.

    On a thread of its own: librdkafka ignores this call's time-out, and where the broker that coordinated the group
    has left its list (after an outage of all brokers, say) the call never returns (its issues 5456 and 5511).

    ``error`` is what the call raised, once it has returned.
    """

    def __init__(
        self, client: Producer, offsets: Sequence[TopicPartition], metadata: Any, timeout_s: float, spawn: Spawn
    ) -> None:
        self.error: Exception | None = None
        self._returned = threading.Event()

        def call() -> None:
            try:
                client.send_offsets_to_transaction(list(offsets), metadata, timeout_s)
            except Exception as error:  # noqa: BLE001 (raised again on the thread that publishes)
                self.error = error.with_traceback(None)  # whose frames hold the client
            self._returned.set()

        spawn(call)

    def has_returned(self, timeout_s: float = 0.0) -> bool:
        """Whether the call has returned, waiting for it for up to ``timeout_s``."""
        return self._returned.wait(timeout_s)
