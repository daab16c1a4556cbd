from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import CheckpointError
from worker.inference import labels
from worker.inference.scores import LabelOrder

PUBLISHED = {
    # config.json as published: (id2label, what it means)
    "joeddav/xlm-roberta-large-xnli": (("contradiction", "neutral", "entailment"), LabelOrder(2, 1, 0)),
    "facebook/bart-large-mnli": (("contradiction", "neutral", "entailment"), LabelOrder(2, 1, 0)),
    "MoritzLaurer/mDeBERTa-v3-base-mnli-xnli": (("entailment", "neutral", "contradiction"), LabelOrder(0, 1, 2)),
    "cross-encoder/nli-*": (("contradiction", "entailment", "neutral"), LabelOrder(1, 2, 0)),
    "typeform/distilbert-base-uncased-mnli": (("ENTAILMENT", "NEUTRAL", "CONTRADICTION"), LabelOrder(0, 1, 2)),
    "MoritzLaurer/bge-m3-zeroshot-v2.0": (("entailment", "not_entailment"), LabelOrder(0, None, 1)),
}


def find(names: tuple[str, ...], stated: tuple[str, ...] | None = None) -> LabelOrder:
    return labels.find(dict(enumerate(names)), {name: i for i, name in enumerate(names)}, len(names), stated)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_orders_are_read_by_name(name: str) -> None:
    names, order = PUBLISHED[name]
    assert find(names) == order


CLASS = st.sampled_from(["entailment", "neutral", "contradiction"])
WRITTEN = {
    "entailment": st.sampled_from(["entailment", "Entailment", "ENTAIL", "entails", "e"]),
    "neutral": st.sampled_from(["neutral", "NEUTRAL", "Neutral ", "n"]),
    "contradiction": st.sampled_from(["contradiction", "Contradict", "CONTRADICTION", "c"]),
    "not_entailment": st.sampled_from(["not_entailment", "Not-Entailment", "not entailment", "non_entailment"]),
}


@given(st.permutations(["entailment", "neutral", "contradiction"]), st.data())
def test_every_order_and_spelling_is_found(meanings: list[str], data: st.DataObject) -> None:
    names = tuple(data.draw(WRITTEN[meaning]) for meaning in meanings)
    order = find(names)
    assert (order.entailment, order.neutral, order.contradiction) == tuple(
        meanings.index(meaning) for meaning in ("entailment", "neutral", "contradiction")
    )
    assert labels.spell(order) == tuple(meanings)


@given(st.permutations(["entailment", "not_entailment"]), st.data())
def test_not_entailment_plays_contradiction(meanings: list[str], data: st.DataObject) -> None:
    order = find(tuple(data.draw(WRITTEN[meaning]) for meaning in meanings))
    assert order == LabelOrder(meanings.index("entailment"), None, meanings.index("not_entailment"))
    assert labels.spell(order) == tuple(meanings)


def test_stated_labels_stand_for_those_of_the_config() -> None:
    assert find(("LABEL_0", "LABEL_1", "LABEL_2"), ("neutral", "contradiction", "entailment")) == LabelOrder(2, 0, 1)


def test_stated_labels_settle_a_contradiction() -> None:
    id2label = {0: "entailment", 1: "neutral", 2: "contradiction"}
    label2id = {"contradiction": 0, "neutral": 1, "entailment": 2}
    with pytest.raises(CheckpointError, match=r"contradicts itself.*set model\.labels"):
        labels.find(id2label, label2id, 3)
    stated = ("contradiction", "neutral", "entailment")
    assert labels.find(id2label, label2id, 3, stated) == LabelOrder(2, 1, 0)


@pytest.mark.parametrize(
    ("names", "stated", "message"),
    [
        (("LABEL_0",), None, "one logit"),
        (("entailment",), ("entailment",), "one logit"),
        (("LABEL_0", "LABEL_1", "LABEL_2"), None, r"no NLI classes: LABEL_0.*set model\.labels"),
        (("negative", "positive"), None, "no NLI classes"),
        (("entailment", "neutral"), None, "no NLI classes"),
        (("entailment", "neutral", "contradiction", "other"), None, "no NLI classes"),
        (("entailment", "entail", "neutral"), None, "no NLI classes"),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("entailment", "contradiction"), "names 2 classes .* 3 logits"),
        (("LABEL_0", "LABEL_1"), ("yes", "no"), r"no NLI classes: yes, no|class names in model\.labels"),
    ],
)
def test_heads_that_cannot_serve_are_refused(
    names: tuple[str, ...], stated: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        find(names, stated)


def test_a_config_that_names_fewer_classes_than_logits_is_refused() -> None:
    with pytest.raises(CheckpointError, match="does not name each of 2 logits"):
        labels.find({0: "entailment", 2: "neutral"}, {"entailment": 0, "neutral": 2}, 2)


def test_a_config_without_label2id_does_not_contradict_itself() -> None:
    assert labels.find({0: "entailment", 1: "not_entailment"}, None, 2) == LabelOrder(0, None, 1)
