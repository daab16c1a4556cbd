"""Let the decoder's own code say which bytes to try next: ``python -m tests.faults.fuzz_atheris -runs=1000000``.

Coverage-guided (libFuzzer, by way of atheris), from the mutants of `tests.faults.fuzz_decode` on, and by its judgement:
a request or a rejection, within 100 ms. Arguments are libFuzzer's (``-runs=N``, ``-max_total_time=SECONDS``,
``-seed=N``). What breaks the promise is written to ``tests/faults/report/`` as ``crash-*``, which as an argument is
tried again. Optional, because atheris has no wheel for every machine.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit(
        "this fuzzer needs atheris (pip install atheris; its wheels are for Linux); tests.faults.fuzz_decode does not"
    )

with atheris.instrument_imports(include=["worker.rules", "worker.avro"]):
    from tests.faults import fuzz_decode

SEEDS = 1_000
RUNS = 1_000_000
# What reaches code that nothing before it reached is kept here, and is where the next run begins.
CORPUS = Path(__file__).with_name("report") / "corpus"


class Judge:
    """Judges one input after the other, and tells of each that is slower than all before."""

    def __init__(self) -> None:
        self._slowest_s = 0.0

    def __call__(self, data: bytes) -> None:
        message = message_of(data)
        _, took_s = fuzz_decode.timed(message)
        if took_s <= self._slowest_s:
            return
        took_s = min(took_s, *(fuzz_decode.timed(message)[1] for _ in range(3)))
        if took_s > fuzz_decode.LIMIT_S:
            raise AssertionError(f"{took_s * 1e3:.0f} ms for {len(data)} bytes")
        if took_s > self._slowest_s:
            self._slowest_s = took_s
            print(f"slowest so far: {took_s * 1e3:.2f} ms, {len(data)} bytes, {data[:40].hex()}", flush=True)


def message_of(data: bytes) -> fuzz_decode.Message:
    """The first byte says how the rest is framed, so that most inputs get past the frame."""
    kind, rest = data[:1], data[1:]
    match kind:
        case b"\x00":
            return rest, ()
        case b"\x01":
            return rest[17:], (("__value_schema_id", rest[:17]),)
        case _:
            return fuzz_decode.FRAME + rest, ()


def main() -> None:
    CORPUS.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    for number in range(SEEDS):
        mutant, _ = fuzz_decode.mutated(rng)
        (CORPUS / f"seed-{number}").write_bytes(b"\x02" + mutant.removeprefix(fuzz_decode.FRAME))
    flags = [word for word in sys.argv[1:] if word.startswith("-")]
    inputs = [word for word in sys.argv[1:] if not word.startswith("-")]
    if not any(flag.startswith(("-runs=", "-max_total_time=")) for flag in flags):
        flags.append(f"-runs={RUNS}")
    ours = ("-max_len=65536", "-timeout=10", f"-artifact_prefix={CORPUS.parent}/")
    atheris.Setup([sys.argv[0], *ours, *flags, *(inputs or [str(CORPUS)])], Judge())
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main()
