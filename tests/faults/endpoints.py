"""What a worker says over HTTP: its probes and its metrics, as Kubernetes and Prometheus ask for them."""

from __future__ import annotations

import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.faults.workers import WorkerProcess


def page(worker: WorkerProcess, path: str) -> tuple[int, str]:
    """Status and body of a page of the worker's last start."""
    port = int(worker.events("started")[-1]["http_port"])
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(worker: WorkerProcess, name: str, **labels: str) -> list[float]:
    """The values of all series of a metric, its prefix left out, that have these labels."""
    _, body = page(worker, "/metrics")
    return [
        sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.name == f"xnli_worker_{name}" and labels.items() <= sample.labels.items()
    ]
