"""Real Kafka that lets nobody in without a name, and allows nothing but what docs/security.md says is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka.admin import AclBinding, AclOperation, ResourceType

from tests.brokers.certificates import Authority
from tests.brokers.secured import SecuredKafka, TokenServer, allowed
from tests.conftest import TopicFactory, running, topics_on
from tests.faults.verifier import Topics, group_lag, read_all, request, send
from tests.faults.workers import ROOT, WorkerProcess, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

READ, WRITE, CONFIGS = AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE_CONFIGS
# By principal. It is planted, and looked for in all that is written.
PASSWORD = "planted-password-7"  # noqa: S105 (of the test)
USERS = ("worker", "sender", "reader", "operator")
REQUESTS = 5  # the first of which becomes a dead letter


@dataclass(frozen=True, slots=True)
class Secured:
    """The broker, who signs certificates, and where tokens come from."""

    kafka: SecuredKafka
    authority: Authority
    tokens: TokenServer

    def properties(self, user: str, way: str = "scram") -> tuple[str, dict[str, str]]:
        """The address of a listener, and the properties by which a user is let in there."""
        trust = {"ssl.ca.location": str(self.authority.ca)}
        match way:
            case "scram":
                return self.kafka.scram, trust | {
                    "security.protocol": "sasl_ssl",
                    "sasl.mechanism": "SCRAM-SHA-512",
                    "sasl.username": user,
                    "sasl.password": PASSWORD,
                }
            case "oauth":
                return self.kafka.oauth, trust | {
                    "security.protocol": "sasl_ssl",
                    "sasl.mechanism": "OAUTHBEARER",
                    "sasl.oauthbearer.method": "oidc",
                    "sasl.oauthbearer.client.id": user,
                    "sasl.oauthbearer.client.secret": PASSWORD,
                    "sasl.oauthbearer.token.endpoint.url": f"{self.tokens.url}/token",
                }
            case _:
                certificate, key = self.authority.issue(user, PASSWORD, days=10)
                return self.kafka.mutual_tls, trust | {
                    "security.protocol": "ssl",
                    "ssl.certificate.location": str(certificate),
                    "ssl.key.location": str(key),
                    "ssl.key.password": PASSWORD,
                }

    def environment(self, user: str, topics: Topics, way: str = "scram") -> dict[str, str]:
        """The settings of a user. The group is called as the topic of requests is."""
        servers, properties = self.properties(user, way)
        return topics.environment() | {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": servers,
            "XNLI_KAFKA__GROUP_ID": topics.requests,
            "XNLI_KAFKA__PROPERTIES": json.dumps(properties),
            "XNLI_KAFKA__CONSUMER_PROPERTIES": '{"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}',
        }


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority, tokens = Authority(folder), TokenServer()
    for cluster in running(SecuredKafka(authority, folder, tokens)):
        assert isinstance(cluster, SecuredKafka)
        for user in USERS:
            cluster.add_user(user, PASSWORD)
            tokens.clients[user] = PASSWORD
        yield Secured(cluster, authority, tokens)
    tokens.close()


@pytest.fixture
def topic(secured: Secured) -> Iterator[TopicFactory]:
    yield from topics_on(secured.kafka)


@pytest.fixture
def topics(topic: TopicFactory) -> Topics:
    return Topics(topic("requests"), topic("results"), topic("dead"))


def _worker_acls(topics: Topics) -> list[AclBinding]:
    return [
        allowed("worker", ResourceType.TOPIC, topics.requests, READ),
        allowed("worker", ResourceType.TOPIC, topics.results, WRITE),
        allowed("worker", ResourceType.TOPIC, topics.results, CONFIGS),
        allowed("worker", ResourceType.TOPIC, topics.dead_letters, WRITE),
        allowed("worker", ResourceType.TOPIC, topics.dead_letters, CONFIGS),
        allowed("worker", ResourceType.GROUP, topics.requests, READ),
        allowed("worker", ResourceType.TRANSACTIONAL_ID, topics.requests, WRITE, prefixed=True),
    ]


def _send(secured: Secured, topics: Topics, begin: str) -> None:
    labels = [()] + [("a", "b")] * (REQUESTS - 1)
    records = [(f"{begin}{i}", request(f"{begin}{i}", "text", of)) for i, of in enumerate(labels)]
    send(secured.kafka.bootstrap_servers, topics.requests, records)


def _is_answered(secured: Secured, topics: Topics) -> bool:
    return group_lag(secured.kafka.bootstrap_servers, topics.requests, topics.requests) == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["scram", "oauth", "certificate"])
def test_the_worker_is_let_in_and_needs_no_more_than_is_written_down(
    secured: Secured, topics: Topics, tmp_path: Path, way: str
) -> None:
    secured.kafka.grant(_worker_acls(topics))
    _send(secured, topics, "first")
    with WorkerProcess(secured.environment("worker", topics, way), tmp_path / "worker.log") as worker:
        wait_until(lambda: _is_answered(secured, topics), 60, "answers", worker)
        # The broker's certificate changes under the running worker; what it connects to from now on shows the new one.
        secured.kafka.rotate(f"broker-after-{way}")
        _send(secured, topics, "second")
        wait_until(lambda: _is_answered(secured, topics), 60, "answers after the rotation", worker)
        pages = [_page(worker, path) for path in ("healthz", "readyz", "metrics", "nowhere")]
        assert worker.stop() == 0
    assert len(read_all(secured.kafka.bootstrap_servers, topics.results)) == 2 * (REQUESTS - 1)
    assert len(read_all(secured.kafka.bootstrap_servers, topics.dead_letters)) == 2
    # Its own certificate is read once, and one that nears its end is told of.
    told = [(line["setting"], line["days"] <= 10) for line in worker.events("certificate_expires")]
    assert told == ([("kafka.properties.ssl.certificate.location", True)] if way == "certificate" else [])
    letters = read_all(secured.kafka.bootstrap_servers, topics.dead_letters)
    for written in (worker.log_path.read_text(), *pages, *(repr((each.headers(), each.value())) for each in letters)):
        assert PASSWORD not in written


def _page(worker: WorkerProcess, path: str) -> str:
    (started,) = worker.events("started")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{started['http_port']}/{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as refused:
        return refused.read().decode()


MENDS = {
    (ResourceType.TOPIC, "requests", READ): "kafka-acls.sh --operation Read",
    (ResourceType.TOPIC, "results", WRITE): "kafka-acls.sh --operation Write",
    (ResourceType.TOPIC, "results", CONFIGS): "Grant DescribeConfigs on the topic",
    (ResourceType.TOPIC, "dead", WRITE): "kafka-acls.sh --operation Write",
    (ResourceType.TOPIC, "dead", CONFIGS): "Grant DescribeConfigs on the topic",
    (ResourceType.GROUP, "requests", READ): "kafka-acls.sh --group ... --operation Read",
    (ResourceType.TRANSACTIONAL_ID, "requests", WRITE): "--resource-pattern-type prefixed --operation Write",
}


def _one_of_each_kind() -> list[object]:
    """Every grant of the worker's; in .ci/run one of a topic that is written to."""
    represented = (ResourceType.TOPIC, "results", WRITE)
    marks = {True: [pytest.mark.slow], False: [pytest.mark.acceptance]}
    return [
        pytest.param(
            missing, id=f"{missing[0].name}-{missing[1]}-{missing[2].name}", marks=marks[missing == represented]
        )
        for missing in MENDS
    ]


