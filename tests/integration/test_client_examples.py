"""The producers and consumers of deploy/examples, as their first lines say to run them, against a real worker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import send
from tests.faults.workers import REAL, WorkerProcess
from worker.avro import json_request
from worker.avro.codec import Codecs
from worker.demo.play import CHECKPOINT

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
CI = os.environ.get("CI", "").lower() == "true"


def _commands(language: str, servers: str, topics: tuple[str, str], count: int) -> tuple[list[str], list[str]]:
    """What sends one request in this language, and what prints ``count`` results."""
    sent, read = [servers, topics[0]], [servers, topics[1], str(count)]
    match language:
        case "python":
            return [sys.executable, "produce.py", *sent], [sys.executable, "consume.py", *read]
        case "go":
            return ["go", "run", "./produce", *sent], ["go", "run", "./consume", *read]
        case _:
            maven = ["mvn", "--quiet", "--batch-mode", "compile", "exec:java"]
            return (
                [*maven, "-Dexec.mainClass=Produce", f"-Dexec.args={' '.join(sent)}"],
                [*maven, "-Dexec.mainClass=Consume", f"-Dexec.args={' '.join(read)}"],
            )


def _run(command: list[str], language: str) -> str:
    done = subprocess.run(
        command,
        cwd=EXAMPLES / language,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.sub(r"\x1b\[\d*m", "", done.stdout)  # Maven's, which resets colours where there are none


@pytest.mark.parametrize(
    "language",
    # The latter two download and compile for minutes.
    ["python", pytest.param("java", marks=pytest.mark.acceptance), pytest.param("go", marks=pytest.mark.acceptance)],
)
def test_a_foreign_client_asks_and_reads_every_kind_of_outcome(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path, language: str
) -> None:
    tool = {"python": sys.executable, "java": "mvn", "go": "go"}[language]
    if shutil.which(tool) is None and not CI:
        pytest.skip(f"{tool} was not found: install it to run the example in {language}")
    requests, results, dead = topic("requests"), topic("results"), topic("dead")
    environment = {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": requests,
        "XNLI_TOPICS__INPUT": requests,
        "XNLI_TOPICS__OUTPUT": results,
        "XNLI_TOPICS__DEAD_LETTER": dead,
        "XNLI_MODEL__NAME": str(CHECKPOINT),
    }
    produce, consume = _commands(language, kafka.bootstrap_servers, (requests, results), 3)
    codecs = Codecs()
    others: list[dict[str, Any]] = [
        {"id": "e", "text": "The parcel arrived late.", "task": "ENTAIL", "hypotheses": ["It was late."]},
        {"id": "v", "text": "The parcel arrived late.", "task": "EMBED"},
    ]
    with WorkerProcess(environment, tmp_path / "worker.log", REAL) as worker:
        worker.wait_for("rebalance", 180)
        assert f"sent {language}-1" in _run(produce, language)
        encoded = [(other["id"], codecs.encode_request(json_request.request(other))[0]) for other in others]
        send(kafka.bootstrap_servers, requests, encoded)
        printed = _run(consume, language)
        assert worker.stop() == 0
    by_id = {line.partition(":")[0]: line for line in printed.splitlines()}
    assert set(by_id) == {f"{language}-1", "e", "v"}
    assert "xnli.Classification: delivery 0." in by_id[f"{language}-1"]
    assert "xnli.Entailment: It was late. 0." in by_id["e"]
    assert "xnli.Embedding: " in by_id["v"]
    assert by_id["v"].endswith(" numbers")
