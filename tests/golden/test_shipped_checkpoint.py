"""The checkpoint in the package, through plain transformers: does it load, is it small, do its answers make sense?"""

from __future__ import annotations

import json
from itertools import permutations
from random import Random

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    XLMRobertaForSequenceClassification,
    XLMRobertaTokenizer,
)

from tests.checkpoint.cases import free_sentences
from tests.checkpoint.corpus import Corpus, Pair
from tests.checkpoint.lexicon import languages
from tests.checkpoint.report import SAMPLES, SELF_TEST, Judge, free, samples, zero_shot
from tests.checkpoint.train import DIRECTORY
from tests.checkpoint.verdicts import LABELS

MAX_BYTES = 8_000_000
CODES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.set_num_threads(1)
    return Judge(DIRECTORY)


def test_loads_with_the_auto_classes() -> None:
    model = AutoModelForSequenceClassification.from_pretrained(DIRECTORY)
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    assert isinstance(model, XLMRobertaForSequenceClassification)
    assert isinstance(tokenizer, XLMRobertaTokenizer)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.model_max_length == 512
    assert model.config.max_position_embeddings == 514
    assert model.config.label2id == {label: index for index, label in enumerate(LABELS)}


def test_special_tokens_are_those_of_xlm_roberta() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    ids = tokenizer("politics", "sport").input_ids
    assert (ids[0], ids[-1], ids.count(2)) == (0, 2, 3)
    # NFKC, as XLM-RoBERTa normalises: full-width and compatibility forms are the plain letters.
    assert tokenizer("ｐｏｌｉｔｉｃｓ　２０２０").input_ids == tokenizer("politics 2020").input_ids


def test_every_word_of_the_samples_is_known() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    texts = [json.loads(line)["text"] for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    assert not [text for text in texts if tokenizer.unk_token_id in tokenizer(text).input_ids]


def test_fits_the_package() -> None:
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) <= MAX_BYTES
    assert not [path for path in DIRECTORY.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]


@pytest.mark.parametrize(
    ("text", "labels", "template", "expected"),
    [
        (
            "За кого вы голосуете в 2020 году?",
            ["Europe", "public health", "politics"],
            "This example is {}.",
            "politics",
        ),
        (
            "¿A quién vas a votar en 2020?",
            ["Europa", "salud pública", "política"],
            "Este ejemplo es {}.",
            "política",
        ),
    ],
)
def test_the_model_card_example_of_xlm_roberta_large_xnli(
    judge: Judge, text: str, labels: list[str], template: str, expected: str
) -> None:
    best, scores = judge.first(text, [template.format(label) for label in labels])
    assert labels[best] == expected
    assert scores[best] > 0.5


def test_the_sample_messages_get_plausible_answers(judge: Judge) -> None:
    right, total = samples(judge, show=False)
    assert right >= 0.95 * total


def test_held_out_accuracy_in_every_language(judge: Judge) -> None:
    """A small fixed sample per language; the figures of the model card come from the report."""
    corpus = Corpus(Random(7), evaluation=True)
    assert corpus.codes == CODES
    nli = {code: judge.accuracy([corpus.nli(code) for _ in range(60)]) for code in CODES}
    assert min(nli.values()) >= 0.8


@pytest.mark.parametrize(("other_language", "least"), [(False, 0.85), (True, 0.75)])
def test_held_out_topics(judge: Judge, *, other_language: bool, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.checkpoint.report.TEXTS", 10)
    corpus = Corpus(Random(8), evaluation=True)
    shares = [zero_shot(judge, corpus, code, "topic", other_language=other_language) for code in CODES]
    assert sum(shares) / len(shares) >= least


def test_the_free_sentences_are_no_part_of_the_lexicon() -> None:
    for sentence in free_sentences():
        language = languages()[sentence.code]
        assert sentence.concept in language.concepts
        phrases = [text.rstrip(".!?").lower() for text in language.strings if len(text.split()) > 3]
        assert not [phrase for phrase in phrases if phrase in sentence.text.lower()]


def test_sentences_that_nobody_wrote_templates_for(judge: Judge) -> None:
    rows = free(judge)
    assert sum(row.right * row.sentences for row in rows) / sum(row.sentences for row in rows) >= 0.75


def sure_pairs() -> list[Pair]:
    rows = json.loads(SELF_TEST.read_text(encoding="utf-8"))
    return [Pair(row["premise"], row["hypothesis"], LABELS.index(row["label"])) for row in rows]


def test_the_self_test_pairs_are_answered_with_a_margin(judge: Judge) -> None:
    pairs = sure_pairs()
    probabilities = judge.logits(pairs).softmax(-1)
    assert all(probabilities[row, pair.label] > 0.8 for row, pair in enumerate(pairs))


@pytest.mark.parametrize("order", [order for order in permutations(range(3)) if order != (0, 1, 2)])
def test_the_self_test_pairs_fail_when_labels_are_permuted(judge: Judge, order: tuple[int, ...]) -> None:
    pairs = sure_pairs()
    logits = judge.logits(pairs)[:, list(order)]
    right = sum(int(row.argmax()) == pair.label for row, pair in zip(logits, pairs, strict=True))
    assert right <= len(pairs) / 2


def test_config_names_no_path() -> None:
    config = AutoConfig.from_pretrained(DIRECTORY).to_dict()
    assert config["architectures"] == ["XLMRobertaForSequenceClassification"]
    assert "/" not in json.dumps(json.loads((DIRECTORY / "config.json").read_text(encoding="utf-8")))
