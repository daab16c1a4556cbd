"""A connected producer and the delivery reports of what it sent: both publishers are built on these."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from worker.errors import BrokerAway, Unpublishable
from worker.kafka import client_config, client_errors
from worker.kafka.client_config import Properties
from worker.kafka.client_errors import ErrorLog
from worker.kafka.lost_requests import LostRequests
from worker.kafka.publisher import Clock
from worker.messages import Output, Position

_FLUSH_S: Final = 0.05
_CAUSE_S: Final = 0.5
# An abort drops what is queued once, as it begins. What the broker sends back after that (what was under way behind a
# record that it refused) is queued for another attempt that no aborted transaction makes, and librdkafka (2.16) waits
# for it until the time is up. The next call drops it, and goes on where the last one was: it asks for no second end.
_ABORT_S: Final = 0.1


class DeliveryReports:
    """What became of the records of one release: those sent that did not fail, once none is in the producer's queue.

    Only failures are reported (delivery.report.only.error): a report of each success cost as much as the sending.

    The broker refuses a whole batch of the producer's for one record of it, and the reports blame its neighbours too.
    Only of a record that was alone in its batch is it known that it is the one: it is ``unpublishable``. All others
    become ``suspects``, to be sent alone the next time.

    Args:
        suspects: The suspects of the last time.
    """

    def __init__(self, suspects: AbstractSet[Position] = frozenset()) -> None:
        self.alone = suspects
        self.suspects: set[Position] = set()
        self.sent: list[tuple[Position, Output]] = []
        self.failed: dict[Position, KafkaError] = {}
        self.unpublishable: Unpublishable | None = None
        self.has_gap = False  # see LostRequests

    def take(self, position: Position, output: Output, is_alone: bool, error: KafkaError | None, _: Message) -> None:
        """One record failed, or, where a client reports everything, did not."""
        if error is None:
            return
        self.failed[position] = error
        if client_errors.is_of_the_record(error):
            if is_alone:
                self.refuse(client_errors.unpublishable(position, output, error))
            else:
                self.suspects.add(position)

    def refuse(self, refused: Unpublishable) -> None:
        """A record is known to be refused for what it is."""
        if self.unpublishable is None:
            self.unpublishable = refused
        else:
            self.unpublishable.others += (refused,)

    @property
    def why(self) -> str:
        """Why not everything was delivered."""
        if self.has_gap:
            return "the client had skipped the sequence numbers of records that were refused before"
        output_of = dict(self.sent)
        failed = ((output_of[position].topic, error) for position, error in self.failed.items())
        said = (f"{topic}: {error.str()}{client_errors.mend_of_access(error)}" for topic, error in failed)
        return next(said, "time ran out")


class ProducerConnection:
    """A producer and what both publishers do with it."""

    def __init__(self, config: Properties, clock: Clock, lost: LostRequests | None = None) -> None:
        self.clock = clock
        self._lost = lost
        self.errors = ErrorLog("producer")
        # librdkafka puts nothing into a batch with a record that is larger than a batch may be.
        self.batch_bytes = int(config.get("batch.size", client_config.BATCH_BYTES))
        config = client_config.with_callbacks(config, self.errors) | {"delivery.report.only.error": True}
        if lost is not None:
            config |= lost.properties
        self.client = client_config.open_client(Producer, config)

    def produce(self, position: Position, output: Output, reports: DeliveryReports, deadline_s: float) -> None:
        """Queue one record. A full queue is back-pressure: serve delivery reports until there is room.

        Raises:
            Unpublishable: the record is larger than the client may send.
            BrokerAway: the queue stayed full until the deadline.
        """
        is_suspect = position in reports.alone
        is_alone = is_suspect or (output.value is not None and len(output.value) > self.batch_bytes)
        if is_suspect and self.flush(deadline_s):
            raise BrokerAway("no delivery report in time for what was sent before a suspect")
        reported = partial(reports.take, position, output, is_alone)
        while True:
            try:
                self.client.produce(
                    output.topic,
                    value=output.value,
                    key=output.key,
                    headers=list(output.headers),
                    timestamp=output.timestamp_ms or 0,  # librdkafka takes "none" as 0: it stamps the record itself
                    on_delivery=reported,
                )
            except BufferError:
                if self.clock() >= deadline_s:
                    raise BrokerAway("the producer's queue stayed full: the broker takes nothing") from None
                self.client.poll(0.05)
            except KafkaException as error:
                found: KafkaError = error.args[0]
                if client_errors.is_of_the_record(found):
                    raise client_errors.unpublishable(position, output, found) from error
                raise client_errors.of_topic(found, output.topic) from error
            else:
                reports.sent.append((position, output))
                # Whatever shares a batch with it would share the blame.
                if is_suspect and self.flush(deadline_s):
                    raise BrokerAway("no delivery report in time for a record sent by itself")
                return

    def flush(self, deadline_s: float) -> int:
        """Wait until every record sent is reported on, or the time is up. How many are not."""
        while (left := self.client.flush(max(0.0, deadline_s - self.clock()))) and self.clock() < deadline_s:
            pass
        return left

    def flush_or_fail(self, reports: DeliveryReports, deadline_s: float) -> int:
        """As `flush`, but a transaction sends nothing more once a record has failed: who waits then, waits in vain."""
        has_failed = False
        while left := self.flush(min(deadline_s, self.clock() + _FLUSH_S)):
            reports.has_gap = self._lost is not None and self._lost.has_gap
            if reports.unpublishable is not None or reports.suspects or (reports.failed and reports.has_gap):
                return 0
            # What was not sent fails at once, and what was refused a moment later: that tells why.
            if reports.failed and not has_failed:
                has_failed, deadline_s = True, min(deadline_s, self.clock() + _CAUSE_S)
            if self.clock() >= deadline_s:
                return 0 if has_failed else left
        return 0

    def begin(self) -> None:
        """Begin a transaction. Raises KafkaException."""
        if self._lost is not None:
            self._lost.has_gap = False
        self.client.begin_transaction()

    def abort(self, deadline_s: float) -> None:
        """Abort the transaction that is open.

        Raises:
            KafkaException: it cannot be; or, retriable, it was not by the deadline.
        """
        while True:
            try:
                self.client.abort_transaction(min(_ABORT_S, max(0.01, deadline_s - self.clock())))
            except KafkaException as error:
                if not client_errors.is_retriable(error.args[0]) or self.clock() >= deadline_s:
                    raise
                self.client.poll(0.01)  # an error that comes at once must not make this a loop without rest
            else:
                return

    def check(self) -> None:
        """Raise FatalError if librdkafka has said that this client cannot go on, after hearing what it has to say."""
        self.client.poll(0)
        self.errors.check()

    def close(self) -> None:
        """Drop what is queued, for closing would wait for it, and then the client. May be called again."""
        # A client has no close(): it ends, threads and all, when nothing holds it any more.
        client: Producer | None = self.__dict__.pop("client", None)
        if client is None:
            return
        client.purge(in_queue=True, in_flight=True)
        with suppress(KafkaException):  # a client that was fenced says so again, and would hide who says it first
            client.flush(0)
