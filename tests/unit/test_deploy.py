"""What the deployment files claim, checked where it can be checked without running a container."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.chart import schema
from worker.cli import program
from worker.errors import SettingsError
from worker.label_sets import record
from worker.settings import Settings, load
from worker.usage import topic_commands

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
TOPICS: dict[str, dict[str, Any]] = {
    topic["setting"]: topic
    for topic in yaml.safe_load((ROOT / "schemas" / "topics.yaml").read_text(encoding="utf-8"))["topics"]
}
WORKERS = [name for name in SERVICES if name.startswith("worker")]
ONE_SHOT = [name for name, service in SERVICES.items() if service.get("restart") == "no"]

# ${NAME}, ${NAME:-default}; $$ is a dollar sign. The whole of what the compose file uses.
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")


def _interpolated(text: str, shell: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        return shell.get(match["name"]) or match["default"] or "" if match["name"] else "$"

    return _VARIABLE.sub(value, text)


def _environment(service: str, shell: Mapping[str, str]) -> dict[str, str]:
    """What the container gets: a variable without a value is taken from the shell, and left out if it is not there."""
    given = {
        name: shell.get(name) if value is None else _interpolated(str(value), shell)
        for name, value in SERVICES[service]["environment"].items()
    }
    return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Instruction:
    word: str
    arguments: str


def _stages() -> list[list[Instruction]]:
    """The Dockerfile's instructions, stage by stage; what stands before the first FROM is left out."""
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    stages: list[list[Instruction]] = []
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        word, _, arguments = line.strip().partition(" ")
        if word == "FROM":
            stages.append([])
        if stages:
            stages[-1].append(Instruction(word, arguments.strip()))
    return stages


BUILD, LAST = _stages()


def _of(stage: list[Instruction], word: str) -> list[str]:
    return [instruction.arguments for instruction in stage if instruction.word == word]


@pytest.mark.parametrize("shell", [{}, {"XNLI_MODEL__NAME": "/models/own", "XNLI_MODEL__REVISION": "0" * 40}])
@pytest.mark.parametrize("service", WORKERS)
def test_every_variable_of_a_worker_is_a_setting(service: str, shell: dict[str, str]) -> None:
    environment = _environment(service, shell)
    assert all(name.startswith("XNLI_") for name in environment)
    settings = load(None, environment)
    assert settings.model.name == shell.get("XNLI_MODEL__NAME", settings.model.name)
    assert settings.model.revision == shell.get("XNLI_MODEL__REVISION")


@pytest.mark.parametrize("invented", ["XNLI_BATCH__MAX_MESAGES", "XNLI_BATCHES__MAX_MESSAGES"])
def test_an_invented_variable_would_be_found(invented: str) -> None:
    with pytest.raises(SettingsError, match=r"(?i)mesages|batches"):
        load(None, _environment("worker", {}) | {invented: "1"})


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_is_configured_by_its_environment_only(service: str) -> None:
    assert not {"command", "entrypoint", "env_file", "configs", "secrets"} & SERVICES[service].keys()
    assert all(not volume.startswith((".", "/")) for volume in SERVICES[service]["volumes"])


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_is_reachable_where_it_is_probed(service: str) -> None:
    settings = load(None, _environment(service, {}))
    assert settings.http.host == "0.0.0.0"  # noqa: S104 (inside the container)
    assert f":{settings.http.port}/readyz" in " ".join(SERVICES[service]["healthcheck"]["test"])
    assert SERVICES[service]["expose"] == [str(settings.http.port)]
    assert _of(LAST, "EXPOSE") == [str(settings.http.port)]


def test_the_compose_file_is_one_by_the_specification() -> None:
    jsonschema.validate(COMPOSE, schema("compose"))
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.validate({"services": {"a": {"image": "b", "helthcheck": {}}}}, schema("compose"))


