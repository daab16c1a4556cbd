"""The faults, each a scene played on a `Stage` while workers answer requests, up to the moment when all is well again.

What a scene leaves to its caller: feeding the rest, timing the recovery, and the account.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.faults.http_load import http_load
from tests.faults.stage import CellFailed, Stage
from tests.faults.verifier import count

# A frozen worker must have been missed by its group and by its own poll interval: 8 s (see Stage).
FROZEN_S = 10.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault.

    ``mainly`` is the guarantee under which a short run plays it: each fault under one, each guarantee with several.
    ``seconds`` is about how long two workers take for all messages if nothing happens: the model pauses to stretch it.
    ``nodes`` is the size of the cluster, under exactly-once ``transactional_nodes``: Kafka 4.3.1 can lose a committed
    transaction of its own when a broker that is alone dies and comes back (README), and no worker could help it.
    """

    name: str
    play: Callable[[Stage], None]
    mainly: str = "exactly_once"
    seconds: float = 6.0
    workers: int = 2
    nodes: int = 1
    transactional_nodes: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    registry: bool = False
    # Workers with names of their own (group.instance.id), which they keep. Such a one may be fenced by itself: where an
    # outage swallows the group's answer, the group knows its next incarnation and it does not. It must end and be
    # started again then, so these may.
    static: bool = False
    # The workers reach their brokers by way of a proxy that does what a network may to single requests.
    proxied: bool = False

    def brokers(self, guarantee: str) -> int:
        """The size of the cluster under this guarantee."""
        return max(self.nodes, self.transactional_nodes if guarantee == "exactly_once" else 1)


def _strike(stage: Stage) -> None:
    """Kill all workers in the moment that results arrive, or at most a batch later; their supervisor starts them."""
    stage.await_write()
    time.sleep(stage.random.choice((0.0, stage.random.uniform(0.0, 0.2))))
    for member in stage.members:
        member.signal(signal.SIGKILL)
    for member in stage.members:
        member.kill()
        member.restart()


def sigkill(stage: Stage) -> None:
    """All workers die, twice, as they write."""
    stage.feed(0.6)
    for share in (0.1, 0.3):
        stage.await_results(share)
        _strike(stage)


def sigterm(stage: Stage) -> None:
    """A worker is asked to go half-way, and another takes its place."""
    stage.feed(0.8)
    stage.await_results(0.25)
    stage.leave(stage.random.choice(stage.members))
    stage.join()


def sigstop(stage: Stage) -> None:
    """Each worker in turn freezes for longer than its session and its poll interval."""
    stage.feed(0.4)
    stage.await_results(0.1)
    for member in stage.random.sample(stage.members, len(stage.members)):
        stage.await_write()
        member.signal(signal.SIGSTOP)
        try:
            stage.spend(FROZEN_S / 2)
            stage.feed(0.2)
            stage.spend(FROZEN_S / 2)
        finally:
            member.signal(signal.SIGCONT)


def broker_restart(stage: Stage) -> None:
    """The only broker, or the one that leads most, dies and comes back, twice."""
    stage.feed(0.8)
    for share in (0.15, 0.4):
        stage.await_results(share)
        stage.await_write()
        leader = stage.leaders()[0]
        stage.cluster.kill(leader)
        stage.cluster.restart(leader)


def broker_away(stage: Stage) -> None:
    """The only broker, or two of three, hang with transactions open, die, and are away for longer than any time-out.

    One worker starts while they are away.
    """
    stage.feed(0.8)
    stage.await_results(0.15)
    stage.await_write()
    with stage.brokers_away():
        stage.spend(stage.size.outage_s / 2)
        stage.join()
        stage.spend(stage.size.outage_s / 2)


def static_membership(stage: Stage) -> None:
    """Workers that have names die as they write, twice, and come back under them; then the brokers go away.

    Twice: after three starts without progress a fourth death would rightly condemn the record in hand.
    """
    stage.feed(0.8)
    for share in (0.2, 0.4):
        stage.await_results(share)
        _strike(stage)
    stage.await_results(0.6)
    stage.await_write()
    with stage.brokers_away():
        stage.spend(stage.size.outage_s)


def one_of_three(stage: Stage) -> None:
    """Each broker of three dies in turn, so every coordinator and leader does once, and comes back seconds later."""
    stage.feed(0.2)
    stage.await_results(0.1)
    for node in stage.random.sample([1, 2, 3], 3):
        stage.feed(0.2)
        stage.await_write()
        stage.cluster.kill(node)
        stage.spend(stage.size.outage_s / 4)
        stage.cluster.restart(node)


