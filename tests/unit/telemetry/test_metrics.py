from __future__ import annotations

import math
import threading
from collections.abc import Mapping

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from worker.errors import Reason
from worker.messages import Batch, Partition, Trigger, Work
from worker.telemetry.metrics import Metrics, Queue, Rebalance, Stage, TransactionResult


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry, topics=["requests"])


def test_names_are_prometheus_conventions(registry: CollectorRegistry, metrics: Metrics) -> None:
    for family in registry.collect():
        assert family.name.startswith("xnli_worker_")
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert not sample.name.endswith("_created")
            assert family.type != "counter" or sample.name.endswith("_total")
        assert not family.name.endswith(("_ms", "_milliseconds", "_kb"))


def test_counters_exist_at_zero_before_anything_happened(registry: CollectorRegistry, metrics: Metrics) -> None:
    """An alert on an increase misses the first event of a series that is born with the value 1."""
    expected: list[tuple[str, Mapping[str, str]]] = [
        ("records_consumed_total", {"topic": "requests"}),
        *(("records_dead_lettered_total", {"reason": reason}) for reason in Reason),
        *(("batches_total", {"trigger": trigger}) for trigger in Trigger),
        *(("transactions_total", {"result": result}) for result in TransactionResult),
        *(("rebalances_total", {"kind": kind}) for kind in Rebalance),
        *(("stage_seconds_count", {"stage": stage}) for stage in Stage),
        *(("queue_depth", {"queue": queue}) for queue in Queue),
    ]
    for name, labels in expected:
        assert registry.get_sample_value(f"xnli_worker_{name}", dict(labels)) == 0


def test_what_a_batch_leaves_behind(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.batch(Batch(jobs=(), tokens=100, opened_at_s=0.0, trigger=Trigger.WAIT))
    work = Work(rows=10, computed=7, tokens=90, slots=100, cache_hits=2, shrinks=1, forwards=1, seconds=0.02)
    metrics.inferred(work, 3)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"xnli_worker_{name}", labels)

    assert value("batches_total", trigger="wait") == 1
    assert value("batch_tokens_bucket", le="64.0") == 0
    assert value("batch_tokens_bucket", le="128.0") == 1
    assert value("batch_messages_count") == 1
    assert value("inference_seconds_sum") == pytest.approx(0.02)
    assert (value("pairs_total"), value("pairs_computed_total"), value("cache_hits_total")) == (10, 7, 2)
    assert (value("computed_tokens_total"), value("padding_tokens_total")) == (90, 10)
    assert (value("out_of_memory_shrinks_total"), value("bisections_total")) == (1, 3)


def test_end_to_end_knows_no_missing_and_no_future_timestamp(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.answered(10_000.0, [9_000, -1, 9_500, 10_400])
    assert registry.get_sample_value("xnli_worker_end_to_end_seconds_count") == 3
    assert registry.get_sample_value("xnli_worker_end_to_end_seconds_sum") == pytest.approx(1.5)


def test_lag_ends_with_the_assignment(registry: CollectorRegistry, metrics: Metrics) -> None:
    def lags() -> dict[str, float]:
        return {
            f"{sample.labels['topic']}-{sample.labels['partition']}": sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "xnli_worker_consumer_lag"
        }

    held = [Partition("requests", 0), Partition("requests", 1), Partition("other", 0)]
    metrics.rebalanced(Rebalance.ASSIGNED, held, assigned=3)
    for topic, number in held:
        metrics.lag(topic, number, 100)
    metrics.lag("requests", 1, 50)
    assert lags() == {"requests-0": 100, "requests-1": 50, "other-0": 100}
    metrics.rebalanced(Rebalance.REVOKED, [held[0], Partition("requests", 7)], assigned=2)
    assert lags() == {"requests-1": 50, "other-0": 100}
    metrics.rebalanced(Rebalance.LOST, held[1:], assigned=0)
    assert lags() == {}
    metrics.lag("requests", 0, 7)  # assigned again: a new series, not the removed one
    assert lags() == {"requests-0": 7}
    assert registry.get_sample_value("xnli_worker_assigned_partitions") == 0


def test_an_unknown_reason_is_our_own_mistake(metrics: Metrics) -> None:
    with pytest.raises(KeyError):
        metrics.dead_lettered("whatever")


def test_two_threads_and_a_scrape_lose_nothing(registry: CollectorRegistry, metrics: Metrics) -> None:
    def count() -> None:
        for partition in range(200):
            metrics.published(1)
            metrics.answered(1.0, [0])
            metrics.stage(Stage.POLL, 0.1)
            metrics.queued(Queue.BATCHES, partition)

    def scrape() -> None:
        for _ in range(20):
            generate_latest(registry)

    threads = [threading.Thread(target=target) for target in (count, count, count, scrape)]
    for thread in threads:
        thread.start()
    for partition in range(200):  # series come and go while the scrape walks over them
        metrics.lag("requests", partition, 1)
        metrics.rebalanced(Rebalance.REVOKED, [Partition("requests", partition)], assigned=0)
    for thread in threads:
        thread.join()
    assert registry.get_sample_value("xnli_worker_records_published_total") == 600
    assert registry.get_sample_value("xnli_worker_end_to_end_seconds_count") == 600


def test_the_set_of_series_is_bounded(registry: CollectorRegistry, metrics: Metrics) -> None:
    """Whatever flows through, a worker adds series by topics and by the partitions it holds, and by nothing else."""

    def series() -> int:
        return sum(math.isfinite(sample.value) for family in registry.collect() for sample in family.samples)

    before = series()
    for n in range(50):
        metrics.consumed("requests", n)
        metrics.dead_lettered(list(Reason)[n % len(Reason)])
        metrics.lag("requests", n % 4, n)
        metrics.rebalanced(Rebalance.REVOKED, [Partition("requests", n % 4)], assigned=0)
    assert series() == before