def test_only_what_is_asked_for_waits_for_its_profile() -> None:
    profiled = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiled == {"worker-gpu": ["gpu"], "try": ["try"]}
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert load(None, _environment("worker-gpu", {})).model.device == "cuda"


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_waited_for_until_it_is_of_use(service: str) -> None:
    for name, wait in SERVICES[service].get("depends_on", {}).items():
        expected = "service_completed_successfully" if name in ONE_SHOT else "service_healthy"
        assert wait["condition"] == expected, f"{service} waits for {name}"


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_shows_its_health_or_ends(service: str) -> None:
    if service in ONE_SHOT:
        assert all(service in SERVICES[worker]["depends_on"] for worker in WORKERS)
    elif service != "try":  # nothing waits for it
        assert SERVICES[service]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_waits_for_all_it_needs_and_has_time_to_drain(service: str) -> None:
    assert SERVICES[service]["depends_on"].keys() == {"kafka", "schema-registry", "topics"}
    assert int(SERVICES[service]["stop_grace_period"].removesuffix("s")) >= 30


def test_addresses_name_services_and_their_listeners() -> None:
    settings = load(None, _environment("worker", {}))
    assert settings.kafka.bootstrap_servers in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert settings.schema_registry.url == "http://schema-registry:8081"
    assert SERVICES["schema-registry"]["environment"]["SCHEMA_REGISTRY_LISTENERS"].endswith(":8081")
    for service in ("topics", "try"):
        assert load(None, _environment(service, {})).kafka == settings.kafka


def test_topics_and_schemas_are_declared_where_the_worker_looks_for_them() -> None:
    worker, topics = (load(None, _environment(service, {})) for service in ("worker", "topics"))
    assert (topics.kafka, topics.schema_registry, topics.topics) == (
        worker.kafka,
        worker.schema_registry,
        worker.topics,
    )
    declare = program()(SERVICES["topics"]["command"], prog_name="xnli-worker", standalone_mode=False)
    assert declare.func is topic_commands.create
    assert declare.keywords["schemas"]


def test_volumes_in_use_are_declared() -> None:
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {name for name in used if not name.startswith("./")} == COMPOSE["volumes"].keys()


def test_files_of_the_repository_are_there_and_mounted_to_be_read() -> None:
    mounts = [volume.split(":") for service in SERVICES.values() for volume in service.get("volumes", [])]
    files = [mount for mount in mounts if mount[0].startswith("./")]
    assert len(files) >= 4
    for source, _, *mode in files:
        assert (ROOT / source).exists(), source
        assert mode == ["ro"], source


def test_what_is_for_this_machine_listens_on_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_the_settings_for_this_machine_lead_to_what_the_compose_file_runs() -> None:
    settings = load(ROOT / "deploy" / "worker.toml", {})
    worker = load(None, _environment("worker", {}))
    assert settings.kafka.bootstrap_servers in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    port = settings.kafka.bootstrap_servers.partition(":")[2]
    assert f"127.0.0.1:{port}:{port}" in SERVICES["kafka"]["ports"]
    assert settings.schema_registry.url == "http://localhost:8081"
    assert "127.0.0.1:8081:8081" in SERVICES["schema-registry"]["ports"]
    assert (settings.topics, settings.kafka.group_id) == (worker.topics, worker.kafka.group_id)
    assert settings.model.name == worker.model.name == "demo"


def test_grafana_finds_its_data_and_its_dashboard() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "xnli-worker.yml").read_text("utf-8"))["providers"]
    board = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert board.startswith(provider["options"]["path"] + "/")
    assert f"./deploy/grafana/xnli-worker.json:{board}:ro" in SERVICES["grafana"]["volumes"]
    (job,) = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert set(job["dns_sd_configs"][0]["names"]) <= SERVICES.keys()


