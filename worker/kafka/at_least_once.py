"""At-least-once: delivery reports first, offsets after them."""

from __future__ import annotations

from typing import NoReturn

from confluent_kafka import KafkaError, KafkaException

from worker.errors import BrokerAway, Unpublishable
from worker.kafka import client_errors
from worker.kafka.client_config import Properties
from worker.kafka.consumer import Consumer
from worker.kafka.producer import DeliveryReports, ProducerConnection
from worker.kafka.publisher import Clock
from worker.messages import CommitBatch, Output, Position


class AtLeastOncePublisher:
    """Commits offsets behind delivery reports. A crash in between repeats results and never loses one."""

    transactional = False

    def __init__(self, config: Properties, consumer: Consumer, clock: Clock) -> None:
        self._connection = ProducerConnection(config, clock)
        self._consumer = consumer
        self._clock = clock
        # While not everything of a release is delivered: which, what is on its way, what arrived, how the rest is sent.
        self._release: CommitBatch | None = None
        self._reports: DeliveryReports | None = None
        self._delivered: dict[Position, Output] = {}
        self._all_sent = False
        self._suspects: set[Position] = set()

    def start(self, timeout_s: float) -> None:
        """Nothing to prepare."""

    def publish(self, release: CommitBatch, timeout_s: float) -> bool:
        """Produce, wait for every delivery report, then commit without waiting: a later commit says more anyway."""
        deadline_s = self._clock() + timeout_s
        if self._reports is None:
            self._release, self._reports = release, DeliveryReports(self._suspects)
            self._send(release, self._reports, deadline_s)
        left = self._connection.flush(deadline_s)
        self._connection.check()
        if left:
            raise BrokerAway(f"{left} of {len(release.outputs)} records are not acknowledged yet")
        if self._reports.failed or not self._all_sent or self._release is not release:
            self._fall_short(release, self._reports)
        # The offsets of partitions that left since this release was made are their new owner's to commit.
        owned = self._consumer.assignment
        offsets = {p: offset for p, offset in release.offsets.items() if owned.get(p) == release.generations[p]}
        self._consumer.commits.commit(offsets, wait=False, metadata=release.metadata)
        self._reports = None
        self._delivered.clear()
        self._suspects = set()
        return True

    def _send(self, release: CommitBatch, reports: DeliveryReports, deadline_s: float) -> None:
        """Queue what no earlier call has delivered, as far as the queue takes it."""
        self._all_sent = False
        try:
            for position, output in release.outputs:
                if not self._delivered or self._delivered.get(position) is not output:
                    self._connection.produce(position, output, reports, deadline_s)
            self._all_sent = True
        except Unpublishable as error:
            reports.refuse(error)  # raised once what is in front of it is reported on
        except KafkaException as error:
            found: KafkaError = error.args[0]
            self._connection.check()
            if client_errors.is_fatal(found):
                raise client_errors.cannot_go_on("producer", found) from error
            raise BrokerAway(f"not produced: {found.str()}") from error

    def _fall_short(self, release: CommitBatch, reports: DeliveryReports) -> NoReturn:
        """Remember what was delivered, so that the next call sends the rest alone. Always raises."""
        self._delivered |= {position: output for position, output in reports.sent if position not in reports.failed}
        self._suspects |= reports.suspects
        self._reports = None
        if reports.unpublishable is not None:
            raise reports.unpublishable
        missing = sum(self._delivered.get(position) is not output for position, output in release.outputs)
        raise BrokerAway(f"{missing} of {len(release.outputs)} records were not delivered ({reports.why})")

    def poll(self) -> None:
        """Take what the client has logged; see `Publisher.poll`."""
        self._connection.client.poll(0)

    def close(self) -> None:
        """Give up what is unfinished and disconnect."""
        self._connection.close()
