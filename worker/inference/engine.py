"""The engine: requests in, outcomes out, on one device.

It computes each distinct row once (`worker.inference.rows`), orders rows by length, cuts them into slices that the
token budget allows, and runs each slice through a `Forward`. A slice mixes pairs of many messages. The rows that some
requests need later share forwards too, round by round (`worker.inference.rounds`).
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from worker.errors import CheckpointError, FatalError, OutOfDeviceMemory, WorkerError
from worker.inference.budget import TokenBudget
from worker.inference.checkpoint_files import first_line
from worker.inference.classification import classified
from worker.inference.forwards import families
from worker.inference.forwards.families import Forward
from worker.inference.model import Checkpoint
from worker.inference.rounds import Asking, in_lockstep
from worker.inference.rows import flatten
from worker.inference.scores import LabelOrder, embed, score
from worker.inference.tokens import Tokens
from worker.messages import Encoded, LongText, ModelIdentity, Outcome, Pooling, Request, Row, Task, Work

log = logging.getLogger("worker.inference")


@dataclass(slots=True)
class _Tally:
    """What a call has done so far, and who hears that it goes on."""

    beat: Callable[[], None]
    rows: int = 0
    computed: int = 0
    tokens: int = 0
    slots: int = 0
    cache_hits: int = 0
    shrinks: int = 0
    forwards: int = 0
    started_s: float = field(default_factory=time.perf_counter)

    def close(self, budget: int) -> Work:
        return Work(
            self.rows,
            self.computed,
            self.tokens,
            self.slots,
            self.cache_hits,
            self.shrinks,
            self.forwards,
            time.perf_counter() - self.started_s,
            budget,
        )


class Engine:
    """A checkpoint at work. `encode` may be called from another thread while `run` runs; `run` from one thread only.

    Args:
        checkpoint: The loaded model.
        max_tokens: Upper bound of the token slots of one forward. The largest single row is always admitted.
        max_request_tokens: How many tokens the rows of one request may have together; None: any number.
        cache_pairs: How many pairs' logits to cache over batches, evicting the least recently used; 0 caches none.
        forward: How to run rows; by default packed where the architecture allows it, else padded.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_tokens: int,
        max_request_tokens: int | None = None,
        cache_pairs: int = 0,
        forward: Forward | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._forward = _open_forward(checkpoint) if forward is None else forward
        self._tokens = Tokens(checkpoint, max_request_tokens=max_request_tokens)
        self._budget = TokenBudget(_room(checkpoint, max_tokens))
        self._cache: OrderedDict[bytes, npt.NDArray[np.float32]] = OrderedDict()
        self._cache_pairs = cache_pairs
        self._shrinks = 0  # not reported yet: a run that fails leaves its own for the next one to report

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint at work."""
        return self._checkpoint

    @property
    def device(self) -> str:
        """Where the model lies, as torch names it."""
        return str(self._checkpoint.device)

    @property
    def precision(self) -> str:
        """What it computes in."""
        return self._checkpoint.precision.value

    @property
    def pooling(self) -> Pooling:
        """What EMBED requests are pooled by that do not say."""
        return self._checkpoint.pooling

    @property
    def identity(self) -> ModelIdentity:
        """The model's name and revision, as results carry them."""
        return self._checkpoint.identity

    @property
    def encode(self) -> Callable[[Request], Encoded]:
        """Tokenises a request, or raises Rejection. Thread-safe against `run`; it keeps no weights alive."""
        return self._tokens.encode

    def run(
        self, requests: Sequence[tuple[Request, Encoded]], beat: Callable[[], None] = lambda: None
    ) -> tuple[list[Outcome], Work]:
        """Compute the outcomes of a batch, in its order. ``beat`` is called before each forward.

        Raises:
            OutOfDeviceMemory: One row alone does not fit into the device's memory.
            Rejection: A message makes the model give infinities or NaN.
            FatalError: The device is unusable for this process.
        """
        tally = _Tally(beat)
        outcomes: dict[int, Outcome] = {}
        asking: dict[int, Asking[Outcome]] = {}
        groups: dict[Pooling | None, list[int]] = {}
        for i, (request, _) in enumerate(requests):
            groups.setdefault(request.pooling if request.task is Task.EMBED else None, []).append(i)
        for pooling, members in groups.items():
            rows = [requests[i][1].rows for i in members]
            for i, own in zip(members, self._results(rows, pooling, tally), strict=True):
                request, encoded = requests[i]
                if encoded.premise is None:
                    outcomes[i] = self._outcome(request, encoded, own)
                else:  # a taxonomy or evidence
                    asking[i] = classified(request, encoded, own, self._tokens, _order(self._checkpoint))
        outcomes |= in_lockstep(asking, partial(self._results, pooling=None, tally=tally))
        tally.shrinks, self._shrinks = self._shrinks, 0
        return [outcomes[i] for i in range(len(requests))], tally.close(self._budget.tokens)

    def warm_up(self, *, is_alone: bool = True) -> None:
        """Run the longest row (on CUDA: as many as the budget allows), so that the first batch is as fast as any.

        Kernels are chosen and loaded, and on CUDA the budget shrinks to what the device holds, and stays there if the
        model ``is_alone``: another one that lies beside it may leave.

        Raises:
            OutOfDeviceMemory: Not even one row of the full length fits.
            CheckpointError: The model fails on its first rows, or gives infinities or NaN.
        """
        request = Request(
            id="warm-up",
            task=Task.EMBED,
            text="a " * self._checkpoint.max_length,
            labels=(),
            hypotheses=(),
            multi_label=False,
            language=next(iter(self._checkpoint.languages), None),
            top_k=None,
            threshold=None,
            long_text=LongText.TRUNCATE,
            pooling=Pooling.MEAN,
            normalize=False,
            attributes={},
        )
        row = self.encode(request).rows[0]
        count = self._budget.tokens // len(row.token_ids) if self._checkpoint.device.type == "cuda" else 1
        tally = _Tally(lambda: None)
        padded = [self.encode(replace(request, text=text)).rows[0] for text in ("a", "a a a")]  # one of the two
        for rows in ([row] * max(1, count), padded):
            slices = partial(self._slices, rows, None if self._checkpoint.order else self.pooling, tally)
            _require_results(slices, rows, self._checkpoint)
        if is_alone:
            self._budget.settle()
        self._shrinks = 0
        work = tally.close(self._budget.tokens)
        log.info(
            "warmed up with %d tokens in %.2f s; up to %d tokens a forward",
            work.tokens,
            work.seconds,
            self._budget.tokens,
        )

    def _outcome(self, request: Request, encoded: Encoded, results: npt.NDArray[np.float32]) -> Outcome:
        if request.task is Task.EMBED:
            return embed(request, results, _lengths(encoded.rows))
        return score(request, results, encoded.windows, _order(self._checkpoint), encoded.spans)

    def _results(
        self, rows: Sequence[Sequence[Row]], pooling: Pooling | None, tally: _Tally
    ) -> list[npt.NDArray[np.float32]]:
        """Logits, or pooled vectors, of the rows of several requests."""
        flat = flatten(rows)
        tally.rows += len(flat.which)
        if pooling is None:
            return flat.restore(self._logits(flat.rows, flat.keys, tally))
        return flat.restore(_after_pooling(self._checkpoint, self._slices(flat.rows, pooling, tally)))

    def _logits(self, rows: Sequence[Row], keys: Sequence[bytes], tally: _Tally) -> npt.NDArray[np.float32]:
        """Logits of distinct rows; those in the cache need no forward."""
        if not self._cache_pairs:
            return self._slices(rows, None, tally)
        found = {key: self._cache[key] for key in keys if key in self._cache}
        missing = [i for i, key in enumerate(keys) if key not in found]
        tally.cache_hits += len(found)
        if missing:
            computed = self._slices([rows[i] for i in missing], None, tally)
            # Copies: a view would keep the whole batch alive.
            found |= {keys[i]: logits.copy() for i, logits in zip(missing, computed, strict=True)}
        self._cache |= found
        for key in found:
            self._cache.move_to_end(key)
        while len(self._cache) > self._cache_pairs:
            self._cache.popitem(last=False)
        return np.stack([found[key] for key in keys])

    def _slices(self, rows: Sequence[Row], pooling: Pooling | None, tally: _Tally) -> npt.NDArray[np.float32]:
        """Logits, or pooled vectors, of rows: longest first, in slices under the token budget."""
        lengths = _lengths(rows)
        order = np.argsort(-lengths, kind="stable")
        parts: list[npt.NDArray[np.float32]] = []
        done = 0
        while done < len(rows):
            rest = order[done:]
            slots = self._forward.slots(lengths[rest])
            count = max(1, int(np.searchsorted(slots, self._budget.tokens, side="right")))
            chosen = [rows[i] for i in rest[:count]]
            held = int(slots[count - 1])
            tally.beat()
            try:
                part = self._forward.logits(chosen) if pooling is None else self._forward.pooled(chosen, pooling)
            except Exception as error:  # noqa: BLE001 (whatever is not about memory is raised again at once)
                why = _out_of_memory(error)
            else:
                parts.append(part)
                done += count
                tally.computed += count
                tally.tokens += int(lengths[rest[:count]].sum())
                tally.slots += held
                tally.forwards += 1
                self._budget.succeed()
                continue
            # Outside the except clause no traceback keeps the failed forward's tensors alive.
            if self._checkpoint.device.type == "cuda":
                torch.cuda.empty_cache()
            if count == 1:
                raise OutOfDeviceMemory(held, f"one row of {held} tokens does not fit into device memory: {why}")
            self._budget.shrink(held)
            self._shrinks += 1
            log.warning("a forward of %d tokens did not fit: now at most %d tokens", held, self._budget.tokens)
        results = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
        results[order] = np.concatenate(parts)
        return results


