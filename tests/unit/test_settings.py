from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from worker.errors import SettingsError
from worker.messages import LongText
from worker.settings import KafkaSettings, Section, Settings, load

SECRET = "hunter2"  # noqa: S105 (what the tests look for)
REQUIRED = {"XNLI_KAFKA__BOOTSTRAP_SERVERS": "host:9092", "XNLI_MODEL__NAME": "models/nli"}

SECTIONS = {name: cast("type[Section]", field.annotation) for name, field in Settings.model_fields.items()}
VARIABLES = sorted(
    f"XNLI_{section}__{key}".upper() for section, fields in SECTIONS.items() for key in fields.model_fields
)


def from_environment(**variables: str) -> Settings:
    return load(environ={**REQUIRED, **variables})


def attempt(**variables: str) -> Settings | str:
    """The settings, or why there are none."""
    try:
        return from_environment(**variables)
    except SettingsError as error:
        return str(error)


def refusal(variables: Mapping[str, str] | None = None, file: Path | None = None) -> list[str]:
    """The findings, one a line, with what is required given."""
    with pytest.raises(SettingsError) as caught:
        load(file, {**REQUIRED, **(variables or {})})
    return str(caught.value).split("\n")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "worker.toml"


# What wins


def test_the_environment_wins_over_the_file_and_the_file_over_presets(file: Path) -> None:
    file.write_text('[model]\nname = "file"\nrevision = "file"\n[batch]\nmax_tokens = 1000\n')
    presets: dict[str, dict[str, object]] = {"model": {"name": "preset", "revision": "preset", "device": "cpu"}}
    presets["batch"] = {"max_wait_ms": 7}
    found = load(file, {**REQUIRED, "XNLI_MODEL__NAME": "environment"}, presets)
    assert (found.model.name, found.model.revision, found.model.device) == ("environment", "file", "cpu")
    assert (found.batch.max_tokens, found.batch.max_wait_ms, found.batch.max_messages) == (1000, 7, 256)


def test_everything_in_a_file(file: Path) -> None:
    file.write_text("""
        [kafka]
        bootstrap_servers = "a:9092,b:9092"
        group_instance_id = "worker-0"
        [kafka.properties]
        "security.protocol" = "SASL_SSL"
        "socket.keepalive.enable" = true
        [kafka.consumer_properties]
        "fetch.min.bytes" = 1
        [topics]
        input = ["one", "two"]
        retry = [5, 60.5]
        [model]
        name = "models/nli"
        labels = ["contradiction", "neutral", "entailment"]
        long_text = "WINDOW_MAX"
        """)
    found = load(file, {})
    assert found.kafka.properties == {"security.protocol": "SASL_SSL", "socket.keepalive.enable": True}
    assert found.topics.input == ("one", "two")
    assert found.topics.retry == (5.0, 60.5)
    assert found.model.labels == ("contradiction", "neutral", "entailment")
    assert found.model.long_text is LongText.WINDOW_MAX


@pytest.mark.parametrize("text", ["one,two", " one , two ,", '["one", "two"]'])
def test_a_list_in_the_environment(text: str) -> None:
    assert from_environment(XNLI_TOPICS__INPUT=text).topics.input == ("one", "two")


def test_one_input_topic_needs_no_list(file: Path) -> None:
    file.write_text('[topics]\ninput = "one"\n')
    assert load(file, REQUIRED).topics.input == ("one",)


def test_a_map_in_the_environment_is_json() -> None:
    found = from_environment(XNLI_KAFKA__PRODUCER_PROPERTIES='{"linger.ms": 5, "compression.type": "zstd"}')
    assert found.kafka.producer_properties == {"linger.ms": 5, "compression.type": "zstd"}


# What is refused


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("XNLI_BATCH__MAX_MESAGES", "batch.max_mesages: no such setting; [batch] knows max_messages"),
        ("XNLI_BATHC__MAX_MESSAGES", "XNLI_BATHC__MAX_MESSAGES: no such setting"),
        ("XNLI_BATCH", "XNLI_BATCH: no such setting"),
        ("XNLI_BATCH_MAX_MESSAGES", "XNLI_BATCH_MAX_MESSAGES: no such setting"),
    ],
)
def test_a_variable_that_is_no_setting(name: str, expected: str) -> None:
    (finding,) = refusal({name: "5"})
    assert finding.startswith(expected)


# As Kubernetes and Docker write them; NAME is the Service's.
LINKS = {
    "SERVICE_HOST": "10.0.0.11",
    "SERVICE_PORT": "9400",
    "SERVICE_PORT_HTTP_METRICS": "9400",
    "PORT": "tcp://10.0.0.11:9400",
    "PORT_9400_TCP": "tcp://10.0.0.11:9400",
    "PORT_9400_TCP_PROTO": "tcp",
    "PORT_9400_TCP_PORT": "9400",
    "PORT_9400_TCP_ADDR": "10.0.0.11",
    "PORT_53_UDP": "udp://10.0.0.11:53",
    "PORT_53_SCTP_PROTO": "sctp",
}


