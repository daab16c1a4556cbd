"""A connected producer and the delivery reports of what it sent: both publishers are built on these."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from worker.errors import BrokerAway, Unpublishable
from worker.kafka import client_config, client_errors
from worker.kafka.client_config import Properties
from worker.kafka.client_errors import ErrorLog
from worker.kafka.lost_requests import LostRequests
from worker.kafka.publisher import Clock
from worker.messages import Output, Position


class DeliveryReports:
    """What became of the records of one release: those sent that did not fail, once none is in the producer's queue.

    Only failures are reported (delivery.report.only.error): a report of each success cost as much as the sending.

    ``singly``: every record was sent in a request of its own, so a refusal tells which one is refused. Otherwise the
    broker refuses a whole request for one record of it, and the report blames its neighbours too.
    """

    def __init__(self, *, singly: bool) -> None:
        self.singly = singly
        self.refused = False
        self.sent: list[tuple[Position, Output]] = []
        self.failed: dict[Position, KafkaError] = {}
        self.unpublishable: Unpublishable | None = None

    def take(self, position: Position, output: Output, error: KafkaError | None, _: Message) -> None:
        """One record failed, or, where a client reports everything, did not."""
        if error is None:
            return
        self.failed[position] = error
        if client_errors.is_of_the_record(error):
            self.refused = True
            if self.singly:
                self.unpublishable = client_errors.unpublishable(position, output, error)

    @property
    def why(self) -> str:
        """Why not everything was delivered."""
        return next((error.str() for error in self.failed.values()), "time ran out")


class ProducerConnection:
    """A producer and what both publishers do with it."""

    def __init__(self, config: Properties, clock: Clock, lost: LostRequests | None = None) -> None:
        self.clock = clock
        self.errors = ErrorLog("producer")
        self.singly = False  # from a refusal until a release has gone out: see DeliveryReports
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
        reported = partial(reports.take, position, output)
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
                raise
            else:
                reports.sent.append((position, output))
                # Whatever shares a request with it would share the blame.
                if reports.singly and self.flush(deadline_s):
                    raise BrokerAway("no delivery report in time for a record sent by itself")
                return

    def flush(self, deadline_s: float) -> int:
        """Wait until every record sent is reported on, or the time is up. How many are not."""
        while (left := self.client.flush(max(0.0, deadline_s - self.clock()))) and self.clock() < deadline_s:
            pass
        return left

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
