"""Secrets that are right: every command connects with them, says all that it has to say, and shows none of them."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.brokers.kafka import KafkaCluster
from tests.brokers.registry import LoopbackRegistry
from tests.conftest import running
from worker.demo.play import CHECKPOINT

pytestmark = [pytest.mark.kafka, pytest.mark.acceptance]

ROOT = Path(__file__).parents[2]
BROKER_SECRET, REGISTRY_SECRET = "hunter2-Zq9", "swordfish-Xk7"
PLANTED = [
    *(BROKER_SECRET, REGISTRY_SECRET),
    base64.b64encode(f"me:{REGISTRY_SECRET}".encode()).decode(),  # as HTTP sends it
    base64.b64encode(f"\0me\0{BROKER_SECRET}".encode()).decode(),
]
REQUESTS = [
    {"id": "good", "text": "It rained all day.", "labels": ["weather", "sport"]},
    {"id": "bad", "text": "It asks for nothing."},  # a dead letter
]


@pytest.fixture(scope="module")
def secured() -> Iterator[KafkaCluster]:
    """A broker that lets nobody in without a password."""
    yield from running(KafkaCluster(users={"me": BROKER_SECRET}))


@pytest.fixture
def environment(secured: KafkaCluster, loopback_registry: LoopbackRegistry) -> dict[str, str]:
    properties = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanisms": "PLAIN",
        "sasl.username": "me",
        "sasl.password": BROKER_SECRET,
        # (Whatever a consumer can say of its fetching is more than a busy machine writes down.)
        "debug": "conf,security,broker,metadata,cgrp,admin,eos",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": secured.secured_servers,
        "XNLI_KAFKA__PROPERTIES": json.dumps(properties),
        "XNLI_SCHEMA_REGISTRY__URL": loopback_registry.url,
        "XNLI_SCHEMA_REGISTRY__USERNAME": "me",
        "XNLI_SCHEMA_REGISTRY__PASSWORD": REGISTRY_SECRET,
        "XNLI_SCHEMA_REGISTRY__AUTO_REGISTER": "true",
        "XNLI_MODEL__NAME": str(CHECKPOINT),
        "XNLI_LOG__LEVEL": "debug",
        "XNLI_HTTP__PORT": "0",
    }


def said(environment: dict[str, str], *arguments: str, code: int = 0, given: str = "") -> str:
    """What a command writes to stdout, once none of the secrets is found in all that it wrote."""
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "worker.cli", *arguments],
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    shows_none(ended.stdout + ended.stderr)
    return ended.stdout


def shows_none(written: str) -> None:
    assert written
    for secret in PLANTED:
        assert secret not in written


@contextmanager
def worker(environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-P", "-m", "worker.cli", "run"], env=environment, stderr=file)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-3000:]
    finally:
        process.kill()


@pytest.mark.timeout(900)
def test_no_command_shows_what_lets_it_in(
    environment: dict[str, str], loopback_registry: LoopbackRegistry, tmp_path: Path
) -> None:
    said(environment, "topics", "create")
    said(environment, "topics", "check")
    said(environment, "config", "show")
    with worker(environment, tmp_path / "worker.log"):
        given = "".join(json.dumps(request) + "\n" for request in REQUESTS)
        # One of the two has no result.
        answers = said(environment, "send", "--wait", "--timeout", "240", code=1, given=given)
        assert "weather" in answers
        assert "dead-letters" in answers
    shows_none((tmp_path / "worker.log").read_text())
    (found,) = [json.loads(line) for line in said(environment, "dead-letters", "list").splitlines()]
    assert "good" in said(environment, "tail", "--from-beginning", "--count", "1")
    assert "invalid" in said(environment, "tail", "--dead-letters", "--from-beginning", "--count", "1")
    said(environment, "dead-letters", "show", found["position"])
    said(environment, "dead-letters", "replay", "--dry-run")
    said(environment, "check")
    assert '"replayed": 1' in said(environment, "dead-letters", "replay", "--yes")
    assert f"Basic {PLANTED[2]}" in loopback_registry.authorizations
