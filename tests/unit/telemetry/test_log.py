from __future__ import annotations

import io
import json
import logging
import re
import warnings
from typing import Any

import pytest
import structlog
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from worker import redaction
from worker.errors import SettingsError
from worker.telemetry import log

SECRET = "hunter2!x"  # noqa: S105 (what the tests look for)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def json_log(level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    log.configure(level, "json", stream)
    return stream


def test_structlog_and_the_standard_library_write_the_same_shape() -> None:
    stream = json_log()
    structlog.stdlib.get_logger("worker.a").info("started", partitions=3)
    logging.getLogger("somebody.else").warning("%s is %d", "answer", 42)
    ours, theirs = lines(stream)
    assert ours == {
        "event": "started",
        "partitions": 3,
        "level": "info",
        "logger": "worker.a",
        "timestamp": ours["timestamp"],
    }
    assert theirs.keys() == ours.keys() - {"partitions"}
    for line in stream.getvalue().splitlines():
        assert list(json.loads(line))[:3] == ["event", "level", "timestamp"]
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("answer is 42", "warning", "somebody.else")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", theirs["timestamp"])


def test_a_line_stays_one_line_in_any_encoding() -> None:
    stream = json_log()
    logging.getLogger("x").error("a\nb\u2028c 日本語")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().isascii()
    assert lines(stream)[0]["event"] == "a\nb\u2028c 日本語"


def test_level_holds_for_both_and_a_second_configure_replaces_the_first() -> None:
    speaker = structlog.stdlib.get_logger("worker.a")
    first = json_log("warning")
    speaker.info("quiet")
    logging.getLogger("x").info("quiet")
    assert not first.getvalue()
    second = json_log("DEBUG")
    speaker.debug("loud")
    logging.getLogger("x").debug("loud")
    assert not first.getvalue()
    assert len(lines(second)) == 2


def test_http_exchanges_are_told_at_debug_only() -> None:
    stream = json_log("info")
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).info("HTTP Request")
    assert not stream.getvalue()
    stream = json_log("debug")
    logging.getLogger("httpx").info("HTTP Request")
    assert len(lines(stream)) == 1


def test_a_terminal_gets_the_console_form_and_a_pipe_json_unless_told_otherwise() -> None:
    for stream, log_format, is_json in (
        (Terminal(), "auto", False),
        (io.StringIO(), "auto", True),
        (Terminal(), "json", True),
        (io.StringIO(), "console", False),
    ):
        log.configure("info", log_format, stream)  # type: ignore[arg-type]  # the pairs above
        logging.getLogger("x").warning("said")
        assert stream.getvalue().startswith("{") == is_json


def test_python_warnings_are_log_lines() -> None:
    stream = json_log()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)  # catch_warnings put the standard hook back
        warnings.warn("old setting", UserWarning, stacklevel=1)
    (line,) = lines(stream)
    assert line["logger"] == "py.warnings"
    assert "old setting" in line["event"]


def test_trouble_of_one_kind_is_told_twice_a_minute_and_counted() -> None:
    now_s = 0.0
    repeats = log.Repeats(lambda: now_s)
    told = []
    for tenth in range(700):  # seventy seconds of ten attempts each
        now_s = tenth / 10
        told.append((now_s, repeats.admit("_TRANSPORT")))
    assert [entry for entry in told if entry[1] is not None] == [(0.0, 0), (30.0, 299), (60.0, 299)]
    assert repeats.admit("_AUTHENTICATION") == 0


def test_librdkafka_repeats_itself_and_we_do_not() -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream)
    for port in range(100):
        logging.getLogger("librdkafka").error("%s [%s] %s", "FAIL", "one", f"127.0.0.1:{port}: refused")
    logging.getLogger("librdkafka").error("%s [%s] %s", "FAIL", "one", "127.0.0.1:1: no such certificate")
    logging.getLogger("librdkafka").error("%s [%s] %s", "FAIL", "two", "127.0.0.1:1: refused")
    assert [line["client"] for line in lines(stream)] == ["one", "one", "two"]


def test_librdkafka_lines_come_out_by_field() -> None:
    stream = json_log("debug")
    # debug=conf makes the client tell of its configuration when it is made; no broker is needed.
    client = Producer(
        {"bootstrap.servers": "127.0.0.1:1", "debug": "conf", "client.id": "me", "sasl.password": SECRET},
        logger=logging.getLogger("librdkafka"),
    )
    for _ in range(20):  # its own threads' lines may come before
        client.poll(1.0)
        told = {line["facility"]: line for line in lines(stream) if line["logger"] == "librdkafka"}
        if "INIT" in told:
            break
    assert told["INIT"]["client"].startswith("me#producer")
    assert "initialized" in told["INIT"]["event"]
    assert "positional_args" not in told["INIT"]
    assert SECRET not in stream.getvalue()


