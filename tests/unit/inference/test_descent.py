"""Taxonomies through the engine, over a null model that knows each node's logits."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import families
from tests.builders import classify
from tests.examples import examples
from worker.errors import Reason, Rejection
from worker.inference.engine import Engine
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.inference.rows import row_key
from worker.inference.tokens import Tokens
from worker.messages import Classification, Encoded, LabelScore, LongText, Pooling, Request, Row, Taxonomy, Work
from worker.rules.calibration import Curves, Platt


@functools.cache
def checkpoint() -> Checkpoint:
    directory = families.checkpoint("xlm-roberta")
    return load(str(directory), device="cpu", precision="fp32", max_length=64, self_test="off", progress=False)


class Known:
    """A model that knows the logits of a request's rows: (contradiction, neutral, entailment), in the flat order."""

    def __init__(self) -> None:
        order = checkpoint().order
        assert order is not None
        assert order.neutral is not None
        self._places = [order.contradiction, order.neutral, order.entailment]
        self._known: dict[bytes, npt.NDArray[np.float32]] = {}

    def learn(self, flat: Encoded, logits: npt.NDArray[np.float32]) -> None:
        ordered = np.empty_like(logits)
        ordered[:, self._places] = logits
        self._known = dict(zip(map(row_key, flat.rows), ordered, strict=True))
        if len(self._known) < len(flat.rows):
            pytest.fail("two hypotheses have the same tokens")

    def slots(self, lengths: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        return np.cumsum(lengths)

    def logits(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
        return np.stack([self._known[row_key(row)] for row in rows])

    def pooled(self, rows: Sequence[Row], pooling: Pooling) -> npt.NDArray[np.float32]:
        raise NotImplementedError


@functools.cache
def known() -> tuple[Engine, Known]:
    model = Known()
    return Engine(checkpoint(), max_tokens=4096, forward=model), model


def tree(names: str, beam: int = 1, **fields: Any) -> Request:
    """``"a ab ac b"`` is a with ab and ac below it, and b: a node's parent is the node without its last letter."""
    labels = names.split()
    parents = tuple(labels.index(name[:-1]) if len(name) > 1 else -1 for name in labels)
    return classify("text", *labels, template="about {}", taxonomy=Taxonomy(parents, beam), **fields)


def logits(entailment: Sequence[float], **columns: Sequence[float]) -> npt.NDArray[np.float32]:
    nothing = [0.0] * len(entailment)
    return np.array(
        [columns.get("contradiction", nothing), columns.get("neutral", nothing), entailment], dtype=np.float32
    ).T


def run(request: Request, given: npt.NDArray[np.float32]) -> tuple[Classification, Work]:
    engine, model = known()
    model.learn(engine.encode(replace(request, taxonomy=None)), given)
    (outcome,), work = engine.run([(request, engine.encode(request))])
    assert isinstance(outcome, Classification)
    return outcome, work


def scores(labels: Sequence[LabelScore]) -> dict[str, float]:
    return {label.label: label.score for label in labels}


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def test_where_labels_compete_a_leaf_scores_the_product_along_its_path() -> None:
    request = tree("a b aa ab ba bb", beam=2)
    outcome, work = run(request, logits([1.0, 0.0, 2.0, 0.0, 5.0, 4.0]))
    assert work.rows == 6
    a, b = sigmoid(1), sigmoid(-1)
    expected = {"aa": a * sigmoid(2), "ab": a * sigmoid(-2), "ba": b * sigmoid(1), "bb": b * sigmoid(-1)}
    assert scores(outcome.labels) == pytest.approx(expected)
    assert [label.label for label in outcome.labels] == sorted(expected, key=lambda name: -expected[name])
    assert [step.label for step in outcome.labels[0].path] == ["a", "aa"]
    assert [step.score for step in outcome.labels[0].path] == pytest.approx([a, sigmoid(2)])
    assert sum(label.score for label in outcome.labels) == pytest.approx(1)


def test_only_the_best_are_followed() -> None:
    request = tree("a b c aa ab ba bb ca cb")
    outcome, work = run(request, logits([1.0, 2.0, 0.0, *range(6)]))
    assert {label.label for label in outcome.labels} == {"ba", "bb"}
    assert work.rows == 3 + 2
    assert work.forwards == 2


def test_leaves_lie_at_any_depth() -> None:
    request = tree("a b c aa ab aaa aab", beam=2)
    outcome, work = run(request, logits([1.0, 0.9, 0.0, 3.0, 0.0, 0.0, 0.0]))
    assert {label.label: len(label.path) for label in outcome.labels} == {"b": 1, "c": 1, "ab": 2, "aaa": 3, "aab": 3}
    assert sum(label.score for label in outcome.labels) == pytest.approx(1)
    assert work.rows == 7
    first, _ = run(tree("a b aa ab"), logits([0.0, 1.0, 9.0, 9.0]))
    assert scores(first.labels) == pytest.approx({"b": sigmoid(1)}), "the best of the level is a leaf"


def test_a_label_without_siblings_is_weighed_against_its_contradiction() -> None:
    outcome, _ = run(tree("a b aa"), logits([1.0, 0.0, 2.0], contradiction=[0.0, 0.0, 1.5]))
    assert scores(outcome.labels) == pytest.approx({"b": sigmoid(-1), "aa": sigmoid(1) * sigmoid(0.5)})


def test_equal_leaves_keep_the_order_of_the_request() -> None:
    outcome, _ = run(tree("a b aa ab ba bb", beam=2), logits([0.0] * 6))
    assert [label.label for label in outcome.labels] == ["aa", "ab", "ba", "bb"]


@pytest.mark.parametrize("threshold", [None, 0.5, 0.8])
def test_each_by_itself_those_that_pass_are_followed(threshold: float | None) -> None:
    request = tree("a b c aa ab ba bb ca cb", multi_label=True, threshold=threshold)
    outcome, work = run(request, logits([1.0, 2.0, -1.0, 3.0, -3.0, -1.0, -2.0, 9.0, 9.0]))
    if threshold is None:  # the leaves under a and b, and b, under which none passes
        expected = {"aa": sigmoid(3), "b": sigmoid(2), "ba": sigmoid(-1), "bb": sigmoid(-2), "ab": sigmoid(-3)}
    else:
        expected = {"aa": sigmoid(3), "b": sigmoid(2)} if threshold == 0.5 else {"b": sigmoid(2)}
    assert scores(outcome.labels) == pytest.approx(expected)
    assert [label.label for label in outcome.labels] == sorted(expected, key=lambda name: -expected[name])
    assert work.rows == (7 if threshold != 0.8 else 5)
    assert not outcome.abstained


def test_each_by_itself_none_may_pass() -> None:
    outcome, work = run(tree("a b aa ba", multi_label=True), logits([-1.0, -2.0, 9.0, 9.0]))
    assert outcome.abstained
    assert outcome.labels == ()
    assert work.rows == 2


def test_labels_have_thresholds_of_their_own() -> None:
    request = tree("a b aa ab ba", multi_label=True, threshold=0.9, thresholds=(0.6, 0.6, None, 0.2, None))
    outcome, _ = run(request, logits([1.0, 1.0, 2.0, -1.0, 3.0]))
    assert set(scores(outcome.labels)) == {"ab", "ba"}


def test_what_is_neutral_is_not_followed() -> None:
    request = tree("a b aa ba", multi_label=True, abstain_on_neutral=0.8)
    outcome, work = run(request, logits([2.0, 2.0, 3.0, 3.0], neutral=[9.0, 0.0, 0.0, 0.0]))
    assert set(scores(outcome.labels)) == {"ba"}
    assert work.rows == 3


def test_thresholds_and_top_k_choose_among_leaves() -> None:
    given = logits([3.0, 0.0, 2.0, 1.0, 0.0, 0.0])
    whole, _ = run(tree("a b aa ab ac ba"), given)
    cut, _ = run(tree("a b aa ab ac ba", top_k=1), given)
    assert cut.labels == whole.labels[:1]
    none, _ = run(tree("a b aa ab ac ba", threshold=0.9), given)
    assert none.abstained


def test_windows_are_those_beside_the_longest_label_of_all() -> None:
    names = "a b aa ab " + "b" + "x" * 2
    labels = (*names.split()[:4], "b with a longer name")
    request = classify(
        " ".join(f"word {n}" for n in range(60)),
        *labels,
        taxonomy=Taxonomy((-1, -1, 0, 0, 1), 2),
        long_text=LongText.WINDOW_MAX,
    )
    flat = Tokens(checkpoint()).encode(replace(request, taxonomy=None))
    given = np.random.default_rng(0).normal(size=(len(flat.rows), 3)).astype(np.float32)
    outcome, work = run(request, given)
    assert work.rows == len(flat.rows)
    assert all(label.window is not None for label in outcome.labels)


SHAPES = [(5, 6, 10), (6, 5, 10), (10, 10, 3), (3, 10, 10), (4, 5, 15)]


def full_tree(shape: Sequence[int], beam: int) -> tuple[Request, list[list[int]]]:
    """A tree with so many children at each level, and its nodes level by level."""
    parents: list[int] = []
    levels: list[list[int]] = []
    above = [-1]
    for width in shape:
        level = []
        for parent in above:
            for _ in range(width):
                level.append(len(parents))
                parents.append(parent)
        levels.append(level)
        above = level
    # Letters that every vocabulary has: a label's own tokens tell it from the others.
    names = (" ".join("abcd"[node >> shift & 3] for shift in range(0, 10, 2)) for node in range(len(parents)))
    request = classify("text", *names)
    return replace(request, taxonomy=Taxonomy(tuple(parents), beam)), levels


@settings(max_examples=examples(20), deadline=None, derandomize=True)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.01, 1.0, 20.0]))
def test_parents_that_score_as_their_best_leaf_lead_to_the_leaf_of_flat_scoring(
    shape: tuple[int, ...], seed: int, spread: float
) -> None:
    request, levels = full_tree(shape, beam=1)
    assert request.taxonomy is not None
    entailment = np.zeros(len(request.labels))
    leaves = levels[-1]
    assert len(leaves) == 300
    entailment[leaves] = np.random.default_rng(seed).normal(size=300, scale=spread)
    parents = np.array(request.taxonomy.parents)
    entailment[parents[parents >= 0]] = -np.inf
    for level in reversed(levels[1:]):
        np.maximum.at(entailment, parents[level], entailment[level])
    outcome, work = run(request, logits(entailment.tolist()))
    best_leaf = leaves[int(np.float32(entailment[leaves]).argmax())]
    assert outcome.labels[0].label == request.labels[best_leaf]
    assert work.rows <= 300 / 4


