"""Real Apache Kafka for the tests: a broker that somebody runs, or a KRaft cluster of our own on loopback."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ClusterMetadata,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from tests.brokers import java
from tests.brokers.ports import free_ports
from tests.brokers.process import Process

# As good as silent: a client that asks a starting broker "are you there" would report every refusal.
_QUIET = {"log_level": 0, "reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100}

# The second JVM of a session starts as fast as it can: a test broker lives for seconds and never earns back C2.
_JVM_FLAGS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xlog:cds=off", "-Xlog:cds+dynamic=off")
_LOG_FLAGS = (
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
    # Every start would dump its whole configuration four times and push what matters out of the tail.
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn",
)


# Who does not say who he is.
_EVERYBODY = "User:ANONYMOUS"


class BrokerFailed(Exception):  # noqa: N818 (what happened, as the field says it)
    """A broker did not start, or died unasked. The message ends with the tail of its log."""


class Kafka:
    """A cluster, seen from outside. ``XNLI_TEST_KAFKA`` makes one of these of a broker that somebody runs."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def admin(self) -> AdminClient:
        """A new admin client."""
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, **_QUIET})

    def create_topic(self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        """Create a topic with the broker's replication, and return when each partition has a leader."""
        admin = self.admin()
        # -1: the broker's default, which is one replica on one node and three on three.
        topic = NewTopic(name, num_partitions=partitions, replication_factor=-1, config=dict(config or {}))
        admin.create_topics([topic])[name].result(timeout=30)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            known = admin.list_topics(timeout=30).topics.get(name)
            if known is not None and all(p.leader >= 0 for p in known.partitions.values()):
                return
            time.sleep(0.02)
        raise TimeoutError(
            f"topic {name} was created, but 30 s later some of its {partitions} partitions lack a leader"
        )

    def delete_topic(self, name: str) -> None:
        """Delete a topic."""
        admin = self.admin()  # held until the answer: a client that is collected takes its requests with it
        admin.delete_topics([name])[name].result(timeout=30)

    def make_again(self, name: str, partitions: int = 1) -> None:
        """Delete a topic and create it within a second: the broker refuses the name for a moment."""
        self.delete_topic(name)
        deadline = time.monotonic() + 10
        while True:
            try:
                return self.create_topic(name, partitions)
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def deny(self, topic: str, *operations: AclOperation) -> None:
        """Forbid everybody these operations on a topic, and no others.

        An authorizer that allows what no ACL speaks of must be there.
        """
        admin = self.admin()
        denials = [_acl(topic, each, AclPermissionType.DENY) for each in operations]
        # Of a topic that an ACL speaks of, all else is forbidden too, unless it is allowed.
        for answer in admin.create_acls([_acl(topic, AclOperation.ALL, AclPermissionType.ALLOW), *denials]).values():
            answer.result(timeout=30)

    def allow(self, topic: str) -> None:
        """Take back what `deny` did."""
        admin = self.admin()
        forbidden = AclBindingFilter(
            ResourceType.TOPIC,
            topic,
            ResourcePatternType.LITERAL,
            _EVERYBODY,
            "*",
            AclOperation.ANY,
            AclPermissionType.DENY,
        )
        for answer in admin.delete_acls([forbidden]).values():
            answer.result(timeout=30)

    def leader(self, topic: str, partition: int) -> int:
        """The id of the node that leads a partition now; -1 while none does."""
        return self.admin().list_topics(topic, timeout=30).topics[topic].partitions[partition].leader


@dataclass(slots=True)
class _Node:
    id: int
    port: int
    controller_port: int
    directory: Path
    process: Process | None = None
    archiving: Path | None = None

    @property
    def live(self) -> bool:
        return self.process is not None and self.process.responsive


class KafkaCluster(Kafka):
    """``nodes`` JVMs on loopback, each broker and controller, numbered from 1.

    What a broker does by default is kept, except where it costs a test seconds: groups rebalance at once, a dead node
    is noticed after 3 s, expired transactions are aborted within 5 s, sessions may be as short as a second.

    With ``users``, names and passwords, one node listens at ``secured_servers`` too, where it asks for them
    (SASL_PLAINTEXT, PLAIN). ``port`` is that of the first node; without it any free one is taken.
    """

    def __init__(
        self,
        nodes: int = 1,
        properties: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        ports = free_ports(2 * nodes + 1)
        if port is not None:
            ports[0] = port
        super().__init__(",".join(f"127.0.0.1:{port}" for port in ports[:nodes]))
        self.directory = Path(tempfile.mkdtemp(prefix="xnli-kafka-"))
        self._nodes = {
            i + 1: _Node(i + 1, ports[i], ports[nodes + i], self.directory / f"node-{i + 1}") for i in range(nodes)
        }
        self._properties = dict(properties or {})
        self.secured_servers = f"127.0.0.1:{ports[-1]}"
        self._users = dict(users or {})
        self.jvm_flags: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Format the storage, start every node and wait until the cluster is ready.

        Raises:
            tests.brokers.java.Unavailable: Java or Maven is missing.
            BrokerFailed: a node ended, or was not ready within a minute. The logs stay in ``directory``.
        """
        try:
            self._format()
            for node in self._nodes.values():
                self._launch(node)
            self.wait_ready()
        except java.Unavailable:
            self.stop()
            raise
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        """End every node and delete the data. Nothing is flushed: nobody will read it again."""
        self._end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self, node: int) -> None:
        """SIGKILL a node. The others notice after the broker session's 3 s."""
        self._process(node).kill()

    def restart(self, *nodes: int) -> None:
        """Start nodes again on their ports and data (after a SIGKILL, if they still run); return when all is ready."""
        for node in nodes:
            if (process := self._nodes[node].process) is not None:
                process.kill()
            self._launch(self._nodes[node])
        self.wait_ready()

    def create_topic(self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        """As above, and return only when every live node knows the topic: each may be asked next."""
        super().create_topic(name, partitions, config)
        self.wait_ready(topic=name)

    def suspend(self, node: int) -> None:
        """SIGSTOP a node: connections stay open and nothing answers."""
        self._process(node).suspend()

    def resume(self, node: int) -> None:
        """SIGCONT a node; return when the cluster is ready again."""
        self._process(node).resume()
        self.wait_ready()

    def wait_ready(self, timeout_s: float = 60, topic: str | None = None) -> None:
        """Return when every live node answers, each partition has a live leader, and all live replicas are in sync.

        With ``topic``, also when every live node knows it.

        Raises:
            BrokerFailed: a node died, or this did not come true in time.
        """
        deadline = time.monotonic() + timeout_s
        while (missing := self._missing(topic)) is not None:
            for node in self._nodes.values():
                if node.process is not None and (node.process.exit_code or 0) > 0:  # of its own will, not by a signal
                    raise self._failed(f"node {node.id} ended with exit code {node.process.exit_code}")
            if time.monotonic() > deadline:
                raise self._failed(f"not ready after {timeout_s:.0f} s: {missing}")
            time.sleep(0.02)

    def _missing(self, topic: str | None) -> str | None:
        """What is not ready yet, or None."""
        live = {node.id for node in self._nodes.values() if node.live}
        for node in sorted(live):
            # A client that knows this one address hears from this node, and not what another remembers of it.
            admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{self._nodes[node].port}", **_QUIET})
            try:
                metadata = admin.list_topics(timeout=2)
            except KafkaException as error:
                return f"node {node} does not answer: {error}"
            if missing := _unready(metadata, live):
                return f"node {node} says: {missing}"
            if topic is not None and topic not in metadata.topics:
                return f"node {node} does not know topic {topic}"
        return None

    def _format(self) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        formats: list[subprocess.Popen[str]] = []
        for node in self._nodes.values():
            node.directory.mkdir()
            lines = [f"{key}={value}" for key, value in self._configuration(node).items()]
            configuration = node.directory / "server.properties"
            configuration.write_text("\n".join(lines), encoding="utf-8")
            command = [
                *_jvm(),
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={cluster}",
                "-c",
                str(configuration),
            ]
            formats.append(
                subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            )  # all at once: each is a JVM that mostly starts
        for process in formats:
            output, _ = process.communicate()
            if process.returncode != 0:
                raise BrokerFailed(f"the storage could not be formatted:\n{output}")

    def _launch(self, node: _Node) -> None:
        archive = _archive()
        node.archiving = None
        extra: list[str] = []
        if len(self._nodes) == 1 and not archive.exists():
            node.archiving = archive.with_suffix(f".{os.getpid()}-{node.port}")
            extra = [f"-XX:ArchiveClassesAtExit={node.archiving}"]
        node.process = Process(
            [*_jvm(*extra, *self.jvm_flags), "kafka.Kafka", str(node.directory / "server.properties")],
            log=node.directory / "server.log",
            directory=node.directory,
        )

    def _end(self) -> None:
        for node in self._nodes.values():
            if node.process is None or node.process.exit_code is not None:
                continue
            if node.archiving is not None and node.live:
                node.process.terminate(timeout_s=30)  # writes its class archive on the way out
                if node.archiving.exists():
                    node.archiving.rename(_archive())
            else:
                node.process.kill()

    def _process(self, node: int) -> Process:
        process = self._nodes[node].process
        if process is None:
            raise RuntimeError(f"node {node} was never started")
        return process

    def _failed(self, what: str) -> BrokerFailed:
        tails = [f"--- node {n.id} ({n.process.log})\n{n.process.tail()}" for n in self._nodes.values() if n.process]
        return BrokerFailed("\n".join([f"Kafka {what}", *tails]))

    def _doors(self, node: _Node) -> dict[str, str]:
        plain = f"PLAINTEXT://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{node.controller_port}"
        protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"
        names = {"controller.listener.names": "CONTROLLER"}
        if not self._users:
            return {"listeners": plain, "listener.security.protocol.map": protocols, **names}
        users = " ".join(f'user_{name}="{password}"' for name, password in self._users.items())
        return {
            "listeners": f"{plain},SECURED://{self.secured_servers}",
            "listener.security.protocol.map": f"{protocols},SECURED:SASL_PLAINTEXT",
            "listener.name.secured.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.secured.plain.sasl.jaas.config": (
                f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
            ),
            **names,
        }

    def _configuration(self, node: _Node) -> dict[str, str]:
        replicas = min(3, len(self._nodes))
        in_sync = max(1, replicas - 1)
        return {
            **self._doors(node),
            "process.roles": "broker,controller",
            "node.id": str(node.id),
            "controller.quorum.voters": ",".join(f"{n.id}@127.0.0.1:{n.controller_port}" for n in self._nodes.values()),
            "log.dirs": str(node.directory / "data"),
            # Replication as far as the nodes go: with three, one may die and acks=all still succeeds.
            "default.replication.factor": str(replicas),
            "min.insync.replicas": str(in_sync),
            "offsets.topic.replication.factor": str(replicas),
            "transaction.state.log.replication.factor": str(replicas),
            "transaction.state.log.min.isr": str(in_sync),
            "share.coordinator.state.topic.replication.factor": str(replicas),
            "share.coordinator.state.topic.min.isr": str(in_sync),
            # Fewer internal partitions to create on first use; the defaults are 50.
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.num.partitions": "4",
            # A topic that the worker forgot to ask for has to be an error.
            "auto.create.topics.enable": "false",
            # Retention counts from a record's timestamp; tests like to write 1970, and would find nothing at times.
            "log.retention.ms": "-1",
            "message.max.bytes": str(16 << 20),
            "replica.fetch.max.bytes": str(16 << 20),
            # Both group protocols: classic, and KIP-848's consumer.
            "group.coordinator.rebalance.protocols": "classic,consumer",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "group.consumer.min.session.timeout.ms": "1000",
            "group.consumer.session.timeout.ms": "10000",
            "group.consumer.min.heartbeat.interval.ms": "100",
            "group.consumer.heartbeat.interval.ms": "500",
            "group.consumer.assignment.interval.ms": "0",
            # Not sooner: a broker (4.3.1) that aborts as it starts, before it knows its topics, drops the markers: the
            # transaction hangs for ever, in the results and in the committed offsets (seen with 500 ms).
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "5000",
            "broker.heartbeat.interval.ms": "500",
            "broker.session.timeout.ms": "3000",
            # 128 MiB by default, a quarter of the heap.
            "log.cleaner.dedupe.buffer.size": str(4 << 20),
            **(_AUTHORIZER if len(self._nodes) == 1 else {}),
            **self._properties,
        }


# What a test denies with an ACL is denied, and nothing else. Of one node: the votes of several are refused until the
# authorizer has read its ACLs, which it cannot before there is a leader.
_AUTHORIZER: Final = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


def _acl(topic: str, operation: AclOperation, permission: AclPermissionType) -> AclBinding:
    return AclBinding(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, _EVERYBODY, "*", operation, permission)


def _unready(metadata: ClusterMetadata, live: set[int]) -> str | None:
    if absent := live - metadata.brokers.keys():
        return f"nodes {sorted(absent)} have not joined"
    for topic in metadata.topics.values():
        for partition in topic.partitions.values():
            where = f"{topic.topic}[{partition.id}]"
            if partition.leader not in live:
                return f"{where} has no live leader"
            if behind := (live & set(partition.replicas)) - set(partition.isrs):
                return f"{where} is not in sync on nodes {sorted(behind)}"
    return None


def _jvm(*extra: str) -> list[str]:
    """The JVM's command up to the main class."""
    jars = ":".join(str(jar) for jar in sorted(java.folder("kafka").glob("*.jar")))
    archive = _archive()
    # Classes loaded and verified once and mapped afterwards: about half of a broker's start. A JVM that cannot use the
    # archive starts without it.
    shared = [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []
    return [java.java().command, *_JVM_FLAGS, *_LOG_FLAGS, *shared, *extra, "-cp", jars]


def _archive() -> Path:
    """Kafka's class archive (JEP 350), written by the first single-node cluster that stops."""
    return java.folder("kafka").with_name(f"kafka-java{java.java().version}.jsa")