def test_console_is_coloured_on_a_terminal_only() -> None:
    for stream, coloured in ((io.StringIO(), False), (Terminal(), True)):
        log.configure("info", "console", stream)
        structlog.stdlib.get_logger("worker.a").info("started", partitions=3)
        assert ("\x1b[" in stream.getvalue()) is coloured
        assert "partitions" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_tracebacks_show_no_local_variables(log_format: log.LogFormat) -> None:
    stream = io.StringIO()
    log.configure("info", log_format, stream)

    def connect(given: str) -> None:
        raise ValueError(f"refused after {len(given)} bytes")

    try:
        connect(SECRET)
    except ValueError:
        structlog.stdlib.get_logger("worker.a").exception("failed")
        logging.getLogger("x").exception("failed")
    written = stream.getvalue()
    assert written.count("refused after 9 bytes") == 2
    assert written.count("in connect") == 2
    assert SECRET not in written


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "sasl.password",
        "SASL_PASSWORD",
        "ssl.key.password",
        "ssl.key.pem",
        "ssl.keystore.password",
        "sasl.oauthbearer.client.secret",
        "sasl.jaas.config",
        "basic.auth.user.info",
        "bearer.auth.token",
        "Authorization",
        "aws_credentials",
        "apiKey",
        "hf_token",
        "Set-Cookie",
    ],
)
def test_secrets_are_redacted_by_key_at_any_depth(key: str) -> None:
    stream = json_log()
    speaker = structlog.stdlib.get_logger("worker.a")
    speaker.info("e", **{key: SECRET})
    speaker.info("e", properties={"x": [{key: SECRET}]})
    speaker.info("e", **{key: [SECRET]})
    speaker.info("e", **{key: SECRET.encode()})
    assert len(lines(stream)) == 4
    assert SECRET not in stream.getvalue()
    assert stream.getvalue().count(redaction.REDACTED) == 4


@pytest.mark.parametrize(
    "text",
    [
        f"bad property sasl.password={SECRET}",
        f'{{"sasl.password": "{SECRET}"}}',
        f"{{'api_key': '{SECRET}'}}",
        f"Authorization: Basic {SECRET}",
        f"Authorization: bearer {SECRET}",
        f"GET https://me:{SECRET}@registry:8081/subjects",
        f"hf_token = {SECRET}",
    ],
)
def test_secrets_are_redacted_inside_text(text: str) -> None:
    stream = json_log()
    structlog.stdlib.get_logger("worker.a").info(text, detail=text, error=ValueError(text))
    logging.getLogger("x").error("%s", text)
    logging.getLogger("x").error("failed", exc_info=RuntimeError(text))
    assert len(lines(stream)) == 3
    assert SECRET not in stream.getvalue()


def test_what_is_no_secret_is_shown() -> None:
    stream = json_log()
    shown = {"tokens": 512, "token_budget": 16384, "key": "user-7", "enabled": True, "ratio": 0.5, "none": None}
    structlog.stdlib.get_logger("worker.a").info("SASL authentication error: Broker: Authentication failed", **shown)
    (line,) = lines(stream)
    assert shown.items() <= line.items()
    assert line["event"] == "SASL authentication error: Broker: Authentication failed"


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=20) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=20), values, max_size=5))
def test_redacting_never_fails_keeps_every_key_and_adds_no_line(event: dict[str, Any]) -> None:
    redacted = log.redact(None, "info", dict(event))
    assert redacted.keys() == event.keys()
    json.dumps(redacted)


def test_a_cycle_ends() -> None:
    stream = json_log()
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    structlog.stdlib.get_logger("worker.a").info("e", cycle=cycle)
    assert redaction.REDACTED in stream.getvalue()


def test_what_a_model_counts_as_tokens_is_no_secret() -> None:
    stream = json_log()
    structlog.stdlib.get_logger("worker.batch").info("batch", tokens=120, padding_tokens=0)
    (written,) = lines(stream)
    assert (written["tokens"], written["padding_tokens"]) == (120, 0)


@pytest.mark.parametrize(("level", "log_format"), [("loud", "json"), ("info", "xml")])
def test_what_is_wrong_is_named_with_its_mend(level: str, log_format: Any) -> None:
    with pytest.raises(SettingsError, match=r"log\.(level|format): '(loud|xml)' is no .*; use"):
        log.configure(level, log_format, io.StringIO())