def _room(checkpoint: Checkpoint, max_tokens: int) -> int:
    """``max_tokens``; on a CPU at most so many that the largest state of a forward has six million numbers.

    The largest state is that of a feed-forward layer, four times the hidden size wide: 2,048 tokens at base size. A
    forward in bfloat16 took a seventh longer for a token with twice as many, a quarter longer with half as many.
    (Besides, glibc takes blocks over 32 MiB from the kernel anew each time, which costs a page fault for every 4 KiB;
    see mallopt, M_MMAP_THRESHOLD.)
    """
    if checkpoint.device.type != "cpu":
        return max_tokens
    return min(max_tokens, 6 * 1024**2 // (4 * checkpoint.hidden_size))


def _order(checkpoint: Checkpoint) -> LabelOrder:
    if checkpoint.order is None:  # `encode` refuses such a request
        raise FatalError(f"{checkpoint.identity.name} has no classification head, yet a request for one was encoded")
    return checkpoint.order


def _open_forward(checkpoint: Checkpoint) -> Forward:
    """The checkpoint's forward. Raises CheckpointError where config.json leaves out or misstates what it needs."""
    try:
        return families.choose(checkpoint)
    except (TypeError, ValueError, AttributeError, RuntimeError, LookupError) as error:
        raise CheckpointError(
            f"{checkpoint.identity.name} cannot be run ({type(error).__name__}: {first_line(error)}): its config.json "
            "leaves out or misstates what its architecture needs; correct it, or copy or download it again"
        ) from error


def _after_pooling(checkpoint: Checkpoint, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(rows, hidden size) through the checkpoint's own modules, if it has any."""
    if checkpoint.after_pooling is None:
        return vectors
    with torch.inference_mode():
        results: torch.Tensor = checkpoint.after_pooling(torch.from_numpy(vectors).to(checkpoint.device))
        return results.numpy(force=True)


def _require_results(
    compute: Callable[[], npt.NDArray[np.float32]], rows: Sequence[Row], checkpoint: Checkpoint
) -> None:
    """Compute the first rows of a checkpoint: what fails on them would fail on every message.

    Raises:
        CheckpointError: it fails, or gives infinities or NaN.
    """
    name = checkpoint.identity.name
    try:
        results = compute()
    except WorkerError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{name} cannot compute {len(rows)} rows of up to {_lengths(rows).max()} tokens ({type(error).__name__}: "
            f"{first_line(error)}): config.json, tokenizer and weights do not fit one another, or model.max_length is "
            "more than the model reads; copy or download the checkpoint again, lower model.max_length, or choose "
            "another"
        ) from error
    if not np.isfinite(results).all():
        raise CheckpointError(
            f"{name} gives infinities or NaN for its first text: its weights are damaged (copy or download them "
            f"again), or too large for {checkpoint.precision} (set model.precision to bf16 or fp32)"
        )


def _lengths(rows: Sequence[Row]) -> npt.NDArray[np.intp]:
    return np.fromiter((len(row.token_ids) for row in rows), dtype=np.intp, count=len(rows))


def _out_of_memory(error: Exception) -> str:
    """The message of an error about too little memory. Any other error is raised.

    Raises:
        FatalError: The device failed for good: every later call of this process would meet the same error.
    """
    text = str(error)
    if (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "can't allocate memory" in text  # the CPU allocator raises a bare RuntimeError
        or "_STATUS_ALLOC_FAILED" in text  # cuBLAS and cuDNN likewise
    ):
        return text.partition("\n")[0]
    if isinstance(error, torch.AcceleratorError):
        raise FatalError(f"the device failed and this process cannot use it any more: {text}") from error
    raise error
