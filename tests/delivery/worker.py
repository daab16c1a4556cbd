"""The real stages over Kafka in memory, on one thread and one clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from prometheus_client import CollectorRegistry

from tests.brokers.memory import MemoryBroker
from tests.delivery.doubles import DEAD_LETTERS, INPUT, Codec, Engine, encode
from worker.http.calls import CallQueue
from worker.http.health import Health
from worker.kafka.at_least_once import AtLeastOncePublisher
from worker.kafka.consumer import Consumer
from worker.kafka.fencing import RecoveringPublisher
from worker.kafka.publisher import Publisher
from worker.kafka.transactional import TransactionalPublisher
from worker.kafka.trial import Trial
from worker.messages import Record, Request
from worker.pipeline.batch import BatchPolicy
from worker.pipeline.clocks import Clocks
from worker.pipeline.infer import InferenceThread
from worker.pipeline.resolve import Policy, Refusal
from worker.pipeline.served_model import ServedModel
from worker.pipeline.shadow import Shadow
from worker.pipeline.wiring import open_loop
from worker.rules.dead_letter import DeadLetterSource
from worker.rules.dead_letter_limit import DeadLetterLimits
from worker.rules.device_share import DeviceShare
from worker.rules.retry import RetryPolicy
from worker.telemetry.metrics import Metrics
from worker.telemetry.traces import Traces

Guarantee = Literal["exactly_once", "at_least_once"]

BATCH = BatchPolicy(max_messages=4, max_tokens=1_000, max_wait_s=0.05)
RETRY = RetryPolicy(max_attempts=3, initial_s=0.2, max_s=5.0, multiplier=2.0, jitter=0.0)


@dataclass
class Worker:
    """One process: build it, `turn` it, drop it to crash it."""

    broker: MemoryBroker
    guarantee: Guarantee = "exactly_once"
    engine: Engine = field(default_factory=Engine)
    codec: Codec = field(default_factory=Codec)
    batch: BatchPolicy = BATCH
    retry: RetryPolicy = RETRY
    max_age_s: float | None = None
    dead_letter_limits: DeadLetterLimits = field(default_factory=DeadLetterLimits)
    retry_topics: tuple[tuple[float, str], ...] = ()
    cooperative: bool = True
    contested: bool = False  # its transactional id is a name that others may use
    # A device that is stuck gives no results while the Kafka thread waits for them.
    stuck: bool = False
    # The broker takes its time over a transaction's offsets, until `answer_offsets`.
    slow_offsets: bool = False
    # How far the wall clock is ahead of the monotonic one: an administrator may set it.
    wall_ahead_s: float = 0.0
    # What the broker is known to refuse.
    refusal: Refusal = field(default=lambda *_: None)
    # What tells which topic is there; it needs no real one.
    topic_ids: Any = None
    # How long a request waits for a label set of the codec's; None: there are none.
    wait_s: float | None = None
    # What is asked over HTTP.
    calls: CallQueue | None = None
    traces: Traces | None = None
    # In place of ``engine``: a model that is exchanged for others.
    swapped: ServedModel | None = None
    # What computes a sample again.
    shadow: Shadow | None = None

    def __post_init__(self) -> None:
        clock = self.clock = self.broker.clock
        self._calls: list[Callable[[], None]] = []
        self.registry = CollectorRegistry()
        self.health = Health(loop_limit_s=60, inference_limit_s=300)
        strategy = "cooperative-sticky" if self.cooperative else "range"
        with self.broker.plugged_in():
            self.consumer = Consumer({"partition.assignment.strategy": strategy})
            self.publisher: Publisher
            if self.guarantee == "exactly_once":
                commits = self.consumer.commits
                self.publisher = RecoveringPublisher(
                    lambda most_bytes: self._producer(TransactionalPublisher, most_bytes),
                    lambda: self._producer(Trial),
                    self.consumer,
                    commits.committed,
                    clock,
                    commits.prove_membership if self.contested else None,
                )
            else:
                self.publisher = AtLeastOncePublisher({}, self.consumer, clock)
        self.publisher.start(1.0)
        # A device that is away is waited for in real time: no time at all, here.
        at_once = RetryPolicy(max_attempts=1, initial_s=0.0, max_s=0.0, multiplier=1.0, jitter=0.0)
        self.inference = InferenceThread(
            self.engine if self.swapped is None else self.swapped,
            at_once,
            clock,
            self.health.inference_beat,
            self.health.inference_idle,
            self.calls,
            DeviceShare(0.5, self.batch.max_tokens),
            swapped=self.swapped,
            shadow=self.shadow,
        )
        self.loop = open_loop(
            consumer=self.consumer,
            publisher=self.publisher,
            inference=self.inference,
            read=self._read,
            encode=encode if self.swapped is None else self.swapped.encode,
            write=self.codec.write,
            refusal=self.refusal,
            batch=self.batch,
            policy=Policy(
                retry=self.retry,
                source=DeadLetterSource(DEAD_LETTERS, "group", "worker"),
                limits=self.dead_letter_limits,
                retry_topics=self.retry_topics,
            ),
            max_age_s=self.max_age_s,
            metrics=Metrics(self.registry),
            health=self.health,
            topic_ids=self.topic_ids,
            label_sets=None if self.wait_s is None else (self.codec.sets, self.wait_s),
            gate=None if self.calls is None else self.calls.gate,
            clocks=Clocks(clock, lambda: clock() + self.wall_ahead_s, self.wait),
            seed=0,
            traces=self.traces,
        )
        self.loop.start([INPUT])

    def _read(self, record: Record) -> Request:
        return self.codec.read(record)  # looked up each time: tests put another in its place

    def _producer(self, kind: type[TransactionalPublisher], most_bytes: int | None = None) -> TransactionalPublisher:
        self._calls.clear()  # what a producer before it still waits for, the broker refuses
        with self.broker.plugged_in():
            batches = {} if most_bytes is None else {"batch.size": most_bytes}
            return kind({"transactional.id": "worker"} | batches, self.consumer, self.clock, self._spawn)

    def _spawn(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        if not self.slow_offsets:
            self.answer_offsets()

    def answer_offsets(self) -> None:
        """The broker answers whatever offsets wait."""
        while self._calls:
            self._calls.pop()()

    @property
    def offsets_wait(self) -> bool:
        """True while the broker has a transaction's offsets to answer."""
        return bool(self._calls)

    def wait(self, seconds: float) -> None:
        """Let time pass, and the world get on with it."""
        self.clock.advance(seconds)
        if not self.stuck:
            self.infer()
        if not self.slow_offsets:
            self.answer_offsets()

    def infer(self) -> None:
        """Let the device work, unless the results of two batches wait already."""
        if self.inference.depths[1] < 2:
            self.inference.step(0)

    def turn(self, times: int = 1) -> None:
        """Both stages, one after the other."""
        for _ in range(times):
            self.loop.step()
            if not self.stuck:
                self.infer()

    def settle(self, seconds: float = 60.0) -> None:
        """Turn until nothing is in flight and nothing arrives, for at most so long."""
        deadline_s = self.clock() + seconds
        idle = 0
        while idle < 3:
            assert self.clock() < deadline_s, f"{self.loop.in_flight} records are still in flight"
            before = dict(self.broker.committed)
            self.turn()
            busy = self.loop.in_flight or self.consumer.paused or before != self.broker.committed
            idle = 0 if busy else idle + 1

    def counted(self, metric: str, **labels: str) -> float:
        """The value of a metric, without its prefix."""
        return self.registry.get_sample_value(f"xnli_worker_{metric}", labels) or 0.0
