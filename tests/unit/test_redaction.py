"""A secret is planted in every setting, in every wrong form, and what is written of it is looked through."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.brokers.answering import answering
from worker import cli, redaction
from worker.avro.registry_access import Access, OAuthClient
from worker.commands import check, connection, dead_letter_topic
from worker.commands import send as send_module
from worker.demo.play import CHECKPOINT
from worker.errors import Reason, Rejection, SettingsError, WorkerError
from worker.rules.retry import fault_of
from worker.settings import Section, Settings, load

ROOT = Path(__file__).parents[2]
SECRET = "hunter2-Zq9"  # noqa: S105 (what the tests look for)
BASIC = base64.b64encode(f"me:{SECRET}".encode()).decode()  # as HTTP sends it
REQUIRED = {"XNLI_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "XNLI_MODEL__NAME": "none"}
SECTIONS = {name: field.annotation for name, field in Settings.model_fields.items()}
EVERY = [
    (section, key)
    for section, kind in SECTIONS.items()
    if isinstance(kind, type) and issubclass(kind, Section)
    for key in kind.model_fields
]
IN_ADDRESSES = [
    f"me:{SECRET}@host:8081",
    f"http://me:{SECRET}@host:8081",
    f"https://me:{SECRET}/a#b?c@host:8081",
    f"https://me:a/b#{SECRET}@host:8081",
    f"https://{SECRET}@host",
    f"host:1,http://me:a,{SECRET}@host:8081",
    f"SASL_SSL://me:%68{SECRET}@host:9092",
]
ADDRESSES = [("kafka", "bootstrap_servers"), ("schema_registry", "url"), ("schema_registry", "oauth_token_url")]
IN_ADDRESS_SETTINGS = [f"http://me:{SECRET}:8081", f"http://host/?key={SECRET}", f"http://h/#{SECRET}", f"me {SECRET}"]
MAPS = ["properties", "consumer_properties", "producer_properties"]
SECRETS = [
    ("schema_registry", "password"),
    ("schema_registry", "token"),
    ("schema_registry", "oauth_client_secret"),
    ("schema_registry", "key_password"),
    *[("kafka", name) for name in MAPS],
]
AS_SECRETS = [
    SECRET,
    f'["{SECRET}"]',
    f'{{"sasl.password": "{SECRET}"',
    f'{{"sasl.password": ["{SECRET}"]}}',
    f'{{"sasl.password": "{SECRET}", "sasl.password": "{SECRET}"}}',
    f'{{"acks": "all", "ssl.key.password": "{SECRET}"}}',
    f'{{"metadata.broker.list": "me:{SECRET}@host"}}',
    f'"{SECRET}"',
]
PLANTED = [
    *[(place, form) for place in EVERY for form in IN_ADDRESSES],
    *[(place, form) for place in ADDRESSES for form in IN_ADDRESS_SETTINGS],
    *[(place, form) for place in SECRETS for form in AS_SECRETS],
]


def environment(section: str, key: str, value: str) -> dict[str, str]:
    return REQUIRED | {f"XNLI_{section}__{key}".upper(): value}


def everything_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + str(error) + repr(error) + repr(error.args)


def outcome(environ: dict[str, str]) -> Settings | SettingsError:
    try:
        return load(environ=environ)
    except SettingsError as refused:
        return refused


@pytest.mark.parametrize("place", EVERY, ids=".".join)
def test_no_finding_shows_a_planted_secret(place: tuple[str, str]) -> None:
    for planted, form in PLANTED:
        if planted == place:
            found = outcome(environment(*place, form))
            if isinstance(found, SettingsError):
                assert SECRET not in everything_of(found), form
            elif place in SECRETS:  # a group or a label may be called so
                assert SECRET not in repr(found) + str(found)


@pytest.mark.parametrize("form", [*IN_ADDRESSES, *IN_ADDRESS_SETTINGS])
@pytest.mark.parametrize("place", ADDRESSES, ids=".".join)
def test_credentials_in_an_address_are_refused(place: tuple[str, str], form: str) -> None:
    with pytest.raises(SettingsError, match=rf"{place[0]}\.{place[1]} \(not shown\): "):
        load(environ=environment(*place, form))


@pytest.mark.parametrize(
    "toml",
    [
        f'schema_registry = "{SECRET}"',
        f'[schema_registry]\npassword = ["{SECRET}"]',
        f'[schema_registry]\noauth_client_secret = {{value = "{SECRET}"}}',
        f'[schema_registry]\npasword = "{SECRET}"',
        f'[kafka]\npassword = "{SECRET}"',
        f'[kafka.properties]\n"sasl.password" = "{SECRET}"\n"sasl.password" = "{SECRET}"',
        f'[kafka.properties]\n"sasl.password" = "{SECRET}',
        f'[kafka.properties]\n"bootstrap.servers" = "me:{SECRET}@host"',
        f'kafka = ["me:{SECRET}@host"]',
    ],
)
def test_no_finding_in_a_file_shows_one(toml: str, tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(toml)
    with pytest.raises(SettingsError) as refused:
        load(file, environ={} if toml.startswith("kafka") else REQUIRED)
    assert SECRET not in everything_of(refused.value)


def test_addresses_without_room_for_a_password_are_shown() -> None:
    for value in ("localhost:8081", "ftp://registry"):
        with pytest.raises(SettingsError, match=f"schema_registry.url = '{value}': write http://host:port"):
            load(environ=environment("schema_registry", "url", value))
    with pytest.raises(SettingsError, match=r"kafka\.bootstrap_servers = 'h:99999': write host:port"):
        load(environ=environment("kafka", "bootstrap_servers", "h:99999"))


@pytest.mark.parametrize("servers", ["a", "a:1,b:2", " a:1 , b", "[::1]:9092", "SASL_SSL://a:9092", "a_b.c-d:1,"])
def test_addresses_of_brokers(servers: str) -> None:
    assert load(environ=environment("kafka", "bootstrap_servers", servers)).kafka.bootstrap_servers == servers


# What is known by its value


@pytest.mark.parametrize(
    "written",
    [
        "said: %s",
        "b'%s'",
        "%s",
        "https://registry/?x=%s",
    ],
)
def test_what_the_settings_hold_is_taken_out_wherever_it_is_repeated(written: str) -> None:
    odd = f"{SECRET}\n/ü\"'"
    load(environ=environment("schema_registry", "token", odd))
    for spelt in (odd, odd.strip(), repr(odd)[1:-1], json.dumps(odd), quote(odd, safe="")):
        for text in (written % spelt, f"{WorkerError(written % spelt)}"):
            assert SECRET not in redaction.in_text(text)
    assert fault_of(RuntimeError(odd), "x", f"RuntimeError: {odd}").message == redaction.REDACTED
    assert SECRET not in fault_of(RuntimeError(odd), "x", f"RuntimeError: {odd}").stacktrace


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
def test_what_opentelemetry_shows_its_collector_is_taken_out(name: str) -> None:
    load(environ=REQUIRED | {name: f"x-tenant=a%20tenant,x-api-key={quote(SECRET + '/')}"})
    assert SECRET not in redaction.in_text(f"metadata was (('x-api-key', '{SECRET}/'),)")
    assert SECRET not in redaction.in_text(f"x-api-key={quote(SECRET + '/')}")


def test_a_short_secret_goes_where_it_stands_alone_and_other_settings_make_it_forgotten() -> None:
    load(environ=environment("schema_registry", "password", "kafka") | {"XNLI_SCHEMA_REGISTRY__USERNAME": "me"})
    assert redaction.in_text("kafka, kafkaesque") == "[redacted], kafkaesque"
    load(environ=REQUIRED)
    assert redaction.in_text("kafka") == "kafka"


def test_what_mends_an_error_is_shown() -> None:
    text = "ssl.key.location=/etc/key.pem: No such file; SASL authentication error: it failed; max_tokens = 'x'"
    assert redaction.in_text(text) == text
    load(environ=environment("kafka", "properties", '{"ssl.key.location": "/etc/key.pem", "sasl.username": "a@b"}'))
    assert redaction.in_text(text) == text


# Every command


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module, name in (
        (send_module, "_CONNECT_TIMEOUT_S"),
        (check, "_BROKER_TIMEOUT_S"),
        (check, "_TRANSACTIONS_TIMEOUT_S"),
        (dead_letter_topic, "_TIMEOUT_S"),
    ):
        monkeypatch.setattr(module, name, 0.3)
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # the command line puts a stream of its own there
    yield
    logging.getLogger("librdkafka").setLevel(logging.NOTSET)


@pytest.fixture
def registry() -> Iterator[str]:
    """One that repeats in its errors how it was asked."""

    def answer(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
        said = handler.headers["Authorization"]
        decoded = base64.b64decode(said.removeprefix("Basic ")).decode()
        handler.send_response(500)
        handler.end_headers()
        handler.wfile.write(json.dumps({"error_code": 50001, "message": f"it was said {said} {decoded}"}).encode())

    with answering(answer) as url:
        yield url


def credentials(registry: str) -> dict[str, str]:
    properties = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanisms": "PLAIN",
        "sasl.username": "me",
        "sasl.password": SECRET,
        "debug": "all",
    }
    return REQUIRED | {
        "XNLI_KAFKA__PROPERTIES": json.dumps(properties),
        "XNLI_SCHEMA_REGISTRY__URL": registry,
        "XNLI_SCHEMA_REGISTRY__USERNAME": "me",
        "XNLI_SCHEMA_REGISTRY__PASSWORD": SECRET,
    }


COMMANDS = {
    "run": ["run"],
    "send": ["send"],
    "tail": ["tail", "--count", "1"],
    "list": ["dead-letters", "list"],
    "show": ["dead-letters", "show", "0:0"],
    "replay": ["dead-letters", "replay"],
    "check": ["check"],
    "bench": ["bench"],
}


@pytest.mark.parametrize(
    # That of bench takes torch's seconds to import.
    "command",
    [pytest.param(name, marks=pytest.mark.acceptance if name == "bench" else ()) for name in COMMANDS],
)
@pytest.mark.parametrize("variable", ["XNLI_SCHEMA_REGISTRY__URL", "XNLI_KAFKA__BOOTSTRAP_SERVERS"])
def test_no_command_shows_what_it_refuses(
    command: str,
    variable: str,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, given in (REQUIRED | {variable: f"me:{SECRET}@h:1"}).items():
        monkeypatch.setenv(name, given)
    assert cli.main(COMMANDS[command]) == 2
    out, err = capfd.readouterr()
    assert "(not shown): holds credentials" in out + err
    assert SECRET not in out + err


@pytest.mark.parametrize("command", ["send", "list", "show", "replay", "check"])
def test_no_command_shows_what_it_uses(
    command: str,
    registry: str,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Brokers are away, and the registry repeats what it is told, so each of them says all that it has to say."""
    for name, given in credentials(registry).items():
        monkeypatch.setenv(name, given)
    # What concerns the model takes torch's seconds to import, and is told no secret.
    monkeypatch.setattr(check, "_STEPS", [step for step in check._STEPS if step[0] not in {"device", "model"}])
    monkeypatch.setattr(send_module, "_wait_aloud", lambda _seconds: None)
    monkeypatch.setattr(connection, "_TELL_EVERY_S", 0.0)
    replayed = command == "replay"  # it waits for the broker until it is told to stop
    assert cli.main([*COMMANDS[command], *(["--dry-run"] if replayed else [])]) != 0
    out, err = capfd.readouterr()
    assert out + err
    assert SECRET not in out + err
    assert BASIC not in out + err


