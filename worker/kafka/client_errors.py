"""What librdkafka's error codes mean for us: every classification of a code is made here.

A code says what happened; the sets below say what follows from it. `is_fatal`, `is_retriable` and `is_of_the_record`
are asked in this order wherever more than one could be true.
"""

from __future__ import annotations

from typing import Final, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException

from worker.errors import FatalError, Fenced, Unpublishable
from worker.messages import Output, Position
from worker.rules.trouble import in_words
from worker.telemetry.log import Repeats

log = structlog.get_logger("worker.kafka")

# librdkafka's own codes, as opposed to the protocol's, are spelt with an underscore.
# A partition was read to its end: an event and no trouble. It is reported where enable.partition.eof is set.
PARTITION_END: Final = KafkaError._PARTITION_EOF  # noqa: SLF001
# The sum of what was reported of each broker before it: it adds nothing to that.
ALL_BROKERS_DOWN: Final = KafkaError._ALL_BROKERS_DOWN  # noqa: SLF001
# "This client has met a fatal error": what every call and poll answers after the first report.
_FATAL: Final = KafkaError._FATAL  # noqa: SLF001

# Of the record itself: the same bytes would be refused again, however often and by whichever broker.
_OF_THE_RECORD: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,  # over the topic's max.message.bytes, or the client's message.max.bytes
        KafkaError.INVALID_MSG,  # its bytes arrived damaged; the transport checks them too, so they were sent so
        KafkaError.INVALID_RECORD,  # the broker's own validation: no key on a compacted topic, for one
        KafkaError.RECORD_LIST_TOO_LARGE,  # over the segment's size, which no repetition changes
        KafkaError.INVALID_TIMESTAMP,  # too far from the broker's clock (message.timestamp.*.max.ms)
    }
)
# Of a batch of records as it lies in the log: the same bytes would fail again. A larger limit may help with the first.
_TOO_LARGE_TO_UNPACK: Final = KafkaError._BAD_COMPRESSION  # noqa: SLF001 (or its bytes are damaged: it is one code)
_OF_THE_BATCH: Final = frozenset(
    {
        _TOO_LARGE_TO_UNPACK,
        KafkaError._NOT_IMPLEMENTED,  # noqa: SLF001 (a compression or a format that nobody knows)
        KafkaError._BAD_MSG,  # noqa: SLF001 (a wrong checksum, with check.crcs; records that run over its end)
        KafkaError._UNDERFLOW,  # noqa: SLF001 (it ends too soon)
    }
)
# Of one partition, until somebody mends it. librdkafka tells of it, once or again and again, and reads the others.
_OF_THE_PARTITION: Final = {
    KafkaError._AUTO_OFFSET_RESET: (  # noqa: SLF001 (auto.offset.reset = error)
        "set the group's offset with kafka-consumer-groups.sh --reset-offsets while no worker runs, or leave "
        "auto.offset.reset out of kafka.consumer_properties"
    ),
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "allow this user to read the topic (kafka-acls.sh --operation Read)",
    KafkaError.TOPIC_EXCEPTION: "correct topics.input",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "create the topic, or correct topics.input",
    KafkaError._UNKNOWN_TOPIC: "create the topic, or correct topics.input",  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION: "look whether the topic was made again with fewer partitions",  # noqa: SLF001
}
# What this user is not allowed to do, and who may allow it.
_OF_ACCESS: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "allow this user to write to the topic (kafka-acls.sh --operation Write)",
    KafkaError.GROUP_AUTHORIZATION_FAILED: (
        "allow this user the group kafka.group_id (kafka-acls.sh --group ... --operation Read)"
    ),
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: (
        "allow this user the transactional ids that begin with kafka.group_id (kafka-acls.sh --transactional-id ... "
        "--resource-pattern-type prefixed --operation Write)"
    ),
    # What a producer that repeats nothing twice asks first is granted to whoever may write to any topic.
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: (
        "allow this user to write to the topic (kafka-acls.sh --operation Write), which lets it be a producer"
    ),
}
# Topics for whose sake the coordinator refuses a member of a KIP-848 group.
_OF_THE_TOPIC: Final = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_EXCEPTION})
# Another process took our place, so everything that we would still write is not ours to write. None of them comes from
# the network: each is the coordinator's verdict, or librdkafka's summary of one.
_FENCING: Final = frozenset(
    {
        KafkaError._FENCED,  # noqa: SLF001 (a producer whose transactional id has a newer epoch, as librdkafka sums it up)
        KafkaError.PRODUCER_FENCED,  # the same in the words of brokers since 2.5
        KafkaError.FENCED_INSTANCE_ID,  # a static member whose group.instance.id somebody joined with
        KafkaError.UNRELEASED_INSTANCE_ID,  # the reverse (KIP-848): its name is taken, and its holder lives
    }
)
# The consumer's summary of a verdict of the group has it in its text alone.
_FENCING_TEXTS: Final = tuple(KafkaError(code).str() for code in _FENCING)

