"""The delivery state machine, exploring freely: other examples on every run, and many of them.

    python -m tests.property.explore [--examples N] [--steps N] [--guarantee exactly_once|at_least_once]

The test of the same machine (`test_delivery`) tries the same few examples on every run. A failure is shrunk, printed as
the steps that lead to it, and kept in ``.hypothesis/``, so that the next run begins with it. The exit code is then 1.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence

import structlog
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from structlog.typing import EventDict

from tests.property.test_delivery import AtLeastOnce, ExactlyOnce

MACHINES = {machine.guarantee: machine for machine in (ExactlyOnce, AtLeastOnce)}


def main(argv: Sequence[str] | None = None) -> int:
    """Explore. 0 if every promise was kept, 1 if one was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.property.explore", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=2_000, help="for each guarantee (default: 2000)")
    parser.add_argument("--steps", type=int, default=50, help="the longest example (default: 50)")
    parser.add_argument("--guarantee", choices=MACHINES, action="append", help="only under this guarantee")
    arguments = parser.parse_args(argv)
    wanted = settings(
        max_examples=arguments.examples,
        stateful_step_count=arguments.steps,
        derandomize=False,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    structlog.configure(processors=[_drop])
    verdicts = []
    for guarantee in arguments.guarantee or MACHINES:
        began_s = time.monotonic()
        verdicts.append("every promise kept")
        try:
            run_state_machine_as_test(MACHINES[guarantee], settings=wanted)
        except Exception:  # noqa: BLE001 (whatever a broken promise raises; the other guarantee is explored all the same)
            traceback.print_exc()
            verdicts[-1] = "BROKEN"
        print(
            f"{guarantee}: {arguments.examples:,} examples, {verdicts[-1]}; {time.monotonic() - began_s:.0f} s",
            flush=True,
        )
    return int("BROKEN" in verdicts)


def _drop(_: object, __: str, ___: EventDict) -> EventDict:
    """A storm of faults is logged as one, and nobody reads it."""
    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main())
