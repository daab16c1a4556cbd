"""Memory of a loaded checkpoint in each precision: ``python -m tests.bench.memory --family bart --shape large``.

Each precision is loaded by a process of its own, which answers some messages and then says what it holds and what it
held at most. Its own memory is told from the pages of files that it has mapped (libraries, and weights that are stored
in the format that they are used in): the kernel takes those back where memory is short. The first line is what Python,
torch and the worker's code hold alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.bench import engine
from worker import process
from worker.commands.workload import FAMILIES, SHAPES, answer, make_checkpoint, workload
from worker.inference.precision import Precision

NOTHING = "nothing loaded"


def main() -> None:
    """Measure one precision if told which, else all in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="bart")
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--of", nargs=2, metavar=("DIRECTORY", "PRECISION"), help="this one alone, in this process")
    arguments = parser.parse_args()
    if arguments.of is not None:
        print(held(Path(arguments.of[0]), arguments.of[1]))
        return
    names = [NOTHING, *engine.ours(torch.device("cpu")), Precision.INT4]
    with tempfile.TemporaryDirectory(prefix="xnli-bench-") as directory:
        made = make_checkpoint(SHAPES[arguments.shape], Path(directory), arguments.family)
        weights = sum(file.stat().st_size for file in made.glob("*.safetensors"))
        print(f"{arguments.family}, {arguments.shape} shape, {weights / 1e6:.0f} MB of weights in fp32")
        print("\n| precision | own, MB | of files, MB | together at most, MB |\n|---|--:|--:|--:|")
        for name in names:
            engine.note(name)
            command = [sys.executable, "-m", "tests.bench.memory", "--of", str(made), name]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            print(f"| {name} | {' | '.join(said.split()[-3:])} |", flush=True)


def held(directory: Path, precision: str) -> str:
    """Megabytes that this process holds with a checkpoint that has answered: its own, of files; both at most."""
    if precision != NOTHING:
        loaded = engine.open_engine(directory, torch.device("cpu"), precision)
        answer(loaded, workload(4))
        process.FreedMemory().give_back(time.monotonic())  # as a worker does
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return " ".join(f"{int(status[name].split()[0]) * 1024 / 1e6:.0f}" for name in ("RssAnon", "RssFile", "VmHWM"))


if __name__ == "__main__":
    main()
