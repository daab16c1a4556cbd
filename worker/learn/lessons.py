"""What the model is taught: pairs of the examples and of what is rehearsed, read and judged by the model as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from worker.errors import Rejection, SettingsError
from worker.learn import training_pairs
from worker.learn.scoring import Asked, Engine
from worker.learn.training_pairs import Judged, Pair
from worker.messages import Encoded, Entailment, LongText, Request, Task

_AT_ONCE: Final = 64  # requests of a batch
_HYPOTHESES: Final = 12  # of a text that is rehearsed
_BESIDE: Final = 6  # of a text that is learnt, of labels that are not
_LEAST_REHEARSED: Final = 100  # texts; or as many as are learnt, where that is more


def rehearsed(requests: Sequence[Request], beside: Sequence[Request], seed: int) -> list[Request]:
    """The texts to rehearse, with the hypotheses that each is asked about.

    A text is asked about its own hypotheses and about those of other texts: what the model says of a text and a label
    that nobody put together is worth keeping too, and a few texts then say a lot about the model. The texts to learn
    from are asked about labels that are rehearsed as well. About a label that is learnt nothing is rehearsed.

    Args:
        requests: to rehearse; those without hypotheses are left out, and what is drawn of them where they are many.
        beside: those of the examples.
        seed: of what is drawn.
    """
    random = Random(seed)  # noqa: S311 (a draw that can be repeated, no secret)
    asking = [request for request in requests if request.hypotheses]
    most = max(_LEAST_REHEARSED, len(beside))
    drawn = random.sample(asking, most) if len(asking) > most else asking
    taught = {hypothesis for request in beside for hypothesis in request.hypotheses}
    known = [one for one in dict.fromkeys(one for request in drawn for one in request.hypotheses) if one not in taught]
    found = []
    for request, own, count in (
        *((request, request.hypotheses, _HYPOTHESES) for request in drawn),
        *((request, (), _BESIDE) for request in beside),
    ):
        kept = [one for one in own if one not in taught]
        others = random.sample(known, min(count, len(known)))
        if asked := list(dict.fromkeys((*kept, *others)))[:count]:
            found.append(replace(request, hypotheses=tuple(asked)))
    random.shuffle(found)
    return found


def learnt(
    engine: Engine, examples: Sequence[Asked], negatives: int, max_tokens: int, step: Callable[[], None]
) -> list[Pair]:
    """The pairs of labelled examples.

    Raises:
        SettingsError: the model cannot read an example.
    """
    found = []
    for one, judged in zip(examples, _judged(engine, [one.request for one in examples], max_tokens), strict=True):
        step()
        if isinstance(judged, Rejection):
            raise SettingsError(f"{one.example.place}: {judged}")
        hypotheses = dict(zip(one.request.labels, one.request.hypotheses, strict=True))
        right = {hypotheses[label] for label in one.example.expected}
        found += training_pairs.labelled(judged, right, negatives)
    return found


def kept(engine: Engine, requests: Sequence[Request], max_tokens: int, step: Callable[[], None]) -> list[Pair]:
    """The pairs of what is rehearsed, save the texts that the model cannot read: it has nothing of them to forget."""
    found = []
    for judged in _judged(engine, requests, max_tokens):
        step()
        if not isinstance(judged, Rejection):
            found += training_pairs.kept(judged)
    return found


def _judged(engine: Engine, requests: Sequence[Request], max_tokens: int) -> Iterator[list[Judged] | Rejection]:
    """Each text with its hypotheses, as the model reads and judges them; or why it cannot."""
    batch: list[tuple[Request, Encoded] | Rejection] = []
    tokens = 0
    for wanted in requests:
        request = _judging(wanted)
        try:
            encoded = engine.encode(request)
        except Rejection as refused:
            batch.append(refused)
            continue
        if batch and (tokens + encoded.tokens > max_tokens or len(batch) >= _AT_ONCE):
            yield from _run(engine, batch)
            batch, tokens = [], 0
        batch.append((request, encoded))
        tokens += encoded.tokens
    yield from _run(engine, batch)


def _run(engine: Engine, batch: Sequence[tuple[Request, Encoded] | Rejection]) -> Iterator[list[Judged] | Rejection]:
    outcomes = iter(engine.run([one for one in batch if not isinstance(one, Rejection)])[0])
    for one in batch:
        if isinstance(one, Rejection):
            yield one
            continue
        outcome = next(outcomes)
        if not isinstance(outcome, Entailment):
            raise TypeError(f"ENTAIL is answered by {type(outcome).__name__}")
        yield [Judged(row, said) for row, said in zip(one[1].rows, outcome.judgements, strict=True)]


def _judging(request: Request) -> Request:
    """The request that asks for the NLI probabilities of the hypotheses: one row each."""
    return replace(
        request,
        task=Task.ENTAIL,
        labels=(),
        multi_label=False,
        long_text=LongText.TRUNCATE,
        label_set=None,
        taxonomy=None,
        thresholds=(),
        evidence=0,
        calibrator=None,
    )