def test_the_dearest_way_down_is_known_before_anything_is_computed() -> None:
    request = tree("a b aa ab ba bb bc aaa", beam=1)
    each = len(Tokens(checkpoint()).encode(tree("a")).rows[0].token_ids)
    tokens = Tokens(checkpoint())
    lengths = [len(row.token_ids) for row in tokens.encode(replace(request, taxonomy=None)).rows]
    assert max(lengths) >= each
    most = sum(lengths[:2]) + sum(lengths[4:7]) + lengths[7]  # all of the top; b's children; aa's only child
    assert Tokens(checkpoint(), max_request_tokens=most).encode(request).tokens == sum(lengths[:2])
    with pytest.raises(Rejection, match=rf"^{most} tokens in 6 rows") as refused:
        Tokens(checkpoint(), max_request_tokens=most - 1).encode(request)
    assert refused.value.reason is Reason.TOO_LARGE
    with pytest.raises(Rejection, match=rf"^{sum(lengths)} tokens in 8 rows"):
        Tokens(checkpoint(), max_request_tokens=sum(lengths) - 1).encode(replace(request, multi_label=True))


def test_a_label_at_the_bottom_that_finds_no_room_is_refused_at_once() -> None:
    request = classify("text", "a", "long " * 80, taxonomy=Taxonomy((-1, 0), 1))
    with pytest.raises(Rejection, match="leaves 0 of the model's 64"):
        Tokens(checkpoint()).encode(request)


