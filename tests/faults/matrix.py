"""The fault matrix: every fault under both guarantees, on real Kafka, with an account of every message.

    python -m tests.faults.matrix [--cell NAME] [--guarantee exactly_once|at_least_once] [--seed N] [--messages N]
        [--outage SECONDS] [--once]

``XNLI_TEST_FAULTS_MESSAGES`` is the number of messages a cell (2,000; the full size is 100,000),
``XNLI_TEST_FAULTS_OUTAGE_S`` how long something is away (12 s; at full size 60), and ``XNLI_TEST_FAULTS_SEED`` the seed
of victims, moments and poison. ``--once`` plays each fault under one of the guarantees only (`Scenario.mainly`). The
tables are written to ``tests/faults/report/``; the exit code is 1 if a cell broke its promise. What a cell must keep:
nothing lost, the dead letters those of the poison alone, results of a partition in request order, no worker that ended
by itself (save one with a name of its own, which an outage may fence); and nothing duplicated under exactly-once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.brokers.java import Unavailable
from tests.brokers.kafka import BrokerFailed, Kafka, KafkaCluster
from tests.brokers.proxy import ProxiedKafka
from tests.brokers.registry import LoopbackRegistry
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.stage import PARTITIONS, Size, Stage
from tests.faults.verifier import Topics

GUARANTEES = ("exactly_once", "at_least_once")
REPORT = Path(__file__).with_name("report")
SMALL = 2_000


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the matrix, as the tables show it. ``broken`` says which promises; empty means all were kept."""

    fault: str
    guarantee: str
    inputs: int = 0
    results: int = 0
    dead_letters: int = 0
    lost: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    restarts: int = 0
    seconds_to_recover: float = 0.0
    seconds: float = 0.0
    broken: str = ""


def play(scenario: Scenario, guarantee: str, kafka: Kafka, size: Size, seed: int, folder: Path) -> Row:
    """Play one cell and account for it."""
    began_s = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    mark = f"{scenario.name}-{guarantee}-{uuid.uuid4().hex[:6]}"
    topics = Topics(f"requests-{mark}", f"results-{mark}", f"dead-{mark}")
    for topic in (topics.requests, topics.results, topics.dead_letters):
        kafka.create_topic(topic, PARTITIONS)
    pause_s = scenario.seconds * scenario.workers * size.batch / size.messages
    settings = {"XNLI_TEST_SECONDS_PER_BATCH": f"{pause_s:.4f}", **scenario.settings}
    with ExitStack() as stack:
        registry = stack.enter_context(LoopbackRegistry()) if scenario.registry else None
        stage = Stage(
            kafka,
            topics,
            size,
            guarantee,
            seed,
            folder,
            settings=settings,
            registry=registry,
            static=scenario.static,
        )
        stack.callback(stage.close)
        stage.join_and_wait(scenario.workers)
        scenario.play(stage)
        recovered_s = stage.recover()
        found = stage.finish()
        restarts = stage.restarts
    broken = {
        "lost": bool(found.lost),
        "duplicated": guarantee == "exactly_once" and bool(found.duplicated),
        "out of order": bool(found.out_of_order),
        "wrong dead letters": found.buried != stage.poison,
        "a worker ended by itself": bool(restarts) and not scenario.static,
    }
    return Row(
        fault=scenario.name,
        guarantee=guarantee,
        inputs=found.inputs,
        results=found.results,
        dead_letters=found.dead_letters,
        lost=len(found.lost),
        duplicated=len(found.duplicated),
        out_of_order=found.out_of_order,
        restarts=restarts,
        seconds_to_recover=round(recovered_s, 1),
        seconds=round(time.monotonic() - began_s, 1),
        broken=", ".join(what for what, is_so in broken.items() if is_so),
    )


class Clusters:
    """One cluster of each kind, started when first needed, and again when a cell left it in pieces."""

    def __init__(self) -> None:
        self._running: dict[tuple[int, bool], KafkaCluster] = {}

    def get(self, nodes: int, *, proxied: bool) -> KafkaCluster:
        """The cluster of this kind, alone: two cores are no place for four brokers."""
        kind = nodes, proxied
        for other in [running for running in self._running if running != kind]:
            self._running.pop(other).stop()
        cluster = self._running.get(kind)
        if cluster is not None:
            try:
                cluster.wait_ready(5)
            except BrokerFailed:
                self._running.pop(kind).stop()
                cluster = None
        if cluster is None:
            cluster = self._running[kind] = ProxiedKafka(nodes) if proxied else KafkaCluster(nodes)
            cluster.start()
        return cluster

    def stop(self) -> None:
        """Stop all."""
        while self._running:
            self._running.popitem()[1].stop()


