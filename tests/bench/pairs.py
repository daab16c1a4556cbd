"""Did a change make the worker slower? Two checkouts, alternately, on the same work: the ratio and its 95% interval.

    python -m tests.bench.pairs --before DIR [--pairs 9] [--messages N] [delivery | engine]

``delivery`` takes the CPU time that a message costs the whole worker, exactly once, over real Kafka, with a model that
answers at once. ``engine`` takes the time that the engine needs for the workload of ``tests.bench.engine --only ours``.
DIR is another checkout of this repository (``git worktree add DIR COMMIT``); its programs run there, with the packages
of this environment. The order within a pair alternates. The interval is that of the mean of the logarithms of the
ratios (Student's t). Nothing else should run on the machine meanwhile.
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
import tempfile
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


_MESSAGES = {"delivery": 30_000, "engine": 24}  # of one run, which takes some ten seconds

# The engine's own claims take longer than all else, and are not compared here.
_ENGINE = """
import sys
from tests.bench import engine
engine.claims = lambda *_: {}
engine.main()
"""


def _engine_s(checkout: Path, messages: int) -> float:
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            [
                *(sys.executable, "-c", _ENGINE, "--only", "ours", "--messages", str(messages), "--runs", "3"),
                # The smallest shape is the strictest: what surrounds the products has its largest share there.
                *("--shape", "small", "--out", out),
            ],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        report = json.loads((Path(out) / "bench.json").read_text(encoding="utf-8"))
    fastest = next(reversed([name for name in report["seconds"] if name.startswith("ours")]))
    return float(statistics.median(report["seconds"][fastest]))


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
        measure(lambda where: _engine_s(where, messages))
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