_UNANSWERED: Final = frozenset(
    {
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._TIMED_OUT_QUEUE,  # noqa: SLF001
        KafkaError._MSG_TIMED_OUT,  # noqa: SLF001
    }
)


def is_fatal(error: KafkaError) -> bool:
    """Whether a client that reports this can never go on. What a consumer polls has the code and not the flag."""
    return error.fatal() or error.code() == _FATAL


def names_cause(error: KafkaError) -> bool:
    """False for the bare notice that a fatal error was met before: what it was, a later call or report tells."""
    return error.code() != _FATAL


def is_fencing(error: KafkaError) -> bool:
    """Whether another process took our place, in the group or under the transactional id."""
    return error.code() in _FENCING or (error.code() == _FATAL and any(text in error.str() for text in _FENCING_TEXTS))


def is_of_the_record(error: KafkaError) -> bool:
    """Whether a record was refused for what it is, so that sending it again is of no use."""
    return error.code() in _OF_THE_RECORD


def is_of_the_batch(error: KafkaError) -> bool:
    """Whether a batch of records could not be read for what it is."""
    return error.code() in _OF_THE_BATCH


def mend_of_partition(error: KafkaError) -> str | None:
    """What mends an error by which one partition stands still; None for any other."""
    return _OF_THE_PARTITION.get(error.code())


def mend_of_access(error: KafkaError) -> str:
    """What lets this user do what was refused, as the end of a sentence; empty for any other error."""
    mend = _OF_ACCESS.get(error.code())
    return "" if mend is None else f"; {mend}"


def of_topic(error: KafkaError, topic: str) -> KafkaException:
    """What a call raised about an output, with the topic's name where somebody has to allow it."""
    if not (mend := mend_of_access(error)):
        return KafkaException(error)
    said = f"{topic}: {error.str()}{mend}"
    return KafkaException(KafkaError(error.code(), said, error.fatal(), error.retriable(), error.txn_requires_abort()))


def is_of_the_group(error: KafkaError) -> bool:
    """Whether the group is not this user's, which a reader that commits nothing need not care about."""
    return error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED


def is_refused_topic(error: KafkaError) -> bool:
    """Whether no KIP-848 subscription may name a topic: it is hidden from us, or its name is illegal."""
    return error.code() in _OF_THE_TOPIC


def may_be_large(error: KafkaError) -> bool:
    """Whether a larger limit for what a batch unpacks to may let it be read."""
    return error.code() == _TOO_LARGE_TO_UNPACK


def is_retriable(error: KafkaError) -> bool:
    """Whether the same call may be made again. librdkafka knows, because only it knows what the call had done so far.

    So no set of codes stands here: a time-out is retriable in one transactional call and abortable in another.
    """
    return error.retriable()


def is_unanswered(error: KafkaError) -> bool:
    """Whether a request was lost or not answered in time, so that it may still arrive."""
    return error.code() in _UNANSWERED or error.retriable()


def cannot_go_on(client: str, error: KafkaError) -> FatalError:
    """The error to raise for a client that is finished: `Fenced` where another process took our place."""
    said = f"the {client} cannot go on: {error.name()}: {error.str()}"
    if not is_fencing(error):
        return FatalError(said)
    return Fenced(
        f"{said}; another process has its place. Give each worker a kafka.group_instance_id of its own. One that was "
        "killed keeps its name until its session has timed out"
    )


def unpublishable(position: Position, output: Output, error: KafkaError) -> Unpublishable:
    """The error to raise for an output that `is_of_the_record` says nobody takes."""
    return Unpublishable(position, output, error.code(), f"{error.name()}: {error.str()}")


class ErrorReports(Protocol):
    """Takes what librdkafka reports between our calls, and keeps what is fatal."""

    def __call__(self, error: KafkaError) -> None:
        """Take an error: called inside ``poll`` and ``flush``, on the thread that calls them."""

    def check(self) -> None:
        """Raise FatalError if librdkafka has said that its client cannot go on."""


class ErrorLog:
    """Reports as log lines, repeats held back.

    Most of what is reported mends itself (a broker restarting): librdkafka goes on by itself, and we log it.

    Args:
        client: What the client is, "consumer" or "producer": the event is called ``<client>_error``.
    """

    def __init__(self, client: str) -> None:
        self._client = client
        self._event = f"{client.replace(' ', '_')}_error"
        self._repeats = Repeats()
        self._fatal: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        """Log an error, unless its like was logged a moment ago, and keep it if it is fatal."""
        fatal = is_fatal(error)
        if fatal:
            self._fatal = error
        held = 0 if fatal else self._repeats.admit(error.name())
        if held is not None:
            said = in_words(error.str()) + ("" if error.code() in _OF_THE_TOPIC else mend_of_access(error))
            log.warning(self._event, error=said, code=error.name(), fatal=fatal, held_back=held)

    def check(self) -> None:
        """Raise FatalError (`Fenced`, where another took its place) if the client cannot go on."""
        if self._fatal is not None:
            raise cannot_go_on(self._client, self._fatal)