@pytest.mark.parametrize("service", ["XNLI", "XNLI_WORKER", "XNLI_HTTP", "XNLI_WORKER__CANARY_2"])
def test_what_a_platform_injects_for_a_service_is_passed_over(service: str) -> None:
    linked = from_environment(**{f"{service}_{form}": value for form, value in LINKS.items()})
    assert linked.model_dump() == from_environment().model_dump()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("XNLI_MODEL__NMAE", "10.0.0.11"),
        ("XNLI_MODEL_NAME", "10.0.0.11"),
        ("XNLI_HTTP_PORT", "9400"),  # meant XNLI_HTTP__PORT; a link's value is an address
        ("XNLI_HTTP__SERVICE_PORT", "9400"),
        ("XNLI_MODEL__NAME_PORT", "tcp://10.0.0.11:9400"),
        ("XNLI_WORKER_SERVICE_PORT", "high"),
        ("XNLI_WORKER_PORT_9400", "tcp://10.0.0.11:9400"),
        ("XNLI_WORKER_PORT_9400_TCP_NAME", "a"),
        ("XNLI_WORKER_SERVICE_HOSTS", "10.0.0.11"),
        ("XNLI_worker_SERVICE_HOST", "10.0.0.11"),
    ],
)
def test_what_only_looks_like_a_service_link_is_refused(name: str, value: str) -> None:
    (finding,) = refusal({name: value})
    assert "no such setting" in finding


def test_keys_and_sections_that_are_no_settings(file: Path) -> None:
    file.write_text("[batch]\nmax_mesages = 5\n[bacth]\nmax_messages = 5\n")
    key, section = sorted(refusal(file=file), key=lambda line: line.startswith("bacth"))
    assert key.startswith("batch.max_mesages: no such setting; [batch] knows max_messages")
    assert section.startswith("bacth: no such setting; sections are kafka, topics")


def test_variables_of_others_and_of_the_tests_are_left_alone() -> None:
    assert from_environment(XNLI_TEST_KAFKA="host:1", PATH="/bin", OTHER_XNLI_BATCH__MAX="1")


def test_what_is_required_is_asked_for_in_both_ways(file: Path) -> None:
    file.write_text("")
    with pytest.raises(SettingsError) as caught:
        load(file, {})
    assert str(caught.value).split("\n") == [
        f"kafka.bootstrap_servers: is required; set it in {file} or as XNLI_KAFKA__BOOTSTRAP_SERVERS",
        f"model.name: is required; set it in {file} or as XNLI_MODEL__NAME",
    ]


def test_every_finding_has_a_line_with_setting_and_value(file: Path) -> None:
    file.write_text('[batch]\nmax_tokens = 0\n[http]\nport = 65536\n[delivery]\nguarantee = "twice"\n')
    findings = refusal(file=file)
    assert len(findings) == 3
    for finding, start in zip(
        sorted(findings),
        ["batch.max_tokens = 0: ", "delivery.guarantee = 'twice': ", "http.port = 65536: "],
        strict=True,
    ):
        assert finding.startswith(start)


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_value_that_cannot_be_parsed_is_a_finding_and_no_crash(variable: str) -> None:
    section, key = variable.removeprefix("XNLI_").lower().split("__")
    found = attempt(**{variable: "["})
    assert isinstance(found, Settings) or found.startswith((f"{section}.{key}", f"{section}: "))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    absent, folder, no_toml, no_text = (tmp_path / name for name in ("absent", "folder", "no_toml", "no_text"))
    folder.mkdir()
    no_toml.write_text("[kafka\n")
    no_text.write_bytes(b"\xff\xfe")
    assert refusal(file=absent) == [f"{absent}: no such file; name an existing TOML file with --config"]
    assert refusal(file=folder)[0].startswith(f"{folder}: cannot be read")
    assert refusal(file=no_toml)[0].startswith(f"{no_toml}: is no TOML: ")
    assert refusal(file=no_text)[0].startswith(f"{no_text}: is no TOML: ")


@pytest.mark.parametrize("section", ["properties", "consumer_properties", "producer_properties"])
@pytest.mark.parametrize("name", sorted(KafkaSettings.RESERVED))
def test_a_property_that_is_ours_is_refused_with_the_reason(section: str, name: str, file: Path) -> None:
    file.write_text(f'[kafka.{section}]\n"{name}" = "1"\n')
    assert refusal(file=file) == [
        f"kafka.{section}: {name} cannot be set here: {KafkaSettings.RESERVED[name]}",
    ]


