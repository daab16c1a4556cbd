"""HTTP beside the stream, as a process: while Kafka is away, and when it is asked to end."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from pathlib import Path

from tests.brokers.ports import free_ports
from tests.faults.workers import WorkerProcess, wait_until

AWAY = {"XNLI_HTTP__INFERENCE": "true", "XNLI_LOG__FORMAT": "json"}


def ask(port: int, text: str, path: str = "/v1/classify") -> tuple[int, object]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = json.dumps({"text": text, "labels": ["a"]})
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def answered(port: int) -> Callable[[], bool]:
    def condition() -> bool:
        try:
            return ask(port, "plain")[0] == 200
        except OSError:
            return False

    return condition


def worker(folder: Path, environment: dict[str, str]) -> tuple[WorkerProcess, int]:
    (port,) = free_ports(1)
    return WorkerProcess(AWAY | {"XNLI_HTTP__PORT": str(port)} | environment, folder / "log"), port


def test_while_kafka_is_away_requests_are_answered_and_a_stop_answers_what_is_in_hand(tmp_path: Path) -> None:
    (nobody,) = free_ports(1)
    process, port = worker(tmp_path, {"XNLI_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{nobody}"})
    with process:
        wait_until(answered(port), 60, "an answer", process)
        assert process.events("broker_away")
        found: list[int] = []
        slow = threading.Thread(target=lambda: found.append(ask(port, "slow=2")[0]))
        slow.start()
        wait_until(lambda: _is_in_hand(port), 30, "the slow one in hand", process)
        process.process.terminate()
        wait_until(lambda: ask(port, "plain")[0] == 503, 10, "newcomers to be refused", process, every_s=0.01)
        assert process.process.wait(40) == 0
        slow.join()
        assert found == [200]


def _is_in_hand(port: int) -> bool:
    """The device is busy: another request is not answered within a moment."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=0.2)
    try:
        body = json.dumps({"text": "plain", "labels": ["a"]})
        connection.request("POST", "/v1/classify", body, {"Content-Type": "application/json"})
        connection.getresponse()
    except TimeoutError:
        return True
    finally:
        connection.close()
    return False