def produce_error(stage: Stage) -> None:
    """The output topic refuses every write for a while."""
    stage.feed(0.5)
    stage.await_results(0.15)
    with stage.unwritable(stage.topics.results):
        stage.feed(0.3)
        stage.spend(stage.size.outage_s)


def commit_error(stage: Stage) -> None:
    """Offsets and the state of transactions cannot be written for a while."""
    stage.feed(0.5)
    stage.await_results(0.15)
    with stage.unwritable("__consumer_offsets", *(["__transaction_state"] if stage.exactly_once else [])):
        stage.feed(0.3)
        stage.spend(stage.size.outage_s)


def rebalance_storm(stage: Stage) -> None:
    """Workers join and leave at random: asked to go, or killed."""
    stage.feed(0.1)
    for _ in range(8):
        stage.feed(0.1)
        few, many = len(stage.members) < 2, len(stage.members) > 3
        match "join" if few else stage.random.choice(("leave", "kill") if many else ("join", "leave", "kill")):
            case "join":
                stage.join()
            case "leave":
                stage.leave(stage.random.choice(stage.members))
            case "kill":
                victim = stage.random.choice(stage.members)
                victim.kill()
                stage.members.remove(victim)
        stage.spend(stage.random.uniform(0.5, 3.0))


def poison(stage: Stage) -> None:
    """Texts on which the model fails, in the middle of batches."""
    stage.feed(0.8, poison=20)
    stage.await_results(0.25)


def dead_letters_unwritable(stage: Stage) -> None:
    """Poison, and a dead-letter topic that refuses every write for a while: its partition has to wait."""
    with stage.unwritable(stage.topics.dead_letters):
        stage.feed(0.8, poison=20)
        stage.until(lambda: any(m.events("publish_failed") for m in stage.members), "a dead letter to be refused")
        stage.spend(stage.size.outage_s)
        if count(stage.kafka.bootstrap_servers, stage.topics.dead_letters):
            raise CellFailed("the dead-letter topic took a write: the fault was none")


def registry_away(stage: Stage) -> None:
    """The registry refuses connections, then answers 503, while writers use a schema no worker has asked for yet.

    One worker starts while it is away.
    """
    stage.feed(0.4)
    stage.await_results(0.2)
    stage.registry.stop()
    stage.new_writer_schema()
    stage.feed(0.4)
    stage.join()
    stage.spend(stage.size.outage_s / 2)
    stage.registry.available = False
    stage.registry.start()
    stage.spend(stage.size.outage_s / 2)
    stage.registry.available = True


def ambiguous_commit(stage: Stage) -> None:
    """Requests of transactions, or their answers, are lost, cut, late, or arrive again in the next transaction."""
    stage.feed(0.8)
    stage.await_results(0.1)
    with stage.requests_at_risk():
        stage.await_results(0.7)


def http_beside(stage: Stage) -> None:
    """Workers are asked over HTTP, rightly and wrongly, while they answer the stream; then they die, and one leaves."""
    with http_load(stage.members, stage.random.randrange(2**31)) as load:
        stage.feed(0.8, poison=10)
        stage.await_results(0.3)
        _strike(stage)
        # Before, a signal would find a process that does not listen yet.
        stage.until(lambda: all(len(m.events("started")) == m.starts for m in stage.members), "the workers to be back")
        stage.leave(stage.random.choice(stage.members))
        stage.join()
        stage.await_results(0.7)
    if load.wrong:
        raise CellFailed(f"over HTTP: {load.wrong[:5]}")
    if not load.statuses["sound", 200] or not load.statuses["healthz", 200]:
        raise CellFailed(f"nothing was answered over HTTP: {load.statuses}")


SCENARIOS = (
    Scenario("sigkill", sigkill),
    Scenario("sigterm", sigterm, "at_least_once"),
    Scenario("sigstop", sigstop, seconds=20),
    Scenario("poison", poison, "at_least_once", seconds=1),
    Scenario("http_beside", http_beside, settings={"XNLI_HTTP__INFERENCE": "true"}),
    Scenario("registry_away", registry_away, registry=True),
    Scenario("rebalance_storm", rebalance_storm, "at_least_once", seconds=20),
    Scenario("broker_restart", broker_restart, "at_least_once", seconds=3, transactional_nodes=3),
    Scenario("broker_away", broker_away, transactional_nodes=3),
    Scenario("static_membership", static_membership, seconds=15, static=True, transactional_nodes=3),
    Scenario("one_of_three", one_of_three, nodes=3),
    Scenario("produce_error", produce_error, "at_least_once", nodes=3),
    Scenario("commit_error", commit_error, nodes=3),
    Scenario("dead_letters_unwritable", dead_letters_unwritable, seconds=1, nodes=3),
    Scenario("ambiguous_commit", ambiguous_commit, proxied=True),
)
