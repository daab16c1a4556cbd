"""Did a change make the worker slower? Two checkouts, alternately, on the same work: the ratio and its 95% interval.

    python -m tests.bench.pairs --before DIR [--pairs 9] [--messages N] [delivery | engine]

``delivery`` takes the CPU time that a message costs the whole worker, exactly once, over real Kafka, with a model that
answers at once. ``engine`` takes the time that the engine needs for the workload of ``tests.bench.engine --only ours``.
DIR is another checkout of this repository (``git worktree add DIR COMMIT``); its programs run there, with the packages
of this environment. The order within a pair alternates. The interval is that of the mean of the logarithms of the
ratios (Student's t). Nothing else should run on the machine meanwhile. Many short pairs tell more than a few long ones:
what varies on a shared machine varies over minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench.delivery import requests_topic, worker_run
from tests.brokers.kafka import KafkaCluster
from tests.faults.workers import ROOT

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

_ANSWERS = 5  # of one engine

# An engine of a checkout, which answers the workload once for each line that it reads. The smallest shape is the
# strictest: what surrounds the products has its largest share there.
_ENGINE = """
import sys, tempfile, time
from pathlib import Path
import torch
from tests.bench import engine
torch.set_num_threads(1)
bench = getattr(engine, "bench", engine)  # where older checkouts keep the workload
device = torch.device("cpu")
with tempfile.TemporaryDirectory() as folder:
    where = bench.make_checkpoint(bench.SHAPES["small"], Path(folder))
    opened = engine.open_engine(where, device, engine.ours(device)[-1])
requests = bench.workload(int(sys.argv[1]))
bench.answer(opened, requests)
for _ in sys.stdin:
    began = time.perf_counter()
    bench.answer(opened, requests)
    print(time.perf_counter() - began, flush=True)
"""


def engine_s(checkout: Path, messages: int) -> float:
    """Seconds that a checkout's engine takes for the workload, the median of `_ANSWERS` of a process of its own.

    A new process for each measurement: two processes of the same code differed by up to a tenth, for as long as they
    lived.
    """
    done = subprocess.run(
        [sys.executable, "-c", _ENGINE, str(messages)],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        input="\n" * _ANSWERS,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return statistics.median(map(float, done.stdout.split()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["delivery", "engine"], default="delivery")
    parser.add_argument("--before", type=Path, required=True, metavar="DIR")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--messages", type=int, help="of one run")
    arguments = parser.parse_args()
    messages = arguments.messages or _MESSAGES[arguments.what]
    if arguments.pairs - 1 not in _T:
        parser.error(f"--pairs: one of {', '.join(str(n + 1) for n in _T)}")
    checkouts = {"before": arguments.before.resolve(), "after": ROOT}
    found: dict[str, list[float]] = {name: [] for name in checkouts}

    def measure(once: Callable[[Path], float]) -> None:
        for number in range(arguments.pairs):
            for name in list(checkouts) if number % 2 == 0 else list(reversed(checkouts)):
                found[name].append(once(checkouts[name]))
                print(f"pair {number + 1}: {name:6} {found[name][-1]:.4g}", file=sys.stderr)

    if arguments.what == "engine":
        measure(lambda where: engine_s(where, messages))
    else:
        with KafkaCluster() as kafka:
            source = requests_topic(kafka, messages)
            measure(lambda where: worker_run(kafka, source, messages, "exactly_once", checkout=where).cpu_us)
    ratio, low, high = interval(found["before"], found["after"])
    unit = "s" if arguments.what == "engine" else "us of CPU a message"
    for name, values in found.items():
        print(f"{name:6} {statistics.median(values):.4g} {unit} (median of {len(values)})")
    print(f"after / before: {ratio:.3f}, 95% interval {low:.3f} to {high:.3f}")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(json.dumps({"what": arguments.what, **found, "ratio": ratio, "interval": [low, high], "machine": machine}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
