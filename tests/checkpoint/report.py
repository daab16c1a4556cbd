"""Measures the shipped checkpoint and writes its model card: `python -m tests.checkpoint.report`.

Every figure is from the held-out side of `corpus`, save those that say otherwise: the sentences of `free.tsv`, the
demo's sample messages and the start-up self-test. The checkpoint is loaded as any user of transformers would load it.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean, median

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tests.checkpoint.cases import free_choices, free_sentences, planted
from tests.checkpoint.corpus import Corpus, Pair
from tests.checkpoint.train import DIRECTORY, SEED, STAGES
from tests.checkpoint.verdicts import CLOSE, CONTRADICTION, ENTAILMENT, LABELS, group

PACKAGE = DIRECTORY.parents[1]
SAMPLES = PACKAGE / "demo" / "samples.jsonl"
SELF_TEST = PACKAGE / "inference" / "selftest.json"
CARD = Path(__file__).parent / "card.md"

NLI_PAIRS = 300
TEXTS = 100
TOPIC_LABELS = 6
LENGTHS = (1, 4, 16)
LONG_TEXTS = 20
BATCH_PAIRS = 128


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: shares of right answers between 0 and 1."""

    language: str
    nli: float
    topic: float
    topic_other_language: float
    sentiment: float
    urgency: float


@dataclass(frozen=True, slots=True)
class LengthRow:
    """How well the topic of one sentence among `sentences` is found, over all languages.

    `tokens` is the mean length; `multi_label` and `single_label` are shares of texts whose topic scores highest of six
    labels; `present` and `absent` the median multi-label score of the topic and of the others.
    """

    sentences: int
    tokens: float
    multi_label: float
    single_label: float
    present: float
    absent: float


@dataclass(frozen=True, slots=True)
class FreeRow:
    """Share of the sentences of `free.tsv` in a language, or of one group in English, whose concept scores highest."""

    what: str
    sentences: int
    right: float


class Judge:
    """The checkpoint as plain transformers sees it."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
        self.model: PreTrainedModel = (
            AutoModelForSequenceClassification.from_pretrained(directory, use_safetensors=True).float().eval()
        )
        found = {str(name).lower(): int(index) for index, name in self.model.config.id2label.items()}
        if tuple(sorted(found, key=lambda name: found[name])) != LABELS:
            raise ValueError(f"{directory}: classes are {found}, expected {LABELS}")

    @torch.inference_mode()
    def logits(self, pairs: list[Pair]) -> Tensor:
        """Logits of shape (pairs, 3), float32, in the order of `LABELS`."""
        order = sorted(range(len(pairs)), key=lambda row: len(pairs[row].premise) + len(pairs[row].hypothesis))
        result = torch.empty(len(pairs), len(LABELS))
        for start in range(0, len(order), BATCH_PAIRS):
            rows = order[start : start + BATCH_PAIRS]
            inputs = self.tokenizer(
                [pairs[row].premise for row in rows],
                [pairs[row].hypothesis for row in rows],
                padding=True,
                truncation="only_first",
                return_tensors="pt",
            )
            result[rows] = self.model(**inputs).logits.float()
        return result

    def accuracy(self, pairs: list[Pair]) -> float:
        """Share of pairs whose class is the most probable one."""
        right = self.logits(pairs).argmax(-1) == torch.tensor([pair.label for pair in pairs])
        return float(right.float().mean())

    def first(self, text: str, hypotheses: list[str], *, multi_label: bool = False) -> tuple[int, list[float]]:
        """The best hypothesis and the score of each, as transformers' zero-shot pipeline defines the score."""
        logits = self.logits([Pair(text, hypothesis, ENTAILMENT) for hypothesis in hypotheses])
        if multi_label:
            scores = logits[:, [CONTRADICTION, ENTAILMENT]].softmax(-1)[:, 1]
        else:
            scores = logits[:, ENTAILMENT].softmax(-1)
        return int(scores.argmax()), scores.tolist()


