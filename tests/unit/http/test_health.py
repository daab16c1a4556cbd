from __future__ import annotations

from worker.http.health import Health, LatestDeadLetter


def make_health() -> Health:
    return Health(loop_limit_s=10.0, inference_limit_s=60.0)


def test_starting_is_healthy_however_long_it_takes() -> None:
    assert make_health().healthy(1e9).ok


def test_a_silent_loop_fails_after_its_limit_and_recovers() -> None:
    health = make_health()
    health.loop_beat(100.0)
    assert health.healthy(110.0).ok
    (problem,) = health.healthy(110.5).problems
    assert problem == "the Kafka loop has made no progress for 10.5 s; the limit is 10 s"
    health.loop_beat(111.0)
    assert health.healthy(112.0).ok


def test_a_device_stalls_only_with_work_in_hand() -> None:
    health = make_health()
    health.inference_beat(100.0)
    assert health.healthy(160.0).ok
    assert "inference" in health.healthy(161.0).problems[0]
    health.inference_beat(161.0)
    assert health.healthy(200.0).ok
    health.inference_idle()
    assert health.healthy(1e9).ok


def test_both_problems_are_told() -> None:
    health = make_health()
    health.loop_beat(0.0)
    health.inference_beat(0.0)
    assert len(health.healthy(61.0).problems) == 2


def test_ready_needs_model_and_partitions_and_ends_with_the_drain() -> None:
    health = make_health()
    assert health.ready().problems == ("the model is not loaded yet", "no partitions are assigned")
    health.model_loaded()
    assert health.ready().problems == ("no partitions are assigned",)
    health.assigned(2)
    assert health.ready().ok
    health.assigned(0)
    assert not health.ready().ok
    health.assigned(1)
    health.draining()
    assert health.ready().problems == ("the worker is draining",)


def test_a_topic_that_is_missing_is_named_until_it_is_there() -> None:
    health = Health(loop_limit_s=60, inference_limit_s=60)
    health.model_loaded()
    health.assigned(1)
    health.topics_missing(["dead-letters"])
    (problem,) = health.ready().problems
    assert "'dead-letters'" in problem
    assert "create it (xnli-worker topics create)" in problem
    health.topics_missing([])
    assert health.ready().ok


def test_a_server_without_a_stream_needs_no_partitions() -> None:
    health = Health(loop_limit_s=0, inference_limit_s=60, has_stream=False)
    assert health.ready().problems == ("the model is not loaded yet",)
    health.model_loaded()
    assert health.ready().ok


def test_of_dead_letters_the_latest_few_are_kept() -> None:
    health = make_health()
    for offset in range(100):
        health.dead_lettered(LatestDeadLetter("invalid", "requests", 0, offset, 0.0))
    kept = [found.offset for found in health.latest_dead_letters]
    assert kept == list(range(100 - len(kept), 100))
    assert len(kept) < 20
