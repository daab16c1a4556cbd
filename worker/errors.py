"""What can go wrong, and whose concern it is.

::

    WorkerError
    ├── SettingsError            a setting, a schema file or a checkpoint is unusable: exit code 2, nothing was read
    │   └── CheckpointError      the model directory or hub id cannot serve: no head, one logit, permuted labels, ...
    ├── Rejection                this message is at fault, for a reason in Reason: dead letter, never retried
    │   └── UnknownLabelSet      it names a label set that is not there, which may be on its way: it waits for a while
    ├── TransientError           something we depend on is away; the message is innocent: wait and try again
    │   ├── RegistryAway         schema registry unreachable or 5xx
    │   ├── BrokerAway           a produce, commit or transaction call timed out or may be retried
    │   └── DeviceAway           the device reported an error that another attempt may not meet
    ├── OutOfDeviceMemory        a forward did not fit: shrink the token budget, then try again
    ├── TransactionAborted       the open transaction is void; its messages may be produced again in a new one
    ├── Unpublishable            one output is refused for what it is, most often its size: something takes its place
    ├── TopicMissing             the broker knows no such topic, or does not let this user see it
    ├── NoSuchLabelSet           no label set has the name that a person asked for
    ├── NoSuchDeadLetter         no record lies at the position that a person asked for
    └── FatalError               this process cannot go on: exit code 1, its supervisor starts another
        ├── Fenced               a newer instance took this one's transactional id or group membership
        ├── DeadLetterLimit      more dead letters than the operator allows
        └── Stalled              a thread or the device stopped making progress

`Rejection` and `TransientError` are the two answers to "whose fault": the first ends one message, the second none.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from worker import redaction

if TYPE_CHECKING:
    from worker.messages import Output, Position


class Reason(StrEnum):
    """Why a message became a dead letter: the values of the header ``xnli.dlq.reason``."""

    MALFORMED = "malformed"  # the bytes are no Avro message in any wire format we read
    SCHEMA = "schema"  # the writer's schema is unknown or does not resolve to ours
    INVALID = "invalid"  # decoded, but asks for something impossible (no labels, unknown language, ...)
    TOO_LARGE = "too_large"  # over a limit of the settings
    EXPIRED = "expired"  # older than limits.max_age_s when it was read
    INFERENCE = "inference"  # the model fails on this message alone
    CRASH = "crash"  # the process died with this message in hand, again and again
    EXHAUSTED = "exhausted"  # transient failures outlasted retry.max_attempts


class WorkerError(Exception):
    """Base of everything the worker raises on purpose.

    Its message goes to logs, terminals, pages and dead letters, so it never holds a secret, not even in ``args``.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(redaction.in_text(message))


class SettingsError(WorkerError):
    """A setting, schema file or command line is wrong. The message names it, its value and the mend."""


class CheckpointError(SettingsError):
    """A checkpoint cannot be loaded or cannot do the task asked of it."""


class Rejection(WorkerError):  # noqa: N818 (the field's word; it is an answer rather than a failure of ours)
    """This message can never succeed. It becomes a dead letter with ``reason``; its neighbours are not touched."""

    def __init__(self, reason: Reason, stage: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.stage = stage
        self.request_id = ""  # where the message could be read that far, for the log


class UnknownLabelSet(Rejection):
    """A request names a label set that nobody knows yet. ``label_set`` is the name."""

    def __init__(self, label_set: str, message: str) -> None:
        super().__init__(Reason.INVALID, "validate", message)
        self.label_set = label_set


class TransientError(WorkerError):
    """A dependency is away. Wait with back-off and try the same thing again; dead-letter nothing."""


class RegistryAway(TransientError):  # noqa: N818
    """The schema registry cannot be reached, or answers with a server error."""


class BrokerAway(TransientError):  # noqa: N818
    """A produce, commit or transaction call did not succeed in time and may be called again."""


class DeviceAway(TransientError):  # noqa: N818
    """The device failed in a way that another attempt may not meet."""


class OutOfDeviceMemory(WorkerError):  # noqa: N818
    """A forward needed more memory than the device has. ``tokens`` is the size of the slice that failed."""

    def __init__(self, tokens: int, message: str) -> None:
        super().__init__(message)
        self.tokens = tokens


class TransactionAborted(WorkerError):  # noqa: N818
    """The transaction was aborted; nothing of it is visible to a read_committed reader."""


class Unpublishable(WorkerError):  # noqa: N818 (an answer about one record)
    """The broker or the client refuses this one output for what it is, most often its size.

    ``code`` is librdkafka's code of the refusal, a `confluent_kafka.KafkaError` value. ``others`` were refused with it.
    """

    def __init__(self, position: Position, output: Output, code: int, message: str) -> None:
        super().__init__(message)
        self.position = position
        self.output = output
        self.code = code
        self.others: tuple[Unpublishable, ...] = ()


class TopicMissing(WorkerError):  # noqa: N818 (a state of the cluster)
    """The broker knows no such topic, or does not let us see it."""


class NoSuchLabelSet(WorkerError):  # noqa: N818 (a state of the topic)
    """No label set of the name asked for is in the topic."""


class NoSuchDeadLetter(WorkerError):  # noqa: N818 (a state of the topic)
    """No record lies at the position asked for."""


class FatalError(WorkerError):
    """The process must end with exit code 1. Nothing that was not acknowledged is committed."""


class Fenced(FatalError):  # noqa: N818
    """A newer instance holds this one's transactional id or static membership."""


class DeadLetterLimit(FatalError):  # noqa: N818
    """dead_letter.max_consecutive or max_ratio was reached. The offending offset is not committed."""


class Stalled(FatalError):  # noqa: N818
    """The loop or the device made no progress for longer than the watchdog allows."""