def test_images_of_others_are_pinned_to_a_release() -> None:
    ours = {service["image"] for service in SERVICES.values() if "build" in service}
    images = {service["image"] for service in SERVICES.values()} - ours
    for image in images:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", image)
    base = re.search(r"^ARG PYTHON=(.+)$", (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert base is not None
    assert re.fullmatch(r"3\.12\.\d+-slim-\w+", base[1])
    assert {_of(stage, "FROM")[0].split()[0] for stage in (BUILD, LAST)} == {"python:${PYTHON}"}


def test_the_broker_of_the_tests_is_the_broker_of_the_compose_file() -> None:
    version = re.search(r"<kafka.version>(.+)</kafka.version>", (ROOT / "tests" / "pom.xml").read_text("utf-8"))
    assert version is not None
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{version[1]}"


@pytest.mark.parametrize("service", WORKERS)
def test_declared_topics_are_those_the_worker_uses(service: str) -> None:
    topics = load(None, _environment(service, {})).topics
    used = {
        "topics.input": topics.input,
        "topics.output": (topics.output,),
        "topics.dead_letter": (topics.dead_letter,),
    }
    assert used == {setting: (topic["name"],) for setting, topic in TOPICS.items()}


def test_declarations_hold_together() -> None:
    requests, results, dead = (TOPICS[f"topics.{name}"] for name in ("input", "output", "dead_letter"))
    limits: Settings = load(None, _environment("worker", {}))
    size = {topic["name"]: topic["config"]["max.message.bytes"] for topic in TOPICS.values()}
    # Keys co-partition, an admissible request fits, and every request that fits can become a dead letter.
    assert requests["partitions"] == results["partitions"]
    assert size[requests["name"]] >= limits.limits.max_message_bytes
    assert size[dead["name"]] >= size[requests["name"]] + 64 * 1024  # headers, the stack trace among them
    for topic in TOPICS.values():
        assert topic["owner"]
        assert (topic["schema"] is None) == (topic["compatibility"] is None)
        assert topic["schema"] is None or (ROOT / "schemas" / topic["schema"]).is_file()
        assert 0 < topic["config"]["min.insync.replicas"] < topic["replication"]
        assert topic["config"]["cleanup.policy"] == "delete"  # a compacted request topic would drop requests of a key


def test_the_image_does_not_run_as_root() -> None:
    words = [instruction.word for instruction in LAST]
    (user,) = _of(LAST, "USER")
    uid, gid = (int(part) for part in user.split(":"))
    assert uid > 0
    assert gid > 0
    assert "RUN" not in words[words.index("USER") :]


def test_the_last_stage_installs_nothing() -> None:
    installers = r"\b(apt|apt-get|apk|dpkg|pip|pip3|uv|gcc|g\+\+|cc|make|cmake|build-essential|curl|wget|git)\b"
    for command in _of(LAST, "RUN"):
        assert not re.search(installers, command), command
    # What it takes from the build is the virtual environment, which was made without pip.
    assert [source for source in _of(LAST, "COPY") if source.startswith("--from")] == [
        "--from=build /opt/xnli /opt/xnli"
    ]
    assert any("venv --without-pip /opt/xnli" in command for command in _of(BUILD, "RUN"))


def test_dependencies_are_installed_as_constrained() -> None:
    installs = [command for command in _of(BUILD, "RUN") if "install" in command]
    assert installs
    for command in installs:
        assert "--constraint constraints.txt" in command or "--no-deps" in command


def test_signals_reach_the_worker() -> None:
    assert json.loads(_of(LAST, "ENTRYPOINT")[0]) == ["xnli-worker"]
    assert json.loads(_of(LAST, "CMD")[0]) == ["run"]
    assert "/readyz" in _of(LAST, "HEALTHCHECK")[0]
    for service in WORKERS:
        assert "init" not in SERVICES[service]


def test_what_the_image_is_made_of_is_sent_to_the_build() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    admitted = {Path(rule[1:]) for rule in rules if rule.startswith("!")}
    copied = {
        Path(source)
        for stage in (BUILD, LAST)
        for copy in _of(stage, "COPY")
        if not copy.startswith("--from")
        for source in copy.split()[:-1]
    }
    assert "*" in rules
    assert copied == admitted
    assert [path for path in copied if not (ROOT / path).exists()] == []


def test_label_sets_in_the_charts_values_are_label_sets() -> None:
    values = yaml.safe_load((ROOT / "deploy/helm/xnli-worker/values-production.yaml").read_text(encoding="utf-8"))
    files = values["labelSets"]["files"]
    assert files
    for file, text in files.items():
        label_set = record.checked(record.parsed(text), None)
        assert label_set.name == Path(file).stem