def test_requests_go_from_level_to_level_together() -> None:
    deep = tree("a b aa ab aaa aab")
    given = logits([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    engine, model = known()
    model.learn(engine.encode(replace(deep, taxonomy=None)), given)
    flat = classify("text", "a", "b", template="about {}")
    requests = [deep, flat, tree("a b aa ab"), replace(deep, multi_label=True, threshold=0.4)]
    together, work = engine.run([(one, engine.encode(one)) for one in requests])
    assert work.forwards == 3
    assert work.rows == 6 + 2 + 4 + 6
    assert work.computed == 6
    assert together == [engine.run([(one, engine.encode(one))])[0][0] for one in requests]


def test_a_calibration_decides_which_labels_are_followed() -> None:
    request = tree("a b aa ba", multi_label=True)
    raw = logits([3.0, 3.0, 3.0, 3.0])
    assert {label.label for label in run(request, raw)[0].labels} == {"aa", "ba"}
    doubt, trust = Platt(1.0, -5.0), Platt(1.0, 0.0)
    made = replace(request, calibrator=Curves((doubt, trust, trust, None)))
    outcome, work = run(made, raw)
    assert [(label.label, label.calibrated) for label in outcome.labels] == [("ba", None)]
    assert work.rows == 3  # what is below a is not even asked
    strict = replace(request, thresholds=(0.1, 0.99, None, None), calibrator=Curves((doubt, trust, trust, None)))
    (found,) = run(strict, raw)[0].labels
    assert found.label == "aa"
    assert found.calibrated == pytest.approx(sigmoid(3))
