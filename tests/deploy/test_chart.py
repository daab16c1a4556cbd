"""The Helm chart, rendered with its three value files: every resource by its schema, every setting by the worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.brokers.java import Unavailable
from tests.conftest import without
from tests.deploy.chart import CHART, ROOT, VALUES, Resource, helm, one, refused, rendered, run, schema, template
from worker.app import DRAIN_TIMEOUT_S, START_TIMEOUT_S
from worker.settings import Settings, load

# Helm is built for it: minutes. `.ci/run` runs these too where Helm is there already.
pytestmark = pytest.mark.acceptance

KUBERNETES = ("1.27", "1.37")  # the oldest that the chart takes, and the newest whose schemas there are
CUSTOM = {"PodMonitor", "PrometheusRule", "ScaledObject"}
EXPECTED = {
    "defaults": {"ConfigMap", "Deployment", "PodDisruptionBudget", "ServiceAccount"},
    "production": {
        *("ConfigMap", "Deployment", "Job", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"),
        *CUSTOM,
    },
    "gpu": {
        *("ConfigMap", "PodDisruptionBudget", "PodMonitor", "PrometheusRule", "Service", "ServiceAccount"),
        "StatefulSet",
    },
}


@pytest.fixture(scope="module", autouse=True)
def _helm() -> None:
    try:
        helm()
    except Unavailable as missing:
        without(missing)


def _workload(values: str) -> Resource:
    kind = "StatefulSet" if values == "gpu" else "Deployment"
    return one(rendered(values), kind)


def _pod(values: str) -> dict[str, Any]:
    spec: dict[str, Any] = _workload(values)["spec"]["template"]["spec"]
    return spec


def _settings(values: str, tmp_path: Path) -> Settings:
    """What the worker makes of the variables and the secret files of its pod."""
    (container,) = _pod(values)["containers"]
    name = container["envFrom"][0]["configMapRef"]["name"]
    config = one([made for made in rendered(values) if made["metadata"]["name"] == name], "ConfigMap")
    variables: dict[str, str] = dict(config["data"])
    for entry in container.get("env", []):
        variables[entry["name"]] = entry.get("value", "planted")
    if "XNLI_SECRETS_DIR" in variables:
        (volume,) = [volume for volume in _pod(values)["volumes"] if volume["name"] == "secrets"]
        for source in volume["projected"]["sources"]:
            (tmp_path / source["secret"]["items"][0]["path"]).write_text("planted")
        variables["XNLI_SECRETS_DIR"] = str(tmp_path)
    return load(None, variables)


@pytest.mark.parametrize("values", VALUES)
def test_lint_finds_nothing(values: str) -> None:
    files = [argument for name in VALUES[values] for argument in ("--values", str(CHART / name))]
    done = run("lint", "--strict", str(CHART), *files)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", VALUES)
def test_every_resource_is_one_by_its_schema(values: str) -> None:
    kinds = set()
    for resource in rendered(values):
        kinds.add(resource["kind"])
        if resource["kind"] in CUSTOM:
            jsonschema.validate(resource, schema(resource["kind"]))
            continue
        for version in KUBERNETES:
            kubernetes_validate.validate(resource, version, strict=True)
    assert kinds == EXPECTED[values]


def test_a_field_that_kubernetes_does_not_know_would_be_found() -> None:
    wrong = json.loads(json.dumps(one(rendered("production"), "ScaledObject")))
    wrong["spec"]["minReplicas"] = 1  # minReplicaCount
    with pytest.raises(jsonschema.ValidationError, match="minReplicas"):
        jsonschema.validate(wrong, schema("ScaledObject"))
    wrong = json.loads(json.dumps(_workload("defaults")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFilesystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("values", VALUES)
def test_every_variable_is_a_setting_with_the_value_that_was_given(values: str, tmp_path: Path) -> None:
    settings = _settings(values, tmp_path)
    given: dict[str, Any] = yaml.safe_load((CHART / (VALUES[values] or ("values.yaml",))[0]).read_text())["config"]
    for section, keys in given.items():
        for key, value in keys.items():
            found = getattr(getattr(settings, section), key)
            if isinstance(value, dict):
                assert found.items() >= value.items(), f"{section}.{key}"
            else:
                assert found == (tuple(value) if isinstance(value, list) else value), f"{section}.{key}"
    assert settings.http.host == "0.0.0.0"  # noqa: S104 (inside the pod)
    assert settings.model.device == ("cuda" if values == "gpu" else "auto")


def test_secrets_come_by_reference(tmp_path: Path) -> None:
    settings = _settings("production", tmp_path)
    assert settings.kafka.properties["sasl.password"] == "planted"
    assert settings.schema_registry.token is not None
    assert settings.schema_registry.token.get_secret_value() == "planted"
    assert not [resource for resource in rendered("production") if resource["kind"] == "Secret"]
    mounts = {mount["name"]: mount["mountPath"] for mount in _pod("production")["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in _pod("production")["volumes"]}
    assert mounts.keys() == volumes.keys()
    for path in (settings.kafka.properties["ssl.ca.location"], settings.schema_registry.ca):
        assert any(str(path).startswith(f"{mount}/") for mount in mounts.values()), path


def test_numbers_stay_whole() -> None:
    """Helm's own text of 1048576 is 1.048576e+06, which is no number of bytes."""
    made = template("--set", "config.limits.max_message_bytes=1048576", "--set-json", "config.topics.retry=[5,0.5]")
    data = one(made, "ConfigMap")["data"]
    assert (data["XNLI_LIMITS__MAX_MESSAGE_BYTES"], data["XNLI_TOPICS__RETRY"]) == ("1048576", "[5,0.5]")


