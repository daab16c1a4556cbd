"""The dashboard and the alerts speak of metrics, labels and label values that the worker really has."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from worker.messages import Partition
from worker.telemetry.certificates import CertificateWatch, OwnCertificate
from worker.telemetry.http_metrics import HttpMetrics
from worker.telemetry.metrics import Metrics, Rebalance

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "xnli-worker.json"

# What Prometheus itself adds to every series it scrapes, and the bound of a histogram's bucket.
ADDED_LABELS = {"job", "instance", "le"}

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="xnli_worker_process_* need /proc")


@pytest.fixture(scope="module")
def series() -> dict[str, dict[str, set[str]]]:
    """Sample name -> label -> values, of a worker that holds a partition."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, topics=["requests"])
    metrics.identify(version="1", model="m", revision="r", device="cpu", precision="fp32")
    metrics.rebalanced(Rebalance.ASSIGNED, [Partition("requests", 0)], assigned=1)
    metrics.lag("requests", 0, 0)
    metrics.unstable("requests", 0, 0)
    metrics.stalled([("requests", "0")])
    HttpMetrics(registry).answered("/v1/classify", 200, 0.0)
    CertificateWatch([OwnCertificate("schema_registry.certificate", 0.0)], registry)
    found: dict[str, dict[str, set[str]]] = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def dashboard_expressions() -> list[str]:
    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in {"expr", "definition"}:
                    yield value
                else:
                    yield from walk(value)
        elif isinstance(node, list):
            for item in node:
                yield from walk(item)

    return list(walk(json.loads(DASHBOARD.read_text())))


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    return [*dashboard_expressions(), *(rule["expr"] for rule in rules())]


@pytest.mark.parametrize("expression", expressions())
def test_metrics_labels_and_values_exist(expression: str, series: dict[str, dict[str, set[str]]]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert set(re.findall(r"[\w:]+:[\w:]+", re.sub(r"\[[^]]*]", "", expression))) <= recorded
    # A name next to a colon belongs to a recording rule.
    for name, matchers in re.findall(r"(?<![\w:])(xnli_worker_\w+)(?![\w:])(?:\{([^}]*)\})?", expression):
        assert name in series
        for label, operator, wanted in re.findall(r"(\w+)\s*(=~|=)\s*\"([^\"]*)\"", matchers):
            assert label in series[name].keys() | ADDED_LABELS
            if label not in ADDED_LABELS:
                values = set(wanted.split("|")) if operator == "=~" else {wanted}
                assert values <= series[name][label]


@pytest.mark.parametrize("expression", expressions())
def test_grouping_labels_exist(expression: str, series: dict[str, dict[str, set[str]]]) -> None:
    known = ADDED_LABELS.union(*series.values())
    for grouping in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in grouping.split(",")} <= known


def test_every_metric_is_on_the_dashboard(series: dict[str, dict[str, set[str]]]) -> None:
    """A metric that nobody looks at is not worth counting."""
    shown = " ".join(dashboard_expressions())
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in series if "_process_" not in name}
    assert [name for name in sorted(families) if name not in shown] == []


def test_every_alert_says_what_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert alert["annotations"].keys() == {"summary", "description"}


def test_every_alert_is_in_the_operators_table() -> None:
    page = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in rules() if "alert" in rule and f"| `{rule['alert']}` |" not in page] == []


def test_every_alert_is_seen_to_fire() -> None:
    tests = (RULES.parent / "rules.test.yml").read_text()
    assert [
        rule["alert"] for rule in rules() if f'alertname="{rule.get("alert")}"' not in tests and "alert" in rule
    ] == []


def test_panels_fit_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for at in (panel["gridPos"] for panel in panels):
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells


@pytest.mark.parametrize("arguments", [["check", "config", "prometheus.yml"], ["test", "rules", "rules.test.yml"]])
def test_promtool_agrees(promtool: str, arguments: list[str]) -> None:
    done = subprocess.run([promtool, *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_parses_the_dashboard(promtool: str, tmp_path: Path) -> None:
    queries = [e.replace("$__rate_interval", "5m") for e in dashboard_expressions() if not e.startswith("label_values")]
    group = {"name": "dashboard", "rules": [{"record": f"a:b{n}", "expr": query} for n, query in enumerate(queries)]}
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [group]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
