"""Admit: bytes become a request, a request becomes tokens, and the job waits for a batch.

What cannot be read goes to `worker.pipeline.resolve`. While the registry is away, records wait here undecoded: an
outage is not poison. A request whose label set is not there yet waits in `worker.pipeline.set_wait`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from worker.avro.codec import Codecs
from worker.avro.request import Defaults, Limits
from worker.avro.request import request as read_request
from worker.errors import FatalError, Reason, RegistryAway, Rejection, UnknownLabelSet
from worker.messages import Encoded, Job, Record, Request
from worker.pipeline.batch import BATCHES_IN_HAND, BatchPolicy
from worker.pipeline.clocks import Clocks
from worker.pipeline.handoff import Handoff
from worker.pipeline.partition import Partitions
from worker.pipeline.resolve import Resolver
from worker.pipeline.set_wait import SetWait
from worker.rules.retry import RetryPolicy
from worker.telemetry.metrics import Metrics, Stage

log = structlog.get_logger("worker.kafka")

ReadRequest = Callable[[Record], Request]
Encode = Callable[[Request], Encoded]


@dataclass(frozen=True, slots=True)
class RequestReader:
    """Records to requests, by the shipped schema and the settings."""

    codecs: Codecs
    defaults: Defaults
    limits: Limits

    def __call__(self, record: Record) -> Request:
        """The request a record holds. Raises Rejection (its own fault) or RegistryAway (nobody's)."""
        datum = self.codecs.read_request(record.value or b"", record.headers, self.limits.max_message_bytes)
        try:
            return read_request(datum, self.defaults, self.limits)
        except Rejection as refused:
            refused.request_id = datum["id"]
            raise


class Admission:
    """Records that were fetched and are not decoded yet, and the step that admits them.

    Args:
        read: makes a request of a record (`RequestReader`).
        encode: makes tokens of a request; raises Rejection.
        max_age_s: a request older than this is rejected; None: requests do not expire.
        set_wait: where requests wait for their label sets; None: there are no sets.
    """

    def __init__(
        self,
        *,
        read: ReadRequest,
        encode: Encode,
        partitions: Partitions,
        handoff: Handoff,
        resolver: Resolver,
        batch: BatchPolicy,
        retry: RetryPolicy,
        max_age_s: float | None,
        metrics: Metrics,
        clocks: Clocks,
        jitter: random.Random,
        set_wait: SetWait | None,
    ) -> None:
        self._read = read
        self._encode = encode
        self._partitions = partitions
        self._handoff = handoff
        self._resolver = resolver
        # One poll may bring more work than may be held: the rest waits undecoded, and fetching pauses with it.
        self._most_tokens = BATCHES_IN_HAND * batch.max_tokens
        self._retry = retry
        self._max_age_s = max_age_s
        self._metrics = metrics
        self._clocks = clocks
        self._random = jitter
        self._set_wait = set_wait
        # More than one step's only while the registry is away, or more work is in hand than may be.
        self._undecoded: deque[Record] = deque()
        self._resume_at_s = 0.0
        self._attempts = 0  # at the registry

    def add(self, records: Iterable[Record]) -> None:
        """Records that were just fetched and tracked."""
        self._undecoded.extend(records)

    @property
    def has_undecoded(self) -> bool:
        """True while fetched records wait to be decoded."""
        return bool(self._undecoded)

    @property
    def is_waiting(self) -> bool:
        """True while a dependency that was away is left alone."""
        return self._clocks.monotonic_s() < self._resume_at_s

    def step(self) -> None:
        """Admit what is due for another attempt, then what was fetched."""
        began_s = self._clocks.monotonic_s()
        for due in self._resolver.due():
            if isinstance(due, Job):
                self._add_job(due)
            else:
                self._undecoded.appendleft(due)
        if self._set_wait is not None:
            self._undecoded.extendleft(reversed(self._set_wait.released()))
            for record, refused in self._set_wait.expired():
                if self._partitions.is_live(record.position):
                    self._resolver.unreadable(record, refused)
        if not self._undecoded or self.is_waiting:
            return
        while self._undecoded and self._handoff.tokens < self._most_tokens:
            record = self._undecoded[0]
            try:
                if self._partitions.is_live(record.position):
                    self.admit(record)
            except RegistryAway as error:
                # An outage is not poison: keep the record, read nothing behind it, try again later.
                self.wait()
                log.warning("registry_away", error=str(error), waiting=len(self._undecoded))
                break
            self._undecoded.popleft()
        self._metrics.stage(Stage.DECODE, self._clocks.monotonic_s() - began_s)

    def admit(self, record: Record) -> None:
        """Make a job of a record, or resolve it.

        Raises:
            RegistryAway: the record stays as it is; nobody is at fault.
        """
        if record.value is None and not record.unreadable:
            self._resolver.skipped(record)
            return
        try:
            self._check(record)
            request = self._read(record)
            job = Job(record, request, self._encode(request))
        except (RegistryAway, FatalError):
            raise
        except UnknownLabelSet as unknown:
            refused = unknown if self._set_wait is None else self._set_wait.begin(record, unknown)
            if refused is not None:
                self._resolver.unreadable(record, refused)
        except Exception as error:  # noqa: BLE001 (whatever else reading a record raises concerns that record only)
            self._resolver.unreadable(record, error)
        else:
            self._add_job(job)
        self._attempts = 0

    @property
    def deadline_s(self) -> float:
        """When a request has waited long enough for its label set, by the monotonic clock; infinity if none waits."""
        return self._set_wait.deadline_s if self._set_wait is not None else float("inf")

    def wait(self) -> None:
        """Leave a dependency alone for a while that grows with each call, until a record is admitted."""
        self._attempts += 1
        delay_s = self._retry.delay_s(self._attempts, self._random.random())
        self._resume_at_s = self._clocks.monotonic_s() + delay_s

    def _check(self, record: Record) -> None:
        """Raise Rejection for a record that Kafka's client could not read whole, or that is too old."""
        if record.unreadable:
            raise Rejection(Reason.MALFORMED, "read", record.unreadable)
        limit_s = self._max_age_s
        if limit_s is None or record.timestamp_ms < 0:
            return
        age_s = self._clocks.wall_s() - record.timestamp_ms / 1000
        if age_s > limit_s:
            raise Rejection(Reason.EXPIRED, "decode", f"{age_s:.1f} s old; limits.max_age_s is {limit_s:g}")

    def _add_job(self, job: Job) -> None:
        partition = self._partitions.accounts[job.record.position.partition]
        if partition.quarantined is not None:
            self._handoff.add_alone(job)
        else:
            self._handoff.add(job)
