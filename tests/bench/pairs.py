"""Did a change make the worker slower? Two checkouts, alternately, on the same work: the ratio and its 95% interval.

    python -m tests.bench.pairs --before DIR [--pairs 9] [--messages N] [delivery | engine]

``delivery`` takes the CPU time that a message costs the whole worker, exactly once, over real Kafka, with a model that
answers at once; each checkout's worker is a process of its own and reads requests that its own schema wrote. ``engine``
takes the CPU time that the engine needs for the workload of ``tests.bench.engine --only ours``, both checkouts in one
process. DIR is another checkout of this repository (``git worktree add DIR COMMIT``), with the packages of this
environment. ``--after`` names the other one, where it is not this one. The order within a pair alternates. The interval
is that of the mean of the logarithms of the ratios (Student's t). Nothing else should run on the machine meanwhile.
Many short pairs tell more than a few long ones: what varies on a shared machine varies over minutes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from tests.bench.delivery import requests_topic, worker_run
from tests.brokers.kafka import KafkaCluster
from tests.faults.workers import ROOT

_PACKAGES = ("worker", "tests")

# Student's t for a two-sided 95% interval, by degrees of freedom (pairs less one).
_T = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 14: 2.145, 19: 2.093}
_T |= {29: 2.045, 39: 2.023, 59: 2.001, 99: 1.984}


def interval(before: list[float], after: list[float]) -> tuple[float, float, float]:
    """The geometric mean of after/before over the pairs, and the ends of its 95% interval."""
    logs = [math.log(b / a) for a, b in zip(before, after, strict=True)]
    mean, n = statistics.fmean(logs), len(logs)
    half = _T[n - 1] * statistics.stdev(logs) / math.sqrt(n)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


_MESSAGES = {"delivery": 25_000, "engine": 4}  # of one run: some five seconds, and less than one

_ANSWERS = 4  # of each engine of a pair


class EngineOfCheckout:
    """The modules of a checkout, beside those of another in one process, and the engine that they make.

    The smallest shape is the strictest: what surrounds the products has its largest share there.
    """

    def __init__(self, checkout: Path) -> None:
        self._checkout = str(checkout)
        self._modules: dict[str, ModuleType] = {}
        with self._in_place():
            program = importlib.import_module("tests.bench.engine")
        self._program = program
        # Where older checkouts keep the workload.
        self._bench = getattr(program, "bench", program)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Let imports, those inside functions too, find this checkout's modules and no others'."""
        others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in _PACKAGES}
        sys.modules |= self._modules
        sys.path.insert(0, self._checkout)
        try:
            yield
        finally:
            sys.path.remove(self._checkout)
            self._modules = {
                name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in _PACKAGES
            }
            sys.modules |= others

    def make_checkpoint(self, folder: Path) -> Path:
        with self._in_place():
            where: Path = self._bench.make_checkpoint(self._bench.SHAPES["small"], folder)
            return where

    def open(self, checkpoint: Path, messages: int) -> Callable[[], float]:
        """A new engine, warm. What is returned answers the workload once and tells its seconds of CPU."""
        device = torch.device("cpu")
        with self._in_place():
            opened = self._program.open_engine(checkpoint, device, self._program.ours(device)[-1])
            requests = self._bench.workload(messages)
            self._bench.answer(opened, requests)

        def answer_s() -> float:
            with self._in_place():
                began_s = time.process_time()
                self._bench.answer(opened, requests)
                return time.process_time() - began_s

        return answer_s


def engine_pair(checkouts: Mapping[str, EngineOfCheckout], checkpoint: Path, messages: int) -> dict[str, float]:
    """Seconds of CPU of each checkout's engine, the sum of answers that alternate.

    Both are in one process and answer in turns, for the machine's speed varies within seconds. Both are opened anew for
    each pair: where their weights lie in memory made one faster than the other by up to a tenth, for as long as they
    lay there.
    """
    answers = {name: checkout.open(checkpoint, messages) for name, checkout in checkouts.items()}
    total_s = dict.fromkeys(checkouts, 0.0)
    for number in range(_ANSWERS):
        for name in list(answers) if number % 2 == 0 else list(reversed(answers)):
            total_s[name] += answers[name]()
    return total_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["delivery", "engine"], default="delivery")
    parser.add_argument("--before", type=Path, required=True, metavar="DIR")
    parser.add_argument("--after", type=Path, default=ROOT, metavar="DIR")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--messages", type=int, help="of one run")
    arguments = parser.parse_args()
    messages = arguments.messages or _MESSAGES[arguments.what]
    if arguments.pairs - 1 not in _T:
        parser.error(f"--pairs: one of {', '.join(str(n + 1) for n in _T)}")
    checkouts = {"before": arguments.before.resolve(), "after": arguments.after.resolve()}
    found: dict[str, list[float]] = {name: [] for name in checkouts}

    def keep(number: int, name: str, value: float) -> None:
        found[name].append(value)
        print(f"pair {number + 1}: {name:6} {value:.4g}", file=sys.stderr)

    def in_turn(number: int) -> list[str]:
        return list(checkouts) if number % 2 == 0 else list(reversed(checkouts))

    if arguments.what == "engine":
        torch.set_num_threads(1)
        engines = {name: EngineOfCheckout(where) for name, where in checkouts.items()}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = engines["before"].make_checkpoint(Path(folder))
            for number in range(arguments.pairs):
                answers = engine_pair({name: engines[name] for name in in_turn(number)}, checkpoint, messages)
                for name in checkouts:
                    keep(number, name, answers[name])
    else:
        with KafkaCluster() as kafka:
            source = {name: requests_topic(kafka, messages, checkout=checkout) for name, checkout in checkouts.items()}
            for number in range(arguments.pairs):
                for name in in_turn(number):
                    once = worker_run(kafka, source[name], messages, "exactly_once", checkout=checkouts[name])
                    keep(number, name, once.cpu_us)
    ratio, low, high = interval(found["before"], found["after"])
    unit = "s of CPU" if arguments.what == "engine" else "us of CPU a message"
    for name, values in found.items():
        print(f"{name:6} {statistics.median(values):.4g} {unit} (median of {len(values)})")
    print(f"after / before: {ratio:.3f}, 95% interval {low:.3f} to {high:.3f}")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(json.dumps({"what": arguments.what, **found, "ratio": ratio, "interval": [low, high], "machine": machine}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