@pytest.mark.parametrize(
    ("topics", "expected"),
    [
        ({"INPUT": "a,b", "OUTPUT": "b"}, "topics.output = 'b' is also an input topic"),
        ({"INPUT": "a,b", "DEAD_LETTER": "a"}, "topics.dead_letter = 'a' is also an input topic"),
        ({"OUTPUT": "c", "DEAD_LETTER": "c"}, "topics.output and topics.dead_letter are both 'c'"),
        ({"INPUT": ""}, "name at least one input topic"),
        ({"OUTPUT": ""}, "topics.output = ''"),
    ],
)
def test_topics_that_would_make_a_loop_or_are_none(topics: dict[str, str], expected: str) -> None:
    (finding,) = refusal({f"XNLI_TOPICS__{key}": topic for key, topic in topics.items()})
    assert expected in finding


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TOPICS__INPUT": "^rgx-.*"}, "topics.input.0 = '^rgx-.*': is a regular expression"),
        ({"TOPICS__INPUT": "good,team/a"}, "topics.input.1 = 'team/a': is no topic name: it has '/'"),
        ({"TOPICS__INPUT": "a,a"}, "a topic stands there twice"),
        ({"TOPICS__OUTPUT": "."}, "topics.output = '.': is no topic name"),
        ({"TOPICS__LABEL_SETS": "x" * 250}, "it has 250 characters"),
        ({"TOPICS__INPUT": "a.b", "TOPICS__DEAD_LETTER": "a_b"}, "'a.b' and 'a_b' differ in '.' and '_' only"),
        ({"KAFKA__GROUP_ID": " "}, "kafka.group_id = ' ': is blank"),
        ({"KAFKA__GROUP_ID": "a\nb"}, "leave control characters out"),
        ({"KAFKA__GROUP_INSTANCE_ID": ""}, "kafka.group_instance_id = '': is blank"),
        ({"KAFKA__GROUP_INSTANCE_ID": "xnli-check"}, "which would fence this worker"),
        (
            {"KAFKA__GROUP_ID": "team/a worker", "TOPICS__RETRY": "5"},
            "topics.retry: the retry topic 'team/a worker.retry.5s' is no topic name: it has ' ', '/'",
        ),
        ({"KAFKA__GROUP_ID": "g" * 245, "TOPICS__RETRY": "5"}, "it has 254 characters, and Kafka allows 249"),
        (
            {"KAFKA__GROUP_ID": "g", "TOPICS__RETRY": "5", "TOPICS__OUTPUT": "g.retry.5s"},
            "topics.retry: 'g.retry.5s' is a retry topic of kafka.group_id = 'g' and has another use",
        ),
        (
            {"KAFKA__GROUP_ID": "g", "TOPICS__RETRY": "5", "TOPICS__INPUT": "g_retry_5s"},
            "'g_retry_5s' and 'g.retry.5s' differ in '.' and '_' only",
        ),
        ({"TOPICS__RETRY": "5,5.0"}, "the delay 5 stands there twice"),
        ({"TOPICS__RETRY": "0.1234561,0.1234562"}, "would share the topic GROUP.retry.0.123456s"),
        ({"TOPICS__RETRY": "1e12"}, "is no delay"),
    ],
)
def test_names_that_kafka_refuses_or_confuses(variables: dict[str, str], expected: str) -> None:
    (finding,) = refusal({f"XNLI_{key}": name for key, name in variables.items()})
    assert expected in finding


def test_a_group_without_retry_topics_may_have_any_name_that_kafka_takes() -> None:
    assert from_environment(XNLI_KAFKA__GROUP_ID="team/a worker").kafka.group_id == "team/a worker"


@pytest.mark.parametrize(
    "registry",
    [
        {"TOKEN": SECRET, "USERNAME": "me", "PASSWORD": SECRET},
        {"USERNAME": "me"},
        {"PASSWORD": SECRET},
    ],
)
def test_a_registry_is_entered_in_one_way(registry: dict[str, str]) -> None:
    (finding,) = refusal({f"XNLI_SCHEMA_REGISTRY__{key}": value for key, value in registry.items()})
    assert "schema_registry.username" in finding
    assert SECRET not in finding


@pytest.mark.parametrize("template", ["{0.__class__}", "{}{}", "{{x}} {}", "no gap"])
def test_a_template_has_one_gap_and_no_other_brace(template: str) -> None:
    (finding,) = refusal({"XNLI_MODEL__HYPOTHESIS_TEMPLATE": template})
    assert finding.startswith(f"model.hypothesis_template = {template!r}: write exactly one {{}}")


# What is not printed