@pytest.mark.parametrize("values", VALUES)
def test_a_pod_is_locked_down_and_has_time_to_drain(values: str) -> None:
    pod = _pod(values)
    assert pod["terminationGracePeriodSeconds"] >= DRAIN_TIMEOUT_S + START_TIMEOUT_S + 5
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" in dockerfile
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp", "/var/cache/xnli"}  # noqa: S108 (inside the pod)
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


def test_workers_have_no_names_unless_each_keeps_its_own(tmp_path: Path) -> None:
    assert _settings("defaults", tmp_path).kafka.group_instance_id is None
    assert one(rendered("gpu"), "ConfigMap")["data"]["XNLI_KAFKA__GROUP_INSTANCE_ID"] == "{hostname}"
    assert _workload("gpu")["spec"]["serviceName"] == one(rendered("gpu"), "Service")["metadata"]["name"]
    assert one(rendered("gpu"), "Service")["spec"]["clusterIP"] == "None"
    said = refused("--set", "kind=StatefulSet", "--set", "config.kafka.group_protocol=consumer")
    assert "needs config.kafka.group_protocol classic" in said


def test_a_gpu_is_asked_for_and_its_taint_is_tolerated() -> None:
    (container,) = _pod("gpu")["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["resources"]["limits"]["memory"] == "16Gi"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in _pod("gpu")["tolerations"]
    (claim,) = _workload("gpu")["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "models"


def test_keda_scales_what_is_there_by_the_lag_of_every_input_topic() -> None:
    made = rendered("production")
    scaled = one(made, "ScaledObject")["spec"]
    workload = _workload("production")
    assert scaled["scaleTargetRef"]["name"] == workload["metadata"]["name"]
    assert "replicas" not in workload["spec"]
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["topic"] == "xnli.requests"
    assert trigger["metadata"]["consumerGroup"] == "xnli-worker"
    assert trigger["authenticationRef"] == {"name": "xnli-kafka"}
    two = template("--set", "autoscaling.enabled=true", "--set-json", 'config.topics.input=["a","b"]')
    assert [t["metadata"]["topic"] for t in one(two, "ScaledObject")["spec"]["triggers"]] == ["a", "b"]


def test_rules_and_dashboard_are_those_of_the_repository() -> None:
    made = rendered("production")
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    assert one(made, "PrometheusRule")["spec"] == rules
    (board,) = [r for r in made if r["metadata"]["name"].endswith("-dashboard")]
    original = json.loads((ROOT / "deploy" / "grafana" / "xnli-worker.json").read_text(encoding="utf-8"))
    assert json.loads(board["data"]["xnli-worker.json"]) == original
    # Alerts and dashboard know the job by this name; the operator takes it from the label that jobLabel names.
    label = one(made, "PodMonitor")["spec"]["jobLabel"]
    assert _workload("production")["spec"]["template"]["metadata"]["labels"][label] == "xnli-worker"


@pytest.mark.parametrize("kind", ["PodDisruptionBudget", "PodMonitor"])
def test_what_selects_workers_selects_no_job(kind: str) -> None:
    made = rendered("production")
    wanted = one(made, kind)["spec"]["selector"]["matchLabels"].items()
    assert wanted <= _workload("production")["spec"]["template"]["metadata"]["labels"].items()
    assert not wanted <= one(made, "Job")["spec"]["template"]["metadata"]["labels"].items()


def test_the_network_policy_is_of_the_job_too() -> None:
    made = rendered("production")
    wanted = one(made, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items()
    for kind in ("Deployment", "Job"):
        assert wanted <= one(made, kind)["spec"]["template"]["metadata"]["labels"].items()


def test_label_sets_are_put_by_a_job_that_has_their_files() -> None:
    (container,) = one(rendered("production"), "Job")["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["label-sets", "put", "/etc/xnli/label-sets/moderation.json"]
    (files,) = [
        r for r in rendered("production") if r["metadata"]["name"].endswith("-label-sets") and r["kind"] != "Job"
    ]
    assert list(files["data"]) == ["moderation.json"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--set", "replica=2"), "replica"),
        (("--set", "terminationGracePeriodSeconds=5"), "terminationGracePeriodSeconds"),
        (("--set", "config.http.port=80"), "set port"),
        (("--set", "modelCache.type=template"), "needs kind StatefulSet"),
        (("--set", "modelCache.type=claim"), "modelCache.claimName names the claim"),
    ],
)
def test_wrong_values_are_refused_by_name(arguments: tuple[str, ...], named: str) -> None:
    assert named in refused(*arguments)


def test_a_changed_setting_is_a_new_roll_out() -> None:
    def checksum(*arguments: str) -> str:
        made = one(template(*arguments), "Deployment")["spec"]["template"]["metadata"]["annotations"]
        return str(made["checksum/config"])

    assert checksum() == checksum()
    assert checksum() != checksum("--set", "config.batch.max_wait_ms=10")