@pytest.mark.acceptance
def test_the_worker_shows_nothing_of_what_it_uses(registry: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
    with subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "run"],
        cwd=ROOT,
        env=kept | credentials(registry) | {"XNLI_MODEL__NAME": str(CHECKPOINT), "XNLI_LOG__LEVEL": "debug"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        told = ""
        for line in process.stderr:
            told += line
            if "registry_away" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert "it was said" in told
    assert SECRET not in told
    assert BASIC not in told


@pytest.mark.parametrize(
    "arguments", [["send", f"--password={SECRET}"], ["tail", "--config", f"http://me:{SECRET}@h/x"]]
)
def test_a_secret_on_the_command_line_is_not_repeated(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    try:
        code: Any = cli.main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert SECRET not in capfd.readouterr().err


def test_the_interpreters_own_traceback_shows_none() -> None:
    program = f"""
from worker import cli, settings
from worker.commands import check
def broken(*_, **__):
    settings.load(environ={REQUIRED | {"XNLI_SCHEMA_REGISTRY__TOKEN": SECRET}!r})
    raise RuntimeError("Illegal header value", b"Bearer {SECRET}")
check.check = broken
cli.main(["check"])
"""
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    assert "Illegal header value" in shown.stderr
    assert SECRET not in shown.stderr


def test_every_error_of_ours_is_clean() -> None:
    for kind in (WorkerError, SettingsError):
        assert SECRET not in repr(kind(f"me:{SECRET}@host and password={SECRET}"))
    assert SECRET not in repr(Rejection(Reason.INVALID, "validate", f"token: {SECRET}"))


def test_what_the_registrys_client_is_told_shows_none() -> None:
    assert SECRET not in repr(Access("me", SECRET, SECRET, OAuthClient("u", "i", SECRET), key_password=SECRET))