def choices(corpus: Corpus, code: str, labels_code: str, group: str) -> tuple[str, list[str]]:
    """A held-out text with hypotheses, the right one first: six topics, or both concepts of another group."""
    language = corpus.languages[code]
    names = [name for name, concept in language.concepts.items() if concept.group == group]
    right = corpus.rng.choice(names)
    wrong = [name for name in names if name != right and frozenset({name, right}) not in CLOSE]
    chosen = [right, *corpus.rng.sample(wrong, min(len(wrong), TOPIC_LABELS - 1))]
    text = corpus.text(language, language.concepts[right]).text
    return text, [corpus.hypothesis(labels_code, code, corpus.label_of(labels_code, name)) for name in chosen]


def zero_shot(judge: Judge, corpus: Corpus, code: str, group: str, *, other_language: bool) -> float:
    """Share of held-out texts whose right label scores highest."""
    right = 0
    for _ in range(TEXTS):
        others = [each for each in corpus.codes if each != code]
        text, hypotheses = choices(corpus, code, corpus.rng.choice(others) if other_language else code, group)
        right += judge.first(text, hypotheses)[0] == 0
    return right / TEXTS


def measure(judge: Judge) -> list[Row]:
    """A row for each language."""
    corpus = Corpus(Random(SEED + 1), evaluation=True)
    return [
        Row(
            language=corpus.languages[code].name,
            nli=judge.accuracy([corpus.nli(code) for _ in range(NLI_PAIRS)]),
            topic=zero_shot(judge, corpus, code, "topic", other_language=False),
            topic_other_language=zero_shot(judge, corpus, code, "topic", other_language=True),
            sentiment=zero_shot(judge, corpus, code, "sentiment", other_language=False),
            urgency=zero_shot(judge, corpus, code, "urgency", other_language=False),
        )
        for code in corpus.codes
    ]


def by_length(judge: Judge) -> list[LengthRow]:
    """A row for each length."""
    rows = []
    for sentences in LENGTHS:
        corpus = Corpus(Random(SEED + 2), evaluation=True)
        multi, single, present, absent, tokens = [], [], [], [], []
        for code in corpus.codes:
            for _ in range(LONG_TEXTS):
                case = planted(corpus, code, sentences)
                best, scores = judge.first(case.text, list(case.hypotheses), multi_label=True)
                multi.append(best == 0)
                single.append(judge.first(case.text, list(case.hypotheses))[0] == 0)
                present.append(scores[0])
                absent.extend(scores[1:])
                tokens.append(len(judge.tokenizer(case.text).input_ids))
        rows.append(LengthRow(sentences, fmean(tokens), fmean(multi), fmean(single), median(present), median(absent)))
    return rows


def free(judge: Judge) -> list[FreeRow]:
    """A row for each group in English, and one for each other language."""
    corpus = Corpus(Random(SEED + 3), evaluation=True)
    right: dict[str, list[bool]] = {}
    for sentence in free_sentences():
        name = corpus.languages[sentence.code].name
        what = f"{name}, {group(sentence.concept)}" if sentence.code == "en" else name
        right.setdefault(what, []).append(judge.first(sentence.text, free_choices(corpus, sentence))[0] == 0)
    return [FreeRow(what, len(each), fmean(each)) for what, each in right.items()]


