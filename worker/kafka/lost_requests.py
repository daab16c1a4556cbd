"""Whether a request of a transactional producer was lost on its way, so that it may still arrive.

librdkafka repeats what was lost with its connection, and reports nothing when the second attempt succeeds. The first
may arrive after all, as late as in the next transaction: brokers tell transactions of one producer apart since KIP-890
only, which librdkafka (2.16) does not speak. A late end then commits or aborts the next transaction, and late offsets
overwrite its offsets. Only a new producer under the same transactional id is safe from that.

librdkafka's debug log is the one place where a loss shows in time: its lines lie in the client's queue before the call
returns that they speak of. They are about 35 a transaction, however many records it has, and are kept out of our log.
"""

from __future__ import annotations

import logging
from typing import Final

import structlog

from worker.kafka.client_config import Properties

log = structlog.get_logger("worker.kafka")

# "eos" has the answers to the ends of transactions, "broker" the ends of connections.
_CONTEXTS: Final = "eos,broker"
# Python's level for each of librdkafka's (syslog's), as confluent-kafka maps them.
_PYTHON_LEVELS: Final = (50, 50, 50, 40, 30, 20, 20, 10)
_DEFAULT_LOG_LEVEL: Final = 6
# Critical and error to librdkafka: a transaction that must be aborted, or a producer that must be replaced (it was
# fenced, or a rebalance overtook its transaction). Both are done within milliseconds, or end with an error of ours.
_MENDED: Final = frozenset({"FATAL", "TXNERR"})


class LostRequests:
    """Reads the log of one producer. Give the client `properties`, and `poll` it before asking.

    ``why`` is the line that tells of the first loss, or empty. ``has_gap`` says, once it is set to False, whether the
    transaction has failed for the sequence numbers of records that were refused in an earlier one: the client goes on
    behind them (it asks for a new epoch only if something accepted was under way behind them), and the broker does not.

    Args:
        config: Of the producer. An operator's own ``debug`` and ``log_level`` decide what goes on to our log.
    """

    def __init__(self, config: Properties) -> None:
        self.why = ""
        self.has_gap = False
        self._has_seen_end = False
        self._has_warned = False
        self._logger = logging.getLogger("librdkafka")
        debug = str(config.get("debug", ""))
        self.properties: Properties = {"debug": f"{debug},{_CONTEXTS}" if debug else _CONTEXTS, "logger": self}
        # Any debug context makes librdkafka take 7 for log_level, whatever it was told.
        level = 7 if debug else int(config.get("log_level", _DEFAULT_LOG_LEVEL))
        self._threshold = _PYTHON_LEVELS[max(0, min(level, 7))]

    def log(self, level: int, form: str, *arguments: str) -> None:
        """Take a line: what the client calls in place of `logging.Logger.log`, inside ``poll`` and ``flush``."""
        if len(arguments) == 3:
            self._read(arguments[0], arguments[2])
            if arguments[0] in _MENDED:
                level = min(level, logging.WARNING)
        if level >= self._threshold:
            self._logger.log(level, form, *arguments)

    def _read(self, facility: str, text: str) -> None:
        if facility == "TXNERR":
            self.has_gap = self.has_gap or ("transaction failed" in text and "skipped sequence numbers" in text)
            return
        if facility == "ENDTXN":
            self._has_seen_end = True
            is_lost = "returned NO_ERROR" not in text
        elif facility == "FAIL":
            # A connection that was never up has taken nothing with it, and the one that finds the cluster is given up
            # in every client's first second.
            is_lost = "in state UP" in text and "/bootstrap]" not in text
        else:
            is_lost = facility == "REQTMOUT" or (facility == "ADDOFFSETS" and "response" in text and " _T" in text)
        if is_lost:
            self.suppose(text)

    def suppose(self, why: str) -> None:
        """A call did not succeed in time: a request of it may be on its way."""
        self.why = self.why or why

    def ended(self) -> None:
        """A transaction has ended, so its end must be in the log; if not, say once that losses are not seen."""
        if not self._has_seen_end and not self._has_warned:
            self._has_warned = True
            log.warning(
                "lost_requests_unseen",
                error="librdkafka's debug log has no line for the end of a transaction: this version writes it "
                "differently. After a lost connection a request that arrives late may harm the next transaction "
                "(KIP-890); use a version of confluent-kafka that this worker was tested with",
            )