def test_secrets_are_not_in_the_representation() -> None:
    found = from_environment(
        XNLI_SCHEMA_REGISTRY__USERNAME="me",
        XNLI_SCHEMA_REGISTRY__PASSWORD=SECRET,
        XNLI_KAFKA__PROPERTIES=f'{{"sasl.password": "{SECRET}"}}',
        XNLI_KAFKA__CONSUMER_PROPERTIES=f'{{"ssl.key.password": "{SECRET}"}}',
        XNLI_KAFKA__PRODUCER_PROPERTIES=f'{{"ssl.key.pem": "{SECRET}"}}',
    )
    assert SECRET not in repr(found) + str(found)
    assert SECRET not in repr(from_environment(XNLI_SCHEMA_REGISTRY__TOKEN=SECRET))
    assert found.schema_registry.password is not None
    assert found.schema_registry.password.get_secret_value() == SECRET


@pytest.mark.parametrize(
    "toml",
    [
        f'[kafka.properties]\n"sasl.password" = ["{SECRET}"]\n',
        f'[kafka]\nproperties = "{SECRET}"\n',
        f'[kafka]\nconsumer_properties = ["{SECRET}"]\n',
        f'[kafka.properties]\nacks = 1\n"sasl.password" = "{SECRET}"\n',
        f'[schema_registry]\npassword = ["{SECRET}"]\n',
        f'[schema_registry]\ntoken = {{secret = "{SECRET}"}}\n',
        f'[schema_registry]\npasword = "{SECRET}"\n',
    ],
)
def test_secrets_are_not_in_findings(toml: str, file: Path) -> None:
    file.write_text(toml)
    (finding,) = refusal(file=file)
    assert SECRET not in finding


@pytest.mark.parametrize("text", [f'{{"sasl.password": "{SECRET}"', SECRET, f'["{SECRET}"]', f'"{SECRET}"'])
def test_a_map_of_secrets_that_is_no_json_is_named_and_not_shown(text: str) -> None:
    (finding,) = refusal({"XNLI_KAFKA__PROPERTIES": text})
    assert finding.startswith("kafka.properties: ")
    assert SECRET not in finding


def test_maps_merge_key_by_key_and_the_environment_wins(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(
        '[kafka]\nbootstrap_servers = "h:1"\n'
        'properties = {"security.protocol" = "SASL_SSL", "sasl.mechanism" = "PLAIN", "sasl.username" = "file"}\n'
        'producer_properties = {"linger.ms" = 5}\n[model]\nname = "demo"\n'
    )
    loaded = load(
        file,
        {
            "XNLI_KAFKA__PROPERTIES": '{"sasl.username": "u", "sasl.password": "p"}',
            "XNLI_KAFKA__PRODUCER_PROPERTIES": '{"batch.size": 1000}',
        },
    )
    assert loaded.kafka.properties == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "u",
        "sasl.password": "p",
    }
    assert loaded.kafka.producer_properties == {"linger.ms": 5, "batch.size": 1000}


def test_a_secret_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(
        '[kafka]\nbootstrap_servers = "h:1"\nproperties = {"security.protocol" = "SASL_SSL"}\n[model]\nname = "demo"\n'
        '[schema_registry]\nusername = "u"\n'
    )
    secrets = tmp_path / "secrets"
    (secrets / "..data").mkdir(parents=True)  # how Kubernetes keeps the files that it links to
    (secrets / "kafka__properties__sasl.password").write_text("of the file\n")
    (secrets / "XNLI_SCHEMA_REGISTRY__PASSWORD").write_text("p")
    environment = {"XNLI_SECRETS_DIR": str(secrets)}
    loaded = load(file, environment)
    assert loaded.kafka.properties == {"security.protocol": "SASL_SSL", "sasl.password": "of the file"}
    assert loaded.schema_registry.password is not None
    assert loaded.schema_registry.password.get_secret_value() == "p"
    won = load(file, environment | {"XNLI_KAFKA__PROPERTIES": '{"sasl.password": "of the environment"}'})
    assert won.kafka.properties["sasl.password"] == "of the environment"
    (secrets / "kafka_password").write_text("hunter2")
    with pytest.raises(SettingsError, match=r"kafka_password is no setting; files are named <section>__<key>") as bad:
        load(file, environment)
    assert "hunter2" not in str(bad.value)
    with pytest.raises(SettingsError, match=r"XNLI_SECRETS_DIR = .*No such file or directory"):
        load(file, {"XNLI_SECRETS_DIR": str(tmp_path / "absent")})


def test_the_machine_s_name_is_filled_in() -> None:
    environment = {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": "h:1",
        "XNLI_MODEL__NAME": "demo",
        "XNLI_KAFKA__GROUP_INSTANCE_ID": "worker-{hostname}",
    }
    assert load(environ=environment).kafka.group_instance_id == f"worker-{socket.gethostname()}"
