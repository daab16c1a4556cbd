"""Exactly-once through outages: a spent transactional producer is replaced, in place, by a new one.

librdkafka's producer is spent after any fatal error, and an outage is enough for one: the broker aborts a transaction
that outlasts ``transaction.timeout.ms`` and takes its producer for fenced, or it has never heard of the transaction
that the client wants to end. Neither is a reason for the process to end. A new producer under the same transactional
id begins by ending what the old one left open (KIP-98); then committed offsets are final, and tell whether a
transaction whose commit was under way took effect, because they are part of it.

A producer is replaced, too, before the next transaction begins when a request of its last one was lost or not answered
in time. Such a request may arrive late, and under the same producer epoch the broker would take it for a part of
whatever transaction is open by then (KIP-890). The new producer has a new epoch, and what is late is refused. It also
ends the transaction that was given up for such a request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, Protocol

import structlog

from worker.errors import BrokerAway, FatalError, TransactionAborted, Unpublishable
from worker.kafka.consumer import Consumer
from worker.kafka.publisher import Clock
from worker.messages import CommitBatch

log = structlog.get_logger("worker.kafka")


class Transactional(Protocol):
    """The part of `worker.kafka.transactional.TransactionalPublisher` that is used here."""

    @property
    def in_doubt(self) -> bool:
        """True while a commit is under way."""

    def start(self, timeout_s: float) -> None:
        """Fence a predecessor and end what it left open. Raises BrokerAway or FatalError."""

    def publish(self, release: CommitBatch, timeout_s: float) -> bool:
        """One transaction; False while it is under way."""

    def lost_request(self) -> str:
        """Why a request may arrive late and must not meet another transaction; empty if none may."""

    def abandon(self) -> None:
        """Disconnect, and leave what is open to a successor."""

    def close(self) -> None:
        """Abort what is open and disconnect."""


class RecoveringPublisher:
    """Publishes through one transactional publisher after another.

    Args:
        open_next: Connects a publisher; all under one transactional id.
        consumer: Whose partitions and committed offsets decide what is in doubt.
        clock: Monotonic seconds.
        contested: Another process may run under the same transactional id, because an operator gave the name. Being
            fenced may then mean just that, so the group is asked first whether it still knows this member.
    """

    transactional = True

    def __init__(
        self, open_next: Callable[[], Transactional], consumer: Consumer, clock: Clock, *, contested: bool
    ) -> None:
        self._open_next = open_next
        self._consumer = consumer
        self._clock = clock
        self._contested = contested
        self._current = open_next()
        self._is_idle = True  # no transaction is open
        self._recovering = False  # the current publisher is new and not started yet
        self._in_doubt = False  # the fate of the last one's transaction is unknown yet

    def start(self, timeout_s: float) -> None:
        """As `TransactionalPublisher.start`."""
        self._current.start(timeout_s)

    def publish(self, release: CommitBatch, timeout_s: float) -> bool:
        """As `TransactionalPublisher.publish`, save that only a broker without transactions ends in FatalError."""
        deadline_s = self._clock() + timeout_s
        if self._is_idle and not self._recovering and (why := self._current.lost_request()):
            log.info("producer_replaced", why=why)
            self._open_successor()
        if self._recovering:
            self._recover(timeout_s)
        if self._in_doubt:
            committed = self._is_committed(release, max(0.1, deadline_s - self._clock()))
            self._in_doubt = False
            log.warning("transaction_decided", committed=committed)
            if committed:
                return True
            raise TransactionAborted("it was not committed when its producer was lost")
        try:
            self._is_idle = self._current.publish(release, max(0.1, deadline_s - self._clock()))
        except (TransactionAborted, Unpublishable):
            self._is_idle = True
            raise
        except (BrokerAway, FatalError) as error:
            # The broker has not said how the transaction ended, or never will. Whatever of it is under way must not
            # meet the next one, so nothing is asked of this producer any more.
            self._replace(error)
        return self._is_idle

    def close(self) -> None:
        """Abort what is open, as far as the broker answers, and disconnect."""
        self._current.close()

    def _replace(self, error: BrokerAway | FatalError) -> NoReturn:
        """Always raises: what comes next is the caller's next call."""
        self._in_doubt = self._current.in_doubt
        self._open_successor()
        log.warning("producer_lost", error=str(error), in_doubt=self._in_doubt)
        kind = BrokerAway if self._in_doubt else TransactionAborted
        raise kind(f"a new producer takes over: {error}") from error

    def _open_successor(self) -> None:
        self._current.abandon()
        self._current = self._open_next()
        self._recovering = self._is_idle = True

    def _recover(self, timeout_s: float) -> None:
        try:
            if self._contested:
                self._consumer.commits.prove_membership(timeout_s)
            self._current.start(timeout_s)
        except BrokerAway as error:
            if self._in_doubt:
                raise
            raise TransactionAborted(str(error)) from error
        self._recovering = False

    def _is_committed(self, release: CommitBatch, timeout_s: float) -> bool:
        """Whether the release, or more, is committed. What is no longer ours is its new owner's, either way.

        Raises:
            BrokerAway: nobody says.
        """
        ours = [p for p, generation in release.generations.items() if self._consumer.assignment.get(p) == generation]
        known = self._consumer.commits.committed(ours, timeout_s) if ours else {}
        if len(known) < len(ours):
            raise BrokerAway("committed offsets are known of some partitions only")
        return all(known[partition][0] >= release.offsets[partition] for partition in ours)
