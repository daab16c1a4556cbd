"""Every Prometheus metric of the worker, and the plain methods by which the pipeline feeds them.

`_Records`, `_Batches`, `_Inference`, `_Shadow`, `_Time`, `_Flow`, `_Broker` and `_LabelSets` are the table: name, help,
labels and buckets of each metric, in the order in which ``/metrics`` lists them. `Metrics` is what the other modules
call. How to read them:

- padding share = ``padding_tokens / (padding_tokens + computed_tokens)``, as rates. Two counters rather than a gauge:
  they add up over workers and over any stretch of time.
- pairs asked for = computed + cache hits + repeats within one batch.
- ``stage_seconds`` of poll and decode are spent one after the other by the Kafka thread: the rates of their sums show
  how that thread divides its second. ``inference_seconds`` does so for the inference thread.
- ``stage="inference"`` minus ``inference_seconds`` is the time for which the results of a batch waited to be taken, and
  for which a device was away.

Label values are bounded: enumerations of ours, the subscribed topics, and the partitions held at the moment. The lag of
a partition ends with its assignment, or each rebalance would leave one behind that nobody works on.

Cost: everything is counted per poll, per batch or per publish. Any thread may call any method, except ``consumed``,
``lag`` and ``rebalanced``, which belong to the Kafka thread.
"""

# size: the one table of all metrics, and a method for each; to part them would hide what there is.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from worker.errors import Reason
from worker.messages import Batch, Partition, Trigger, Work
from worker.telemetry.distribution import Distribution


class Stage(StrEnum):
    """Where a batch, or the Kafka thread, spends its time: values of the label ``stage``."""

    POLL = "poll"  # one call of the consumer, its waiting for records included
    DECODE = "decode"  # the records of one poll, from bytes to tokens
    WAIT = "wait"  # a batch, from its first admission until it is computed
    INFERENCE = "inference"  # a batch, from the inference thread's beginning until its results are taken back
    PUBLISH = "publish"  # what is published at once, from its first produce call until it is acknowledged and committed


class Queue(StrEnum):
    """The two queues between the threads: values of the label ``queue``."""

    BATCHES = "batches"  # closed, not yet begun
    RESULTS = "results"  # finished, not yet taken


class Skipped(StrEnum):
    """Why records were never read: values of the label ``reason``."""

    UNREADABLE = "unreadable"  # a batch that is damaged, or packed in an unknown way: it has a dead letter
    RETENTION = "retention"  # deleted before anybody read them
    RESET = "reset"  # the group had read them, and they are gone: reading began anew


class Rebalance(StrEnum):
    """What the group did with partitions of ours: values of the label ``kind``."""

    ASSIGNED = "assigned"
    REVOKED = "revoked"  # taken with notice: drained and committed
    LOST = "lost"  # taken without: nothing may be committed


class Swap(StrEnum):
    """What became of a checkpoint that was to take the place of another: values of the label ``outcome``."""

    SWAPPED = "swapped"
    FAILED = "failed"  # it was refused, or could not be loaded: the other one goes on
    UNCHANGED = "unchanged"  # it is the one that serves


class Shadowed(StrEnum):
    """What became of a request that a second model was to compute too: values of the label ``outcome``."""

    AGREES = "agrees"  # the same top label, the same labels that pass, or the same judgements
    DIFFERS = "differs"
    SHED = "shed"  # too many wait already
    FAILED = "failed"  # the second model cannot compute it


class TransactionResult(StrEnum):
    """How a transaction ended: values of the label ``result``."""

    COMMITTED = "committed"
    ABORTED = "aborted"