@pytest.mark.parametrize("missing", _one_of_each_kind())
def test_a_grant_that_is_missing_is_named_with_what_gives_it(
    secured: Secured, topics: Topics, tmp_path: Path, missing: tuple[ResourceType, str, AclOperation]
) -> None:
    kind, hint, operation = missing
    acls = _worker_acls(topics)
    (taken,) = [acl for acl in acls if (acl.restype, acl.operation) == (kind, operation) and acl.name.startswith(hint)]
    secured.kafka.grant(acl for acl in acls if acl is not taken)
    _send(secured, topics, "x")
    with WorkerProcess(secured.environment("worker", topics), tmp_path / "worker.log") as worker:
        # A worker that is refused its transactions ends, and its last line says so; the others go on.
        wait_until(lambda: MENDS[missing] in worker.log_path.read_text(), 60, MENDS[missing], worker)
        lines = [line for line in worker.log_path.read_text().splitlines() if MENDS[missing] in line]
        if kind is ResourceType.TOPIC:
            assert all(taken.name in line for line in lines), lines
        secured.kafka.grant([taken])
        if kind is ResourceType.TRANSACTIONAL_ID:
            assert worker.process.wait(30) == 1
            return
        # It is mended while it runs: nothing was lost meanwhile.
        wait_until(lambda: _is_answered(secured, topics), 90, "answers once it is granted", worker)
        assert worker.stop() == 0
    assert len(read_all(secured.kafka.bootstrap_servers, topics.results)) == REQUESTS - 1