def length_table(rows: list[LengthRow]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| sentences | tokens | multi-label, first | single label, first | score of the topic | of other labels |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.sentences} | {row.tokens:.0f} | {row.multi_label:.1%} | {row.single_label:.1%} | "
        f"{row.present:.3f} | {row.absent:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def free_table(rows: list[FreeRow]) -> str:
    """The rows as a Markdown table."""
    lines = ["| sentences | how many | right |", "|---|---:|---:|"]
    lines += [f"| {row.what} | {row.sentences} | {row.right:.0%} |" for row in rows]
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table with the mean in the last line."""
    lines = [
        f"| language | NLI, 3 classes | topic, {TOPIC_LABELS} labels | in another language | sentiment | urgency |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    values = [(row.nli, row.topic, row.topic_other_language, row.sentiment, row.urgency) for row in rows]
    means = tuple(math.fsum(column) / len(column) for column in zip(*values, strict=True))
    for name, figures in zip([*(row.language for row in rows), "**mean**"], [*values, means], strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{figure:.1%}" for figure in figures) + " |")
    return "\n".join(lines)


def samples(judge: Judge, *, show: bool) -> tuple[int, int]:
    """How many of the demo's classifications and entailments come out as expected, of how many.

    Expected are, divided by commas: the best label; with `multi_label`, every label of at least one half; for ENTAIL,
    the class of each hypothesis.
    """
    right = total = 0
    for line in SAMPLES.read_text(encoding="utf-8").splitlines():
        request = json.loads(line)
        expected = request["attributes"].get("expected")
        if request.get("task") == "ENTAIL":
            pairs = [Pair(request["text"], hypothesis, ENTAILMENT) for hypothesis in request["hypotheses"]]
            probabilities = judge.logits(pairs).softmax(-1)
            answer = ",".join(LABELS[index] for index in probabilities.argmax(-1).tolist())
            detail = " ".join(f"{value:.2f}" for value in probabilities.max(-1).values.tolist())
        elif request.get("task") != "EMBED":
            template = request.get("hypothesis_template", "This example is {}.")
            hypotheses = [template.format(label) for label in request["labels"]]
            several = request.get("multi_label", False)
            best, scores = judge.first(request["text"], hypotheses, multi_label=several)
            chosen = [label for label, score in zip(request["labels"], scores, strict=True) if score >= 0.5]
            answer = ",".join(chosen) if several else request["labels"][best]
            detail = " ".join(f"{label}={score:.2f}" for label, score in zip(request["labels"], scores, strict=True))
        else:
            continue
        total += 1
        right += answer == expected
        if show:
            print(f"{'  ' if answer == expected else '! '}{request['id']:<15} {request['text']}\n       {detail}")
    return right, total


def self_test(judge: Judge) -> list[float]:
    """The probability of the right class for each pair of the worker's start-up self-test."""
    rows = json.loads(SELF_TEST.read_text(encoding="utf-8"))
    pairs = [Pair(row["premise"], row["hypothesis"], LABELS.index(row["label"])) for row in rows]
    probabilities = judge.logits(pairs).softmax(-1)
    return [float(probabilities[row, pair.label]) for row, pair in enumerate(pairs)]


def main() -> None:
    """Measure, print, and write README.md and report.json beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="the checkpoint (default: the package's)")
    parser.add_argument("--samples", action="store_true", help="show the answer to every sample message, and stop")
    arguments = parser.parse_args()
    judge = Judge(arguments.directory)
    right, total = samples(judge, show=arguments.samples)
    sure = self_test(judge)
    print(f"sample messages answered as expected: {right} of {total}")
    print(f"self-test: least probability of the right class {min(sure):.3f}")
    if arguments.samples:
        return
    rows, lengths, free_rows = measure(judge), by_length(judge), free(judge)
    print("\n\n".join((table(rows), length_table(lengths), free_table(free_rows))))
    report = {
        "rows": [asdict(row) for row in rows],
        "lengths": [asdict(row) for row in lengths],
        "free": [asdict(row) for row in free_rows],
        "samples": {"right": right, "total": total},
        "self_test_least_probability": round(min(sure), 4),
    }
    (arguments.directory / "report.json").write_text(
        json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    figures = {
        "table": table(rows),
        "lengths": length_table(lengths),
        "free": free_table(free_rows),
        "long_texts": str(LONG_TEXTS),
        "parameters": f"{judge.model.num_parameters():,}",
        "pieces": f"{len(judge.tokenizer):,}",
        "stages": ", ".join(f"{stage.pairs:,}" for stage in STAGES),
        "samples": f"{right} of {total}",
        "nli_pairs": str(NLI_PAIRS),
        "texts": str(TEXTS),
    }
    card = CARD.read_text(encoding="utf-8")
    for name, value in figures.items():
        card = card.replace("{{" + name + "}}", value)
    (arguments.directory / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