@contextmanager
def _clusters() -> Iterator[Clusters]:
    clusters = Clusters()
    try:
        yield clusters
    finally:
        clusters.stop()


def markdown(rows: Sequence[Row], size: Size, seed: int) -> str:
    """The table for people."""
    head = (
        "fault", "guarantee", "inputs", "results", "dead letters", "lost", "duplicated", "out of order", "restarts",
        "seconds to recover", "",
    )  # fmt: skip
    lines = [f"{size.messages:,} messages a cell, outages of {size.outage_s:g} s, seed {seed}.", ""]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * 2}{'---:|' * 8}---|"]
    for row in rows:
        numbers = (row.inputs, row.results, row.dead_letters, row.lost, row.duplicated, row.out_of_order, row.restarts)
        shown = " | ".join(f"{number:,}" for number in numbers)
        verdict = row.broken or "kept"
        lines.append(f"| {row.fault} | {row.guarantee} | {shown} | {row.seconds_to_recover:.1f} | {verdict} |")
    return "\n".join(lines) + "\n"


def _write(rows: Sequence[Row], size: Size, seed: int) -> None:
    (REPORT / "matrix.md").write_text(markdown(rows, size, seed), encoding="utf-8")
    report = {
        "messages": size.messages,
        "outage_s": size.outage_s,
        "seed": seed,
        "cells": [asdict(row) for row in rows],
    }
    (REPORT / "matrix.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.matrix", description=__doc__.splitlines()[0])
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--cell", action="append", choices=names, help="only this fault; may be given several times")
    parser.add_argument("--guarantee", choices=GUARANTEES, help="only under this guarantee")
    parser.add_argument("--once", action="store_true", help="each fault under one guarantee: half of the time")
    parser.add_argument("--seed", type=int, default=os.environ.get("XNLI_TEST_FAULTS_SEED"))
    parser.add_argument("--messages", type=int, default=os.environ.get("XNLI_TEST_FAULTS_MESSAGES", SMALL))
    parser.add_argument("--outage", type=float, metavar="SECONDS", default=os.environ.get("XNLI_TEST_FAULTS_OUTAGE_S"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Play the cells asked for. 0 if every promise was kept, 1 if one was broken, 2 if there can be no broker."""
    arguments = _arguments(argv)
    size = Size.of(arguments.messages, arguments.outage)
    seed: int = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**31)
    cells = [
        (scenario, guarantee)
        for scenario in SCENARIOS
        for guarantee in GUARANTEES
        if (not arguments.cell or scenario.name in arguments.cell) and arguments.guarantee in {None, guarantee}
        if not arguments.once or guarantee == scenario.mainly
    ]
    cells.sort(key=lambda cell: cell[0].brokers(cell[1]))  # each cluster is started once
    print(f"{len(cells)} cells of {size.messages:,} messages, seed {seed}", flush=True)
    REPORT.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C: the clusters are stopped on the way out
    rows: list[Row] = []
    with _clusters() as clusters:
        for number, (scenario, guarantee) in enumerate(cells, 1):
            print(f"[{number:2}/{len(cells)}] {scenario.name:24} {guarantee:14} ", end="", flush=True)
            folder = REPORT / f"{scenario.name}-{guarantee}"
            shutil.rmtree(folder, ignore_errors=True)
            try:
                kafka = clusters.get(scenario.brokers(guarantee), proxied=scenario.proxied)
                row = play(scenario, guarantee, kafka, size, seed, folder)
            except Unavailable as missing:
                print(f"\n{missing}", file=sys.stderr)
                return 2
            except Exception as error:  # noqa: BLE001 (a cell that breaks down is a row too; the others go on)
                row = Row(scenario.name, guarantee, broken=f"{type(error).__name__}: {error}".splitlines()[0])
                folder.mkdir(parents=True, exist_ok=True)  # the cell may have broken down before it had one
                (folder / "failure.txt").write_text(traceback.format_exc(), encoding="utf-8")
            rows.append(row)
            _write(rows, size, seed)
            print(f"{row.broken or 'kept'}; recovered in {row.seconds_to_recover} s; took {row.seconds} s", flush=True)
            if row.broken:
                again = f"--cell {row.fault} --guarantee {row.guarantee} --seed {seed} --messages {size.messages}"
                again += f" --outage {size.outage_s:g}"
                print(f"        again: python -m tests.faults.matrix {again}; logs in {folder}", flush=True)
    print(f"\n{markdown(rows, size, seed)}\nalso in {REPORT}")
    return int(any(row.broken for row in rows))


if __name__ == "__main__":
    sys.exit(main())
