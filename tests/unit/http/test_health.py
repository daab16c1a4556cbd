from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from worker.errors import SettingsError
from worker.http.health import Health, HealthServer


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


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


@dataclass
class Serving:
    server: HealthServer
    health: Health
    clock: Clock
    registry: CollectorRegistry

    def ask(self, path: str, method: str = "GET") -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.headers["Content-Type"], response.read()
        finally:
            connection.close()

    def ask_json(self, path: str) -> tuple[int, Any]:
        status, content_type, body = self.ask(path)
        assert content_type == "application/json"
        return status, json.loads(body)


@pytest.fixture
def serving() -> Iterator[Serving]:
    health, clock, registry = make_health(), Clock(), CollectorRegistry()
    server = HealthServer("127.0.0.1", 0, health=health, registry=registry, clock=clock)
    yield Serving(server, health, clock, registry)
    server.close()


def test_healthz_follows_the_injected_clock(serving: Serving) -> None:
    serving.health.loop_beat(serving.clock.now_s)
    assert serving.ask_json("/healthz") == (200, {"status": "ok", "problems": []})
    serving.clock.now_s += 11.0
    status, body = serving.ask_json("/healthz")
    assert status == 503
    assert body["status"] == "failing"
    assert "the Kafka loop" in body["problems"][0]


def test_readyz_says_why_not(serving: Serving) -> None:
    status, body = serving.ask_json("/readyz")
    assert status == 503
    assert "the model is not loaded yet" in body["problems"]
    serving.health.model_loaded()
    serving.health.assigned(4)
    assert serving.ask_json("/readyz?verbose=1")[0] == 200


def test_metrics_are_those_of_the_registry(serving: Serving) -> None:
    Counter("xnli_worker_things_total", "Things.", registry=serving.registry).inc(3)
    status, content_type, body = serving.ask("/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    values = {s.name: s.value for family in text_string_to_metric_families(body.decode()) for s in family.samples}
    assert values["xnli_worker_things_total"] == 3


def test_unknown_paths_and_methods(serving: Serving) -> None:
    status, body = serving.ask_json("/")
    assert status == 404
    assert body["paths"] == ["/healthz", "/metrics", "/readyz"]
    assert serving.ask("/healthz", "POST")[0] == 501
    status, _, empty = serving.ask("/healthz", "HEAD")
    assert (status, empty) == (200, b"")


def test_a_silent_client_keeps_nobody_waiting(serving: Serving) -> None:
    with socket.create_connection(("127.0.0.1", serving.server.port)) as silent:
        silent.sendall(b"GET /hea")
        assert serving.ask_json("/healthz")[0] == 200


def test_a_failing_page_is_a_failing_probe_and_the_next_one_is_served(serving: Serving) -> None:
    class Broken:
        def collect(self) -> list[Any]:
            raise RuntimeError("no figures")

        def describe(self) -> list[Any]:
            return []

    broken: Any = Broken()
    serving.registry.register(broken)
    with pytest.raises(http.client.RemoteDisconnected):
        serving.ask("/metrics")
    serving.registry.unregister(broken)
    assert serving.ask("/metrics")[0] == 200


def serve(host: str, port: int) -> HealthServer:
    return HealthServer(host, port, health=make_health(), registry=CollectorRegistry(), clock=Clock())


def test_a_port_in_use_is_a_settings_error_with_its_mend(serving: Serving) -> None:
    with pytest.raises(SettingsError, match=rf"http\.port: {serving.server.port} on 127.0.0.1 is in use; stop"):
        serve("127.0.0.1", serving.server.port)


def test_a_foreign_or_unknown_host_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match=r"http\.host: '192\.0\.2\.1' is no address of this machine"):
        serve("192.0.2.1", 0)  # TEST-NET-1 (RFC 5737) belongs to nobody
    with pytest.raises(SettingsError, match=r"http\.host: 'not an address' is no address"):
        serve("not an address", 0)


def test_a_closed_server_frees_its_port_at_once() -> None:
    first = serve("127.0.0.1", 0)
    port = first.port
    first.close()
    second = serve("127.0.0.1", port)
    assert second.port == port
    second.close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
def test_ipv6_hosts_work() -> None:
    server = serve("::1", 0)
    with socket.create_connection(("::1", server.port)):
        pass
    server.close()


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
