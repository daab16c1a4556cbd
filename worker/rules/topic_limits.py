"""What a broker will certainly refuse, told from its topic's settings before it is sent.

A refused record takes its whole transaction with it, and only one is found at a time. What is not certain is sent: the
broker measures what arrives, which is compressed.
"""

from __future__ import annotations

import lzma
import zlib
from dataclasses import dataclass
from typing import Final

from worker.messages import Output

# Clocks of workers and brokers that differ by more have worse consequences.
CLOCK_SKEW_MS: Final = 60_000
# Of the smallest of three. lz4, snappy and gzip are above each of them; zstd may be below, by a tenth at most.
_MARGIN: Final = 0.85
_LARGEST_WINDOW_BYTES: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class TopicLimits:
    """Of one topic. ``is_compressed``: neither producer nor topic stores records as they are.

    ``future_ms`` is how far a timestamp may lie ahead of the broker's clock, ``past_ms`` how far behind it; None where
    the broker stamps records itself.
    """

    max_message_bytes: int
    is_compressed: bool
    future_ms: int | None = None
    past_ms: int | None = None

    def is_too_large(self, output: Output) -> bool:
        """True if the record cannot be stored however well it is compressed."""
        # Measuring all of a record costs a microsecond. Large headers and keys are rare: the broker refuses those.
        if output.value is None or 2 * len(output.value) < self.max_message_bytes:
            return False
        size_bytes = len(output.value) + len(output.key or b"")
        for name, content in output.headers:
            size_bytes += len(name) + len(content or b"")
        if size_bytes <= self.max_message_bytes:
            return False
        return not self.is_compressed or _least_bytes(output) > self.max_message_bytes

    def has_wrong_time(self, output: Output, now_ms: float) -> bool:
        """True if the record's own timestamp is too far from the broker's clock."""
        if output.timestamp_ms is None:
            return False
        ahead_ms = output.timestamp_ms - now_ms
        return (self.future_ms is not None and ahead_ms > self.future_ms + CLOCK_SKEW_MS) or (
            self.past_ms is not None and -ahead_ms > self.past_ms + CLOCK_SKEW_MS
        )


def _least_bytes(output: Output) -> float:
    """What no codec of Kafka's makes smaller. Takes about 0.3 s a MiB: it is for records over the limit alone."""
    headers = b"".join(name.encode() + (content or b"") for name, content in output.headers)
    whole = (output.key or b"") + (output.value or b"") + headers
    window_bytes = min(max(len(whole), 4096), _LARGEST_WINDOW_BYTES)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": window_bytes}]
    return _MARGIN * min(
        len(lzma.compress(whole, lzma.FORMAT_RAW, filters=filters)),  # repeats, however far apart
        _deflated_bytes(whole, zlib.Z_DEFAULT_STRATEGY),  # small records
        _deflated_bytes(whole, zlib.Z_HUFFMAN_ONLY),  # few symbols in no order
    )


def _deflated_bytes(content: bytes, strategy: int) -> int:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, strategy=strategy)
    return len(deflate.compress(content)) + len(deflate.flush())
