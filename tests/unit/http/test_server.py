"""What whoever watches the worker asks for, and the address that it is asked at."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import Counter
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.http.served import Served, idle, served
from worker.errors import SettingsError


@pytest.fixture(scope="module")
def starting() -> Iterator[Served]:
    with idle() as found:
        yield found


def test_healthz_follows_what_the_threads_say(starting: Served) -> None:
    assert starting.ask("/healthz").json == {"status": "ok", "problems": []}
    starting.health.loop_beat(-1e9)
    answer = starting.ask("/healthz")
    assert (answer.status, answer.json["status"]) == (503, "failing")
    assert "the Kafka loop" in answer.json["problems"][0]
    starting.health._loop_at_s = None


def test_readyz_says_why_not(starting: Served) -> None:
    answer = starting.ask("/readyz?verbose=1")
    assert answer.status == 503
    assert "the model is not loaded yet" in answer.json["problems"]


def test_a_swap_that_failed_is_told_by_a_worker_that_is_ready() -> None:
    with idle() as found:
        found.health.model_loaded()
        found.health.assigned(1)
        assert found.ask("/readyz").json == {"status": "ok", "problems": []}
        found.health.swap_failed("m at 1 goes on, because another failed: cut off")
        answer = found.ask("/readyz")
        assert (answer.status, answer.json["status"]) == (200, "ok")
        assert answer.json["notes"] == ["m at 1 goes on, because another failed: cut off"]
        assert "cut off" in found.ask("/").body.decode()
        found.health.swap_failed("")
        assert "notes" not in found.ask("/readyz").json


def test_metrics_are_those_of_the_registry(starting: Served) -> None:
    Counter("xnli_worker_things_total", "Things.", registry=starting.registry).inc(3)
    answer = starting.ask("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    values = {
        s.name: s.value for family in text_string_to_metric_families(answer.body.decode()) for s in family.samples
    }
    assert values["xnli_worker_things_total"] == 3


def test_unknown_paths_and_methods_are_problems(starting: Served) -> None:
    answer = starting.ask("/nowhere")
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json")
    assert answer.json["type"] == "urn:xnli-worker:problem:not-found"
    answer = starting.ask("/healthz", {})
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    answer = starting.ask("/", {}, method="PUT")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, POST")
    answer = starting.ask("/healthz", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")


def test_before_the_model_is_loaded_requests_are_told_to_come_again(starting: Served) -> None:
    answer = starting.ask("/v1/classify", {"text": "a", "labels": ["b"]})
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert "not loaded yet" in answer.json["detail"]


def test_without_http_inference_there_is_none() -> None:
    with served(inference="false") as found:
        answer = found.ask("/v1/classify", {"text": "a", "labels": ["b"]})
        assert answer.status == 404
        assert "http.inference = true" in answer.json["detail"]
        assert found.ask("/healthz").status == 200


def test_a_failing_page_is_a_failing_probe_and_the_next_one_is_served(starting: Served) -> None:
    class Broken:
        def collect(self) -> list[Any]:
            raise RuntimeError("no figures")

        def describe(self) -> list[Any]:
            return []

    broken: Any = Broken()
    starting.registry.register(broken)
    answer = starting.ask("/metrics")
    assert (answer.status, answer.json["title"]) == (500, "It could not be computed")
    assert b"no figures" not in answer.body
    starting.registry.unregister(broken)
    assert starting.ask("/metrics").status == 200


def test_a_port_in_use_is_a_settings_error_with_its_mend(starting: Served) -> None:
    port = starting.endpoint.port
    with pytest.raises(SettingsError, match=rf"http\.port: {port} on 127.0.0.1 is in use; stop"), idle(port=str(port)):
        pass


def test_a_foreign_or_unknown_host_is_a_settings_error() -> None:
    # TEST-NET-1 (RFC 5737) belongs to nobody.
    with (
        pytest.raises(SettingsError, match=r"http\.host: '192\.0\.2\.1' is no address of this machine"),
        idle(host="192.0.2.1", insecure="true"),
    ):
        pass
    with (
        pytest.raises(SettingsError, match=r"http\.host: 'not an address' is no address"),
        idle(host="not an address", insecure="true"),
    ):
        pass


def test_a_closed_server_frees_its_port_at_once() -> None:
    with idle() as first:
        port = first.endpoint.port
    with idle(port=str(port)) as second:
        assert second.ask("/healthz").status == 200


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
def test_ipv6_hosts_work() -> None:
    with idle(host="::1") as found, socket.create_connection(("::1", found.endpoint.port)):
        pass
