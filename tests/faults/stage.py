"""The stage of one cell: topics of its own, supervised workers, messages fed in order, and an account at the end."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from tests.brokers.kafka import Kafka, KafkaCluster
from tests.brokers.proxy import Fault, ProxiedKafka, Request
from tests.brokers.registry import LoopbackRegistry
from tests.faults.requests_at_risk import RequestsAtRisk
from tests.faults.verifier import Account, Progress, Topics, Watch, account, count, group_lag, send
from tests.faults.workers import ROOT, WorkerProcess
from worker.avro import json_request
from worker.avro.codec import REQUEST, Codecs, schema_folder

PARTITIONS = 6
DRAIN_S = 60.0


class CellFailed(Exception):  # noqa: N818 (what happened, as the field says it)
    """A cell did not come to its end, or broke its promise."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is sent and how long an outage lasts. Both grow from the small run to the full one."""

    messages: int
    outage_s: float

    @classmethod
    def of(cls, messages: int, outage_s: float | None = None) -> Size:
        """An outage of a minute from 100,000 messages on, of 12 s below: more than any time-out of the workers here."""
        return cls(messages, outage_s or (60.0 if messages >= 100_000 else 12.0))

    @property
    def batch(self) -> int:
        """Messages a batch: a hundred batches in the small run, the default of 256 in the full one."""
        return min(256, max(10, self.messages // 100))

    @property
    def deadline_s(self) -> float:
        """For one cell, on a machine that is slow and busy."""
        return 240 + 4 * self.outage_s + self.messages / 250


class Stage:
    """Feed, hurt, wait, account. Every wait supervises: a worker that ends by itself is started again, and counted."""

    def __init__(
        self,
        kafka: Kafka,
        topics: Topics,
        size: Size,
        guarantee: str,
        seed: int,
        folder: Path,
        *,
        settings: Mapping[str, str] | None = None,
        registry: LoopbackRegistry | None = None,
        static: bool = False,
    ) -> None:
        self.kafka = kafka
        self.topics = topics
        self.size = size
        self.random = random.Random(seed)
        self.members: list[WorkerProcess] = []
        self.poison: set[str] = set()
        self.flaky: set[str] = set()
        self.restarts = 0  # starts that nobody had asked for
        self.exactly_once = guarantee == "exactly_once"
        self._folder = folder
        self._settings = {"XNLI_DELIVERY__GUARANTEE": guarantee} | dict(settings or {})
        self._static = static
        self._registry = registry
        self._codecs = Codecs()
        if registry is not None:
            self._codecs = Codecs(registry.url, auto_register=True)
            self._codecs.open(result_topic=topics.results, request_topic=topics.requests)
            self._settings["XNLI_SCHEMA_REGISTRY__URL"] = registry.url
        self._prefix: bytes | None = None
        self._fed = 0
        self._started = 0
        self._deadline_s = time.monotonic() + size.deadline_s
        self._progress = Progress(kafka.bootstrap_servers, topics.requests, topics.requests)
        self._watch = Watch(kafka.bootstrap_servers, topics.results)

    def _environment(self) -> dict[str, str]:
        return (
            self.topics.environment()
            | {
                "XNLI_LOG__LEVEL": "debug",  # a line for each batch
                "XNLI_KAFKA__BOOTSTRAP_SERVERS": self._workers_servers,
                "XNLI_KAFKA__GROUP_ID": self.topics.requests,
                # The shortest that a busy machine keeps: a frozen or dead worker is noticed after 6 s.
                "XNLI_KAFKA__CONSUMER_PROPERTIES": (
                    '{"session.timeout.ms": 6000, "heartbeat.interval.ms": 500, "max.poll.interval.ms": 8000}'
                ),
                "XNLI_BATCH__MAX_MESSAGES": str(self.size.batch),
                "XNLI_RETRY__MAX_ATTEMPTS": "2",
                "XNLI_RETRY__MAX_MS": "2000",
            }
            | self._settings
        )

    @property
    def _workers_servers(self) -> str:
        return self.kafka.proxied_servers if isinstance(self.kafka, ProxiedKafka) else self.kafka.bootstrap_servers

    # Workers ----------------------------------------------------------------------------------------------------------

    def join(self, *, checkout: Path = ROOT, **settings: str) -> WorkerProcess:
        """Start one more worker, of this code or of another checkout's."""
        self._started += 1
        log = self._folder / f"worker-{self._started}.log"
        if self._static:
            settings["XNLI_KAFKA__GROUP_INSTANCE_ID"] = f"worker-{self._started}"
        member = WorkerProcess(self._environment() | settings, log, checkout=checkout)
        self.members.append(member)
        return member

    def join_and_wait(self, workers: int) -> None:
        """Start workers, and return when they share the partitions."""
        for _ in range(workers):
            self.join()
        self.until(lambda: all(member.events("rebalance") for member in self.members), "the group to form")

    def leave(self, member: WorkerProcess) -> None:
        """SIGTERM. The worker must drain and exit with 0."""
        member.process.terminate()
        try:
            code = member.process.wait(DRAIN_S)
        except subprocess.TimeoutExpired:
            raise CellFailed(f"a worker did not end within {DRAIN_S:g} s of SIGTERM\n{self._tails()}") from None
        self.members.remove(member)
        if code != 0:
            raise CellFailed(f"a worker ended with {code} on SIGTERM\n{self._tail(member)}")

    def supervise(self) -> None:
        """Start again whatever ended by itself, a second later, as a supervisor does."""
        for member in self.members:
            if member.process.poll() is not None:
                self.restarts += 1
                time.sleep(1)
                member.restart()

    # Messages ---------------------------------------------------------------------------------------------------------

    def feed(self, share: float, *, poison: int = 0, flaky: int = 0) -> None:
        """Send the next ``share`` of all messages.

        The model fails on ``poison`` of them, and on ``flaky`` others at first.
        """
        fed = min(self.size.messages, self._fed + round(share * self.size.messages))
        numbers = range(self._fed, fed)
        drawn = self.random.sample(numbers, min(poison + flaky, len(numbers)))
        bad, shaky = set(drawn[:poison]), set(drawn[poison:])
        self.poison |= {f"k{i}" for i in bad}
        self.flaky |= {f"k{i}" for i in shaky}
        self._fed = fed

        def text(i: int) -> str:
            return f"poison {i}" if i in bad else f"flaky=1 {i}" if i in shaky else f"plain text {i}"

        send(
            self.kafka.bootstrap_servers,
            self.topics.requests,
            ((f"k{i}", self._request(f"k{i}", text(i))) for i in numbers),
        )

    def _request(self, key: str, text: str) -> bytes:
        value, _ = self._codecs.encode_request(json_request.request({"id": key, "text": text, "labels": ["a", "b"]}))
        return value if self._prefix is None else self._prefix + value[len(self._prefix) :]

    @property
    def registry(self) -> LoopbackRegistry:
        """The registry of a scene that has one."""
        if self._registry is None:
            raise TypeError("this scene needs a registry")
        return self._registry

    def new_writer_schema(self) -> None:
        """From now on, requests name a writer's schema that differs from the shipped one in its documentation only."""
        text = json.loads((schema_folder() / REQUEST).read_text("utf-8"))
        body = json.dumps({"schema": json.dumps(text | {"doc": "As another team generates it."})}).encode()
        _, answer = self.registry.answer("POST", f"/subjects/{self.topics.requests}-value/versions", body)
        self._prefix = b"\x00" + int(answer["id"]).to_bytes(4, "big")

    def await_results(self, share: float) -> None:
        """Return when about ``share`` of all messages have a record in the output."""

        def there() -> bool:
            try:
                return count(self.kafka.bootstrap_servers, self.topics.results) >= share * self.size.messages
            except KafkaException:  # a broker that has just come back may not yet lead what it led
                return False

        self.until(there, f"{share:.0%} of results")

    def await_write(self) -> None:
        """Return when a worker is writing: its results have begun to arrive, and its offsets are not committed yet.

        Workers that have answered everything get a little more, save what `recover` needs.
        """

        def there() -> bool:
            if self._watch.arrived(0.5):
                return True
            done = self._progress.committed()
            if done is not None and sum(done.values()) >= self._fed < 0.85 * self.size.messages:
                self.feed(0.05)
            return False

        self.until(there, "a result")

    # Waiting ----------------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Supervise until something is true."""
        while not condition():
            self.supervise()
            if time.monotonic() > self._deadline_s:
                raise CellFailed(f"time ran out waiting for {what}\n{self._tails()}")
            time.sleep(0.05)

    def spend(self, seconds: float) -> None:
        """Let time pass, supervising."""
        end_s = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end_s, f"{seconds:g} s to pass")

    def committed(self) -> dict[int, int]:
        """What is committed now, as soon as the cluster says."""
        while True:
            if (found := self._progress.committed()) is not None:
                return found
            self.until(lambda: True, "committed offsets")
            time.sleep(0.1)

    def recover(self) -> float:
        """Feed the rest, and return the seconds from the call until every partition has moved on."""
        began_s = time.monotonic()
        self.feed(1.0)
        before = self.committed()

        def moved() -> bool:
            now = self._progress.committed()
            if now is not None and all(offset > before[partition] for partition, offset in now.items()):
                return True
            return self._progress.lag() == 0  # some were at their end when we looked

        self.until(moved, "every partition to move on")
        return time.monotonic() - began_s

    def finish(self) -> Account:
        """Wait until everything is committed, let the workers drain, and account for every message."""
        self.until(lambda: self._progress.lag() == 0, "everything to be committed")
        # A record in a retry topic has left its input topic, and is answered by nobody once the workers are gone.
        self.until(lambda: not any(map(self._lag, self._retry_topics())), "the last retries")
        for member in self.members[:]:
            self.leave(member)
        unordered = self.flaky if "XNLI_TOPICS__RETRY" in self._settings else frozenset[str]()
        found = account(self.kafka.bootstrap_servers, self.topics, self._codecs, unordered=unordered)
        if found.inputs != self.size.messages:
            raise CellFailed(f"{found.inputs} inputs, not {self.size.messages}: the feeding is broken, not the worker")
        return found

    def _retry_topics(self) -> list[str]:
        delays = self._settings.get("XNLI_TOPICS__RETRY", "")
        return [f"{self.topics.requests}.retry.{delay}s" for delay in delays.split(",") if delay]

    def _lag(self, topic: str) -> int:
        return group_lag(self.kafka.bootstrap_servers, self.topics.requests, topic)

    def close(self) -> None:
        """End what still runs."""
        self._progress.close()
        self._watch.close()
        for member in self.members:
            member.__exit__(None, None, None)

    def _tails(self) -> str:
        """How the logs of all workers end, after their threads have said where they stand."""
        for member in self.members:
            if member.process.poll() is None:
                member.signal(signal.SIGUSR1)
        time.sleep(1)
        return "\n".join(map(self._tail, self.members))

    @staticmethod
    def _tail(member: WorkerProcess) -> str:
        lines = member.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"--- {member.log_path}", *(line[:400] for line in lines[-40:])])

    # Faults of the cluster --------------------------------------------------------------------------------------------

    @property
    def cluster(self) -> KafkaCluster:
        """The cluster of a scene that harms brokers."""
        if not isinstance(self.kafka, KafkaCluster):
            raise TypeError("this scene needs a cluster of its own")
        return self.kafka

    def leaders(self) -> list[int]:
        """The brokers, whoever leads the most partitions of the results first."""
        known = self.cluster.admin().list_topics(self.topics.results, timeout=30)
        led = Counter(partition.leader for partition in known.topics[self.topics.results].partitions.values())
        return sorted(known.brokers, key=lambda node: (-led[node], node))

    @contextlib.contextmanager
    def brokers_away(self) -> Iterator[None]:
        """Most brokers hang and then die: the only one, or two of three, without which nothing is written."""
        leaders = self.leaders()
        nodes = leaders[: max(1, len(leaders) - 1)]
        for node in nodes:
            self.cluster.suspend(node)
        self.spend(1.0)
        for node in nodes:
            self.cluster.kill(node)
        yield
        self.cluster.restart(*nodes)

    @contextlib.contextmanager
    def requests_at_risk(self) -> Iterator[None]:
        """Let the proxy harm requests of the workers' transactions meanwhile: one at least, or it was no fault."""
        if not isinstance(self.kafka, ProxiedKafka):
            raise TypeError("this scene needs a proxy")
        at_risk = RequestsAtRisk(self.random, slow=2 + self.size.messages // 10_000)
        harmed = 0

        def decide(request: Request) -> Fault | None:
            nonlocal harmed
            fault = at_risk(request)
            harmed += fault is not None
            return fault

        self.kafka.proxy.decide = decide
        try:
            yield
        finally:
            self.kafka.proxy.decide = lambda _: None
        if not harmed:
            raise CellFailed("the proxy harmed no request: the fault was none")

    @contextlib.contextmanager
    def unwritable(self, *topics: str) -> Iterator[None]:
        """Refuse every acks=all write to topics meanwhile, and to no others: a replica they insist on is down.

        Of three brokers one dies; most topics are content with the other two.
        """
        node = self.random.randint(1, 3)
        self._insist(topics, AlterConfigOpType.SET)
        self.cluster.kill(node)
        try:
            yield
        finally:
            self.cluster.restart(node)
            self._insist(topics, AlterConfigOpType.DELETE)

    def _insist(self, topics: tuple[str, ...], operation: AlterConfigOpType) -> None:
        admin = self.kafka.admin()
        entry = ConfigEntry("min.insync.replicas", "3", incremental_operation=operation)
        resources = [ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry]) for topic in topics]
        for done in admin.incremental_alter_configs(resources).values():
            done.result(timeout=30)