COMMANDS = {
    "send": ("sender", ["send", "schemas/examples/requests.jsonl"]),
    "tail": ("reader", ["tail", "--from-beginning", "--count", "1", "--json"]),
    "list": ("operator", ["dead-letters", "list"]),
    "replay": ("operator", ["dead-letters", "replay", "--reason", "invalid", "--yes"]),
}


def _command_acls(command: str, topics: Topics) -> list[AclBinding]:
    topic, user = ResourceType.TOPIC, COMMANDS[command][0]
    read_dead = allowed(user, topic, topics.dead_letters, READ)
    match command:
        case "send":
            return [allowed(user, topic, topics.requests, WRITE)]
        case "tail":
            return [allowed(user, topic, topics.results, READ)]
        case "list":
            return [read_dead]
        case _:
            return [
                read_dead,
                allowed(user, topic, topics.requests, WRITE),
                allowed(user, ResourceType.GROUP, topics.requests, READ, prefixed=True),
                allowed(user, ResourceType.TRANSACTIONAL_ID, topics.requests, WRITE, prefixed=True),
            ]


def _run(secured: Secured, topics: Topics, command: str, *more: str) -> tuple[int, str]:
    """The exit code of a command, and what it says. One that waits to be let in is ended."""
    user, arguments = COMMANDS[command]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
    with subprocess.Popen(
        [sys.executable, "-m", "worker", *arguments, *more],
        cwd=ROOT,
        env=inherited | {"PYTHONPATH": str(ROOT)} | secured.environment(user, topics),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if "; waiting" in line:
                process.terminate()
        code = process.wait(90)
    assert PASSWORD not in said
    return code, said


@pytest.fixture
def answered(secured: Secured, topics: Topics, tmp_path: Path) -> Topics:
    """Topics with a result and a dead letter."""
    secured.kafka.grant(_worker_acls(topics))
    _send(secured, topics, "x")
    with WorkerProcess(secured.environment("worker", topics), tmp_path / "worker.log") as worker:
        wait_until(lambda: _is_answered(secured, topics), 60, "answers", worker)
        assert worker.stop() == 0
    return topics


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[] if name == "replay" else [pytest.mark.acceptance]) for name in COMMANDS]
)
@pytest.mark.slow
def test_a_command_has_a_principal_and_grants_of_its_own(secured: Secured, answered: Topics, command: str) -> None:
    acls = _command_acls(command, answered)
    secured.kafka.grant(acls)
    code, said = _run(secured, answered, command)
    assert code == 0, said
    assert "authorization" not in said
    for at, taken in enumerate(acls):
        secured.kafka.withdraw([taken])
        # Another campaign of replays, for the first has sent what there is.
        code, said = _run(secured, answered, command, *(["--campaign", f"again-{at}"] if command == "replay" else []))
        lines = [line for line in said.splitlines() if "allow this user" in line]
        assert len(lines) == 1, (taken, said)
        assert code == 1 or "; waiting" in lines[0], (taken, said)
        secured.kafka.grant([taken])
