"""Whether torch.compile pays: the packed forward against the same with its linear steps compiled, in alternating runs.

    python -m tests.bench.compile [--shape base] [--messages 12] [--runs 5] [--threads 1]

Compiled, with dynamic shapes, is all of a layer but attention: the runs of rows of equal length are others in every
slice, and a graph over them would be compiled anew each time. "compiled" is one graph for all layers, their weights
being its arguments; "frozen" has the weights as constants, which Inductor lays out for oneDNN, and a graph for each
layer. Both begin with plain linear layers, so that Inductor chooses what to fuse. A step is one slice of the engine's.
Start-up is the first run's time over a later one's: with nothing cached on disk, and again with what that left there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._inductor import config as inductor_config

from tests.bench.broker import machine
from worker.commands.bench import MAX_TOKENS, alternating_runs
from worker.commands.workload import SHAPES, make_checkpoint, workload
from worker.inference.engine import Engine
from worker.inference.forwards import families
from worker.inference.forwards.attention import RowAttention
from worker.inference.forwards.encoder import Encoder
from worker.inference.forwards.linear import PlainLinear, fuse
from worker.inference.forwards.packed import Packed
from worker.inference.loading import load
from worker.inference.model import Checkpoint

PRECISIONS = ("bf16", "fp32")


class Layer(nn.Module):
    """A layer of the packed forward, with its steps before and after attention compiled."""

    def __init__(self, layer: Any, heads: int, *, frozen: bool) -> None:
        super().__init__()
        attention = layer.attention
        self.heads = heads
        self.qkv = fuse(attention.self.query, attention.self.key, attention.self.value)
        self.out, self.norm_attention = attention.output.dense, attention.output.LayerNorm
        self.up = nn.Sequential(layer.intermediate.dense, layer.intermediate.intermediate_act_fn)
        self.down, self.norm_output = layer.output.dense, layer.output.LayerNorm
        options: Any = {"freezing": frozen}
        self.before_compiled = torch.compile(self.before, dynamic=True, options=options)
        self.after_compiled = torch.compile(self.after, dynamic=True, options=options)

    def before(self, x: Tensor) -> Any:
        """Query, key and value, side by side."""
        return self.qkv(x)

    def after(self, context: Tensor, x: Tensor) -> Any:
        """All that follows attention."""
        x = self.norm_attention(self.out(context) + x)
        return self.norm_output(self.down(self.up(x)) + x)

    def forward(self, x: Tensor, attention: RowAttention, *, chosen_only: bool = False) -> Any:
        """As `worker.inference.forwards.layers` has it."""
        query, key, value = self.before_compiled(x).view(len(x), 3, self.heads, -1).unbind(1)
        if chosen_only:
            query, x = query[attention.chosen], x[attention.chosen]
        return self.after_compiled(attention(query, key, value, chosen_only=chosen_only).flatten(1), x)


class Compiled(Encoder):
    """The packed encoder with such layers."""

    def __init__(self, checkpoint: Checkpoint, *, frozen: bool) -> None:
        super().__init__(checkpoint, PlainLinear)
        model: Any = checkpoint.model
        heads = model.config.num_attention_heads
        self._layers: Any = [Layer(layer, heads, frozen=frozen).eval() for layer in model.base_model.encoder.layer]


def measure(directory: Path, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Start-up and steps a second of all three in one precision."""
    checkpoint = load(str(directory), device="cpu", precision=precision, self_test="off", progress=False)
    forwards = {
        "ours": families.packed(checkpoint),
        "compiled": Packed(checkpoint, Compiled(checkpoint, frozen=False)),
        "frozen": Packed(checkpoint, Compiled(checkpoint, frozen=True)),
    }
    engines = {name: Engine(checkpoint, max_tokens=MAX_TOKENS, forward=f) for name, f in forwards.items()}
    batch = [(request, engines["ours"].encode(request)) for request in workload(arguments.messages)]

    def run(name: str) -> float:
        with inductor_config.patch(freezing=name == "frozen"):  # the tracer asks for it here, not in the options
            began_s = time.perf_counter()
            engines[name].run(batch)
            return time.perf_counter() - began_s

    first = {name: run(name) for name in engines}
    seconds = alternating_runs({name: partial(run, name) for name in engines}, runs=arguments.runs)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    torch._dynamo.reset()  # what a start of the process would find is on disk
    again = {name: run(name) for name in engines}
    work = engines["ours"].run(batch)[1]
    rows = batch[0][1].rows
    logits = {name: forward.logits(rows) for name, forward in forwards.items()}
    return {
        name: {
            "steps_per_s": round(work.forwards / taken_s, 2),
            "times_ours": round(middle["ours"] / taken_s, 3),
            "start_up_s": round(first[name] - taken_s, 1),
            "start_up_again_s": round(again[name] - taken_s, 1),
            "logits_off_by": float(abs(logits[name] - logits["ours"]).max()),
            "seconds": [round(s, 3) for s in seconds[name]],
        }
        for name, taken_s in middle.items()
    } | {"steps": work.forwards, "tokens": work.tokens}


def main() -> None:
    """Print one line of JSON for each precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--messages", type=int, default=12)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dynamo_config.recompile_limit = 64  # "frozen" has two graphs for each layer
    with tempfile.TemporaryDirectory(prefix="xnli-bench-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "inductor")
        directory = make_checkpoint(SHAPES[arguments.shape], Path(folder) / "model")
        for precision in PRECISIONS:
            report = measure(directory, precision, arguments)
            print(json.dumps({"precision": precision, **report, "torch": torch.__version__, "machine": machine()}))


if __name__ == "__main__":
    main()