# Powers of two up to four times batch.max_messages' default (256): the bucket's edge tells "full" from "nearly full".
_MESSAGES = tuple(2**n for n in range(11))
# Powers of two around batch.max_tokens' default (16384), from one short text to four times the default.
_TOKENS = tuple(2**n for n in range(6, 17))
# 100 µs (decoding a poll) to 10 s (a transaction waiting for a broker that is away): about three to a decade.
_STAGE_SECONDS = (1e-4, 2.5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# 1 ms (a small batch on a large device) to 60 s (a full batch of long texts on a small CPU).
_INFERENCE_SECONDS = (1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# 10 ms (below batch.max_wait_ms' default of 50) to an hour: a backlog is old, and its age is what one wants to read.
_END_TO_END_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

# A thousandth (the same weights in another precision) to 1 (opposite answers).
_DRIFT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

_Kind = TypeVar("_Kind", bound=StrEnum)


class _Declare:
    """Declares metrics in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        # The time of creation, a second series for each counter and histogram, says no more than process_start_time.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library left this one function untyped

    def counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def counters(self, name: str, documentation: str, label: str, kinds: type[_Kind]) -> Mapping[str, Counter]:
        """One per member. Bound here they exist from the start, at 0, and an alert sees the first increase."""
        parent = self.counter(name, documentation, label)
        return {kind: parent.labels(kind) for kind in kinds}

    def gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(name, documentation, labels, registry=self.registry)

    def histogram(self, name: str, documentation: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, documentation, labels, buckets=buckets, registry=self.registry)


class _Records:
    """What became of each record."""

    def __init__(self, declare: _Declare) -> None:
        # Everything polled for a partition we hold, tombstones and garbage included: the denominator of every share.
        self.consumed = declare.counter("xnli_worker_records_consumed_total", "Records read.", "topic")
        # Acknowledged and, under exactly_once, committed: an aborted transaction's results are not counted.
        self.published = declare.counter("xnli_worker_records_published_total", "Results acknowledged by the broker.")
        self.retried = declare.counter(
            "xnli_worker_records_retried_total", "Records given another attempt, in place or by retry topic."
        )
        self.dead_lettered = declare.counters(
            "xnli_worker_records_dead_lettered_total",
            "Dead-letter records acknowledged by the broker, by reason.",
            "reason",
            Reason,
        )
        self.skipped = declare.counters(
            "xnli_worker_records_skipped_total",
            "Offsets passed over whose records nobody will read.",
            "reason",
            Skipped,
        )
        self.tombstones = declare.counter("xnli_worker_tombstones_total", "Records with a null value, skipped.")


class _Batches:
    """How well batches are filled."""

    def __init__(self, declare: _Declare) -> None:
        # Mostly "wait": there is little to do. Mostly "tokens" or "messages": the device is the limit.
        self.closed = declare.counters(
            "xnli_worker_batches_total", "Batches closed, by what closed them.", "trigger", Trigger
        )
        self.messages = declare.histogram("xnli_worker_batch_messages", "Messages in a batch.", _MESSAGES)
        self.tokens = declare.histogram(
            "xnli_worker_batch_tokens", "Tokens in a batch, as the batcher counts them: without padding.", _TOKENS
        )


class _Inference:
    """What the device did."""

    def __init__(self, declare: _Declare) -> None:
        self.seconds = declare.histogram(
            "xnli_worker_inference_seconds", "Time the engine worked on a batch.", _INFERENCE_SECONDS
        )
        self.pairs = declare.counter(
            "xnli_worker_pairs_total", "Premise-hypothesis pairs (for EMBED, texts) asked for, each window counted."
        )
        self.pairs_computed = declare.counter("xnli_worker_pairs_computed_total", "Pairs that went through the model.")
        self.cache_hits = declare.counter("xnli_worker_cache_hits_total", "Pairs answered by the cache of scores.")
        self.computed_tokens = declare.counter(
            "xnli_worker_computed_tokens_total", "Tokens that went through the model, padding excluded."
        )
        self.padding_tokens = declare.counter(
            "xnli_worker_padding_tokens_total", "Padding that went through the model."
        )
        # Falls when the device runs out of memory, and should not do so twice: see the alert.
        self.token_budget = declare.gauge(
            "xnli_worker_token_budget", "Padded tokens that a forward may hold at present."
        )
        self.shrinks = declare.counter(
            "xnli_worker_out_of_memory_shrinks_total", "Times the token budget was cut for want of device memory."
        )
        self.splits = declare.counter(
            "xnli_worker_bisections_total", "Times a failing batch was split to find the culprit."
        )
        self.swaps = declare.counters(
            "xnli_worker_model_swaps_total",
            "Checkpoints that were to take the place of the one that served, by what became of them.",
            "outcome",
            Swap,
        )


class _Shadow:
    """How far a second model agrees with the one that serves."""

    def __init__(self, declare: _Declare) -> None:
        self.requests = declare.counters(
            "xnli_worker_shadow_requests_total",
            "Requests that a second model was to compute too, by what became of them.",
            "outcome",
            Shadowed,
        )
        self.drift = declare.histogram(
            "xnli_worker_shadow_score_drift",
            "Largest difference between the scores that the two models give one label of a request.",
            _DRIFT,
        )


class _Time:
    """Where time goes."""

    def __init__(self, declare: _Declare) -> None:
        stages = declare.histogram("xnli_worker_stage_seconds", "Time spent in a stage.", _STAGE_SECONDS, "stage")
        self.stages = {stage: stages.labels(stage) for stage in Stage}
        # What a user feels. Clocks of producers differ, so it may be off by their skew; it is never counted below 0.
        self.end_to_end = Distribution(
            "xnli_worker_end_to_end_seconds",
            "From a request's record timestamp to the acknowledgement of its result.",
            _END_TO_END_SECONDS,
        )
        declare.registry.register(self.end_to_end)


class _Flow:
    """Where records wait."""

    def __init__(self, declare: _Declare) -> None:
        queues = declare.gauge("xnli_worker_queue_depth", "Batches waiting between the threads, by queue.", "queue")
        self.queues = {queue: queues.labels(queue) for queue in Queue}
        self.lag = declare.gauge(
            "xnli_worker_consumer_lag",
            "Records between the committed offset and the end of a partition held by this worker.",
            "topic",
            "partition",
        )
        # Part of the lag. Where it stays, a producer of requests has left a transaction open.
        self.unstable = declare.gauge(
            "xnli_worker_unstable_records",
            "Records that an open transaction of their producer hides from every reader.",
            "topic",
            "partition",
        )
        self.assigned = declare.gauge("xnli_worker_assigned_partitions", "Partitions held.")
        self.stalled = declare.gauge(
            "xnli_worker_stalled_partitions",
            "1 for each partition held that cannot be read until somebody mends something; * for a whole topic.",
            "topic",
            "partition",
        )
        self.paused = declare.gauge("xnli_worker_paused_partitions", "Partitions held and paused by back-pressure.")


class _Broker:
    """How the brokers and the group treat us."""

    def __init__(self, declare: _Declare) -> None:
        self.transactions = declare.counters(
            "xnli_worker_transactions_total", "Transactions ended, by result.", "result", TransactionResult
        )
        self.rebalances = declare.counters(
            "xnli_worker_rebalances_total", "Rebalance callbacks, by kind.", "kind", Rebalance
        )
        self.errors = declare.counter("xnli_worker_broker_errors_total", "Errors reported by the Kafka clients.")


class _LabelSets:
    """The sets that requests may name."""

    def __init__(self, declare: _Declare) -> None:
        self.known = declare.gauge("xnli_worker_label_sets", "Label sets that requests may name.")
        self.bytes = declare.gauge("xnli_worker_label_sets_bytes", "Bytes of label_sets.max_bytes that they take.")
        self.refused = declare.counter(
            "xnli_worker_label_sets_refused_total", "Records of the label sets' topic that were refused: see the log."
        )
        # Where it grows all the time, a producer names a set that nobody writes: its requests become dead letters.
        self.waits = declare.counter(
            "xnli_worker_label_set_waits_total", "Requests that waited for the label set that they name."
        )


class Metrics:
    """The worker's metrics in ``registry``; one object per process, given to whoever has something to count.

    ``topics`` are those subscribed to: their series exist before the first record.
    """

    def __init__(self, registry: CollectorRegistry, *, topics: Iterable[str] = ()) -> None:
        declare = _Declare(registry)
        self._records = _Records(declare)
        self._batches = _Batches(declare)
        self._inference = _Inference(declare)
        self._shadow = _Shadow(declare)
        self._time = _Time(declare)
        self._flow = _Flow(declare)
        self._broker = _Broker(declare)
        self._label_sets = _LabelSets(declare)
        self._build = Info(
            "xnli_worker_build", "Version of the worker, checkpoint and device in use.", registry=registry
        )
        # xnli_worker_process_*: CPU, resident memory, open files and start time, where /proc exists.
        ProcessCollector(namespace="xnli_worker", registry=registry)
        self._consumed = {topic: self._records.consumed.labels(topic) for topic in topics}
        self._lag_of: dict[tuple[str, int], Gauge] = {}
        self._unstable_of: dict[tuple[str, int], Gauge] = {}
        self._stalled: set[tuple[str, str]] = set()

    def consumed(self, topic: str, records: int) -> None:
        """``records`` of ``topic`` were polled. ``topic`` is one of those subscribed to, which bounds the label."""
        counter = self._consumed.get(topic)
        if counter is None:
            counter = self._consumed[topic] = self._records.consumed.labels(topic)
        counter.inc(records)

    def tombstones(self, records: int = 1) -> None:
        """Records with a null value were skipped."""
        self._records.tombstones.inc(records)

    def skipped(self, reason: str, records: int) -> None:
        """Offsets were passed over for good; ``reason`` is a value of `Skipped`."""
        self._records.skipped[reason].inc(records)

    def published(self, results: int) -> None:
        """Results were acknowledged; call it after the transaction's commit, where there is one."""
        self._records.published.inc(results)

    def answered(self, now_ms: float, timestamps_ms: Iterable[int]) -> None:
        """The end-to-end time of results acknowledged at ``now_ms`` (wall clock).

        Takes their requests' record timestamps; those that the broker did not give (-1) are left out.
        """
        known_ms = [timestamp_ms for timestamp_ms in timestamps_ms if timestamp_ms >= 0]
        if known_ms:
            self._time.end_to_end.observe(np.maximum(0.0, (now_ms - np.array(known_ms, dtype=np.float64)) / 1000.0))

    def retried(self, records: int = 1) -> None:
        """Records get another attempt, in place or by retry topic."""
        self._records.retried.inc(records)

    def dead_lettered(self, reason: str, records: int = 1) -> None:
        """Dead-letter records were acknowledged; ``reason`` is a value of `worker.errors.Reason`.

        Raises:
            KeyError: it is none.
        """
        self._records.dead_lettered[reason].inc(records)

    def batch(self, batch: Batch) -> None:
        """A batch was closed."""
        self._batches.closed[batch.trigger].inc()
        self._batches.messages.observe(len(batch.jobs))
        self._batches.tokens.observe(batch.tokens)

    def inferred(self, work: Work, splits: int) -> None:
        """The engine finished a batch, which was split ``splits`` times to find what made it fail."""
        self._inference.seconds.observe(work.seconds)
        self.called(work, splits)

    def called(self, work: Work, splits: int) -> None:
        """Calls over HTTP were computed by themselves: pairs and tokens as those of a batch, which it is none."""
        self._inference.pairs.inc(work.rows)
        self._inference.pairs_computed.inc(work.computed)
        self._inference.cache_hits.inc(work.cache_hits)
        self._inference.computed_tokens.inc(work.tokens)
        self._inference.padding_tokens.inc(work.slots - work.tokens)
        if work.shrinks:
            self._inference.shrinks.inc(work.shrinks)
        if splits:
            self._inference.splits.inc(splits)

    def token_budget(self, tokens: int) -> None:
        """How many padded tokens a forward may hold now."""
        self._inference.token_budget.set(tokens)

    def stage(self, stage: Stage, seconds: float) -> None:
        """A stage took ``seconds``: once per poll or per batch, see `Stage`."""
        self._time.stages[stage].observe(seconds)

    def queued(self, queue: Queue, depth: int) -> None:
        """How many batches a queue holds now."""
        self._flow.queues[queue].set(depth)

    def lag(self, topic: str, partition: int, records: int) -> None:
        """High watermark minus committed offset. Only for partitions held: `rebalanced` takes the series away again."""
        gauge = self._lag_of.get((topic, partition))
        if gauge is None:
            gauge = self._lag_of[topic, partition] = self._flow.lag.labels(topic, partition)
        gauge.set(records)

    def unstable(self, topic: str, partition: int, records: int) -> None:
        """Records of a partition held that lie behind its last stable offset."""
        gauge = self._unstable_of.get((topic, partition))
        if gauge is None:
            gauge = self._unstable_of[topic, partition] = self._flow.unstable.labels(topic, partition)
        gauge.set(records)

    def rebalanced(self, kind: Rebalance, partitions: Iterable[Partition], *, assigned: int) -> None:
        """``partitions`` came or went; ``assigned`` are held in all. Those that went lose their lag."""
        self._broker.rebalances[kind].inc()
        self._flow.assigned.set(assigned)
        if kind is Rebalance.ASSIGNED:
            return
        for topic, partition in partitions:
            if self._lag_of.pop((topic, partition), None) is not None:
                self._flow.lag.remove(topic, partition)
            if self._unstable_of.pop((topic, partition), None) is not None:
                self._flow.unstable.remove(topic, partition)

    def stalled(self, partitions: Iterable[tuple[str, str]]) -> None:
        """Topics and partitions that cannot be read now. Only these have a series."""
        found = set(partitions)
        for named in self._stalled - found:
            self._flow.stalled.remove(*named)
        for named in found:
            self._flow.stalled.labels(*named).set(1)
        self._stalled = found

    def paused(self, partitions: int) -> None:
        """How many partitions are paused now."""
        self._flow.paused.set(partitions)

    def transaction(self, result: TransactionResult) -> None:
        """A transaction ended."""
        self._broker.transactions[result].inc()

    def broker_error(self) -> None:
        """A Kafka client reported an error, by its callback or by an exception."""
        self._broker.errors.inc()

    def label_sets(self, known: int, taken_bytes: int) -> None:
        """How many label sets are known now, and what they take."""
        self._label_sets.known.set(known)
        self._label_sets.bytes.set(taken_bytes)

    def label_set_refused(self) -> None:
        """A record of the label sets' topic was refused."""
        self._label_sets.refused.inc()

    def label_set_waited_for(self) -> None:
        """A request begins to wait for its label set."""
        self._label_sets.waits.inc()

    def swapped(self, outcome: Swap) -> None:
        """A checkpoint took the place of another, or did not."""
        self._inference.swaps[outcome].inc()

    def shadowed(self, outcome: Shadowed, drift: float | None = None) -> None:
        """A second model computed a request too, or did not; ``drift`` where scores could be compared."""
        self._shadow.requests[outcome].inc()
        if drift is not None:
            self._shadow.drift.observe(drift)

    def identify(self, *, version: str, model: str, revision: str, device: str, precision: str) -> None:
        """What runs here, as labels of ``xnli_worker_build_info``; whenever a model begins to serve."""
        self._build.info(
            {"version": version, "model": model, "revision": revision, "device": device, "precision": precision}
        )
