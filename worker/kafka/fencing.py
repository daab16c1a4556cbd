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

And one is replaced when the broker refuses outputs and does not say which, or one after the other: a `Trial` finds them
and publishes the release without them. If it finds none, the batch was refused for its size, and batches are halved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn, Protocol

import structlog

from worker.errors import BrokerAway, FatalError, Fenced, TransactionAborted, Unpublishable
from worker.kafka.publisher import Clock
from worker.kafka.transactional import OffsetOwner
from worker.messages import CommitBatch, Partition

log = structlog.get_logger("worker.kafka")

# One output that is refused is replaced, and that is that. Where more are, a trial finds them faster.
_REFUSALS: Final = 2


class Transactional(Protocol):
    """The part of `worker.kafka.transactional.TransactionalPublisher` that is used here."""

    has_suspects: bool  # a batch was refused since the last commit, and which of its records is to blame is unknown
    batch_bytes: int

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

    def poll(self) -> None:
        """Take what the client has logged."""

    def close(self) -> None:
        """Abort what is open and disconnect."""


# Partitions and seconds to committed offsets and their metadata, as far as they are known. Raises BrokerAway.
Committed = Callable[[Sequence[Partition], float], Mapping[Partition, tuple[int, str]]]


class RecoveringPublisher:
    """Publishes through one transactional publisher after another, all under one transactional id.

    Args:
        open_next: Connects one whose batches have at most so many bytes; None: as many as the settings say.
        open_trial: Connects a `worker.kafka.trial.Trial`.
        owner: Whose offsets the transactions carry.
        committed: Asks for them. They decide what is in doubt.
        clock: Monotonic seconds.
        prove_membership: Given where another process may run under the same transactional id, because an operator gave
            the name. Being fenced may then mean just that, so the group is asked first whether it knows this member.
        give_way: Given where being fenced means just that, and nobody can be asked. Called when a successor has
            started, so that committed offsets are final: raises Fenced if another process has moved them.
    """

    transactional = True

    def __init__(
        self,
        open_next: Callable[[int | None], Transactional],
        open_trial: Callable[[], Transactional],
        owner: OffsetOwner,
        committed: Committed,
        clock: Clock,
        prove_membership: Callable[[float], None] | None = None,
        give_way: Callable[[float], None] | None = None,
    ) -> None:
        self._open_next = open_next
        self._open_trial = open_trial
        self._owner = owner
        self._committed = committed
        self._clock = clock
        self._prove_membership = prove_membership
        self._give_way = give_way
        self._batch_bytes: int | None = None  # once batches were refused for their size
        self._refused_bytes = 0  # the size of batches before the trial
        self._refusals = 0  # in a row
        self._is_trial = False
        self._current = open_next(None)
        self._is_idle = True  # no transaction is open
        self._recovering = False  # the current publisher is new and not started yet
        self._is_successor = False  # it has not published yet
        self._in_doubt = False  # the fate of the last one's transaction is unknown yet

    def start(self, timeout_s: float) -> None:
        """As `TransactionalPublisher.start`."""
        self._current.start(timeout_s)

    def publish(self, release: CommitBatch, timeout_s: float) -> bool:
        """As `TransactionalPublisher.publish`, save that only a broker without transactions ends in FatalError."""
        deadline_s = self._clock() + timeout_s
        self._make_ready(timeout_s)
        if self._in_doubt:
            committed = self._is_committed(release, max(0.1, deadline_s - self._clock()))
            self._in_doubt = False
            log.warning("transaction_decided", committed=committed)
            if committed:
                return True
            raise TransactionAborted("it was not committed when its producer was lost")
        try:
            self._is_idle = self._current.publish(release, max(0.1, deadline_s - self._clock()))
        except (TransactionAborted, Unpublishable) as error:
            self._is_idle = True
            self._refusals += isinstance(error, Unpublishable)
            if not self._is_trial and (self._current.has_suspects or self._refusals == _REFUSALS):
                self._begin_trial()
            raise
        except (BrokerAway, FatalError) as error:
            if self._give_way is not None and isinstance(error, Fenced):
                raise
            # The broker has not said how the transaction ended, or never will. Whatever of it is under way must not
            # meet the next one, so nothing is asked of this producer any more.
            self._replace(error)
        if self._is_idle and release.outputs:
            self._taken()
        return self._is_idle

    def poll(self) -> None:
        """Take what the client has logged; see `Publisher.poll`."""
        self._current.poll()

    def close(self) -> None:
        """Abort what is open, as far as the broker answers, and disconnect."""
        self._current.close()

    def _make_ready(self, timeout_s: float) -> None:
        """Another producer, if the last one cannot go on or a request of it may arrive late."""
        if self._is_idle and not self._recovering and (why := self._current.lost_request()):
            log.info("producer_replaced", why=why)
            self._open_successor()
        if self._recovering:
            self._recover(timeout_s)
        if self._is_successor and self._give_way is not None:
            self._give_way(timeout_s)
        self._is_successor = False

    def _begin_trial(self) -> None:
        self._refused_bytes, self._is_trial = self._current.batch_bytes, True
        log.info("trial_begins", batch_bytes=self._refused_bytes)
        self._open_successor()

    def _taken(self) -> None:
        """A release has gone out with all its outputs."""
        found, self._refusals = self._refusals, 0
        if not self._is_trial:
            return
        if not found:
            self._batch_bytes = max(1, self._refused_bytes // 2)
        log.info("trial_ends", refusals=found, batch_bytes=self._batch_bytes or self._refused_bytes)
        self._is_trial = False
        self._open_successor()

    def _replace(self, error: BrokerAway | FatalError) -> NoReturn:
        """Always raises: what comes next is the caller's next call."""
        self._in_doubt = self._current.in_doubt
        self._open_successor()
        log.warning("producer_lost", error=str(error), in_doubt=self._in_doubt)
        kind = BrokerAway if self._in_doubt else TransactionAborted
        raise kind(f"a new producer takes over: {error}") from error

    def _open_successor(self) -> None:
        self._current.abandon()
        self._current = self._open_trial() if self._is_trial else self._open_next(self._batch_bytes)
        self._recovering = self._is_successor = self._is_idle = True

    def _recover(self, timeout_s: float) -> None:
        try:
            if self._prove_membership is not None:
                self._prove_membership(timeout_s)
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
        ours = [p for p, generation in release.generations.items() if self._owner.owns({p: generation})]
        known = self._committed(ours, timeout_s) if ours else {}
        if len(known) < len(ours):
            raise BrokerAway("committed offsets are known of some partitions only")
        return all(known[partition][0] >= release.offsets[partition] for partition in ours)
