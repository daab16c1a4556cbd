"""What the host alone does for a message: everything but the device, on one core.

    python -m tests.bench.host [--messages 2048] [--runs 5] [--at-least 4000000] [--out host.json]

Avro bytes become a request, a request becomes tokens, a batch becomes distinct pairs in order of length, slices, one
packed sequence each; a null model makes up logits; those become scores, a result, Avro bytes. It is the worker's own
code save for Kafka's client and the ledger, which `tests.bench.delivery` measures. Pairs and tokens a second are the
ceiling that the host sets a fast device. Times are CPU time of one thread, which a busy machine distorts least. Prints
a table and JSON. The exit code is 1 if fewer tokens a second than ``--at-least`` came through.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.bench.engine import machine, progress
from worker.avro import json_request
from worker.avro.codec import Codecs
from worker.avro.request import Defaults, Limits
from worker.avro.result import result
from worker.commands.bench import MAX_TOKENS
from worker.commands.workload import DEMO_CHECKPOINT, TEMPLATE, workload
from worker.inference.engine import Engine
from worker.inference.forwards.packed import Packed, PackedRows, first_places
from worker.inference.forwards.packing import Ids, Packing
from worker.inference.loading import load
from worker.messages import Job, LongText, Partition, Pooling, Position, Record, Work
from worker.pipeline.admit import RequestReader

BATCH = 256  # messages, as batch.max_messages has it by default
STEPS = ("read", "tokenise", "run", "write")
DEFAULTS = Defaults(TEMPLATE, LongText.TRUNCATE, Pooling.MEAN, normalize=True)
LIMITS = Limits(max_text_chars=100_000, max_labels=256, max_label_chars=1_000, max_message_bytes=1 << 20)


class NullModel:
    """In the place of a family's layers and head: takes what those take, and makes states and logits up."""

    def __init__(self) -> None:
        self._made = torch.randn((MAX_TOKENS, 3), generator=torch.Generator().manual_seed(0))

    def places(self, packing: Packing) -> Ids:
        return first_places(packing)

    def states(self, rows: PackedRows, *, chosen_only: bool) -> Tensor:
        for ids in (rows.packing.token_ids, rows.packing.within, rows.packing.segments(rows.rows)):
            rows.tensor(ids)
        return self._made[: len(rows.attention.chosen) if chosen_only else rows.packing.tokens]

    def classify(self, states: Tensor) -> Tensor:
        return states


class Host:
    """The host's steps over records, with the CPU time that each has taken so far."""

    def __init__(self) -> None:
        # What the device is plays no part: slices are as large as on a GPU.
        checkpoint = load(str(DEMO_CHECKPOINT), device="cpu", precision="fp32", self_test="off", progress=False)
        self._engine = Engine(checkpoint, max_tokens=MAX_TOKENS, forward=Packed(checkpoint, NullModel()))
        self._codecs = Codecs()
        self._read = RequestReader(self._codecs, DEFAULTS, LIMITS)
        self.seconds = dict.fromkeys(STEPS, 0.0)

    def records(self, messages: int) -> list[Record]:
        """Requests as Kafka's client would hand them over."""
        return [
            Record(
                Position(Partition("requests", i % 4), i, 1),
                request.id.encode(),
                self._codecs.encode_request(
                    json_request.request({"id": request.id, "text": request.text, "labels": list(request.labels)})
                )[0],
                (),
                1_000,
            )
            for i, request in enumerate(workload(messages))
        ]

    def answer(self, records: Sequence[Record]) -> Work:
        """Everything for one batch."""
        began_s = time.process_time()
        requests = [self._read(record) for record in records]
        began_s = self._count("read", began_s)
        encoded = [self._engine.encode(request) for request in requests]
        began_s = self._count("tokenise", began_s)
        outcomes, work = self._engine.run(list(zip(requests, encoded, strict=True)))
        began_s = self._count("run", began_s)
        for record, request, rows, outcome in zip(records, requests, encoded, outcomes, strict=True):
            self._codecs.encode_result(result(Job(record, request, rows), outcome, self._engine.identity))
        self._count("write", began_s)
        return work

    def _count(self, step: str, began_s: float) -> float:
        now_s = time.process_time()
        self.seconds[step] += now_s - began_s
        return now_s


def measure(messages: int, runs: int) -> dict[str, Any]:
    """CPU seconds of each step in each run over the same messages, after one run that is not timed."""
    host = Host()
    records = host.records(messages)
    batches = [records[start : start + BATCH] for start in range(0, messages, BATCH)]
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    pairs = tokens = 0
    with progress("host") as step:
        for run in range(runs + 1):
            step(f"run {run} of {runs}" if run else "warm-up", runs - run)
            host.seconds = dict.fromkeys(STEPS, 0.0)
            work = [host.answer(batch) for batch in batches]
            pairs, tokens = sum(done.rows for done in work), sum(done.tokens for done in work)
            if run:
                for name, taken_s in host.seconds.items():
                    seconds[name].append(taken_s)
    taken_s = statistics.median(map(sum, zip(*seconds.values(), strict=True)))
    return {
        "messages": messages,
        "pairs": pairs,
        "tokens": tokens,
        "seconds": seconds,
        "pairs_per_s": pairs / taken_s,
        "tokens_per_s": tokens / taken_s,
        "machine": machine(torch.device("cpu")),
    }


def table(report: dict[str, Any]) -> str:
    """Markdown: a line a step, and the whole."""
    whole = [sum(times) for times in zip(*report["seconds"].values(), strict=True)]
    lines = ["| | us a message | us a pair | ns a token | share | noise |", "|---|--:|--:|--:|--:|--:|"]
    for name, times in {**report["seconds"], "all": whole}.items():
        taken_s = statistics.median(times)
        lines.append(
            f"| {name} | {taken_s / report['messages'] * 1e6:.1f} | {taken_s / report['pairs'] * 1e6:.2f} "
            f"| {taken_s / report['tokens'] * 1e9:.0f} | {taken_s / statistics.median(whole):.0%} "
            f"| {(max(times) - min(times)) / taken_s:.0%} |"
        )
    rates = f"{report['pairs_per_s']:,.0f} pairs/s, {report['tokens_per_s'] / 1e6:.2f} M tokens/s on one core"
    return "\n".join([*lines, "", f"{rates}; {report['messages']} messages, {report['pairs']} pairs"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--at-least", type=float, default=0.0, metavar="TOKENS", help="a second, or exit with 1")
    parser.add_argument("--out", type=Path, metavar="FILE", help="for the JSON, in place of stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = measure(arguments.messages, arguments.runs)
    print(table(report))
    if arguments.out is None:
        print(json.dumps(report))
    else:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if report["tokens_per_s"] < arguments.at_least:
        print(f"fewer than {arguments.at_least:,.0f} tokens/s came through", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
