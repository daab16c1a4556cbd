"""Word vectors that mean the same in every language, from which the model's word embeddings start.

The lexicon says which strings belong together: the labels, sentences and keywords of a concept, the rows of the NLI
part. A bag of word vectors learns to tell these meanings apart in seconds, as fastText does for text classification
(Joulin et al. 2016); a transformer that starts from them has only the comparison of two texts left to learn.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional
from transformers import XLMRobertaTokenizer

from tests.checkpoint.lexicon import Language, languages
from tests.checkpoint.verdicts import PARENTS

EPOCHS = 25
RATE = 0.02
BATCH = 256
NOISE = 0.1  # what is not learnt: small beside the meaning, enough to tell two words of one meaning apart
SCALE = 0.05  # standard deviation of the result; positions start at 0.02 and should matter less than words


def meanings(language: Language) -> Iterator[tuple[str, str]]:
    """Each string of the language with the name of its meaning."""
    for concept in language.concepts.values():
        shared = concept.openings if concept.group in {"topic", "intent"} else ()  # others belong to opposite concepts
        for text in (*concept.labels * 3, *shared, *concept.endings, *concept.sentences, *concept.words):
            yield text, concept.name
    for name, parent in PARENTS.items():
        for text in language.parents[name]:
            yield from ((text, child) for child in sorted(parent.children))
    for text in language.harmless:
        yield text, "harmless"
    for text in language.neutral:
        yield text, "neutral"
    for index, text in enumerate(language.others):
        yield text, f"other {index}"
    yield from _statements(language)


def _statements(language: Language) -> Iterator[tuple[str, str]]:
    """Those of the NLI part."""
    yield language.someone, "someone"
    for index, text in enumerate(language.subjects):
        yield text, f"subject {index}"
    for index, activity in enumerate(language.activities):
        yield activity.statement, f"activity {index}"
        yield activity.paraphrase, f"activity {index}"
        yield activity.negation, f"not activity {index}"
        yield activity.opposite, f"not activity {index}"
        yield activity.detail, f"detail of activity {index}"
    for index, situation in enumerate(language.situations):
        yield situation.premise, f"situation {index}"
        yield situation.entailed, f"situation {index}"
        yield situation.contradicted, f"not situation {index}"
        yield situation.detail, f"detail of situation {index}"


def names() -> dict[str, int]:
    """Every meaning and its number; the same meanings in every language."""
    found = (name for language in languages().values() for _, name in meanings(language))
    return {name: index for index, name in enumerate(dict.fromkeys(found))}


def train(tokenizer: XLMRobertaTokenizer, hidden: int) -> Tensor:
    """Vectors of shape (pieces, hidden), float32."""
    examples = [example for language in languages().values() for example in meanings(language)]
    numbers = names()
    bags = tokenizer([text for text, _ in examples], add_special_tokens=False).input_ids
    targets = torch.tensor([numbers[name] for _, name in examples])
    vectors = torch.nn.EmbeddingBag(len(tokenizer), hidden, mode="mean", sparse=True)
    torch.nn.init.normal_(vectors.weight, std=NOISE)
    classes = torch.nn.Linear(hidden, len(numbers))
    optimizers = (
        torch.optim.SparseAdam(vectors.parameters(), lr=RATE),
        torch.optim.Adam(classes.parameters(), lr=RATE),
    )
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(examples)).split(BATCH):  # type: ignore[no-untyped-call]  # torch ships it untyped
            chosen = [bags[row] for row in rows.tolist()]
            flat = torch.tensor([piece for bag in chosen for piece in bag])
            starts = torch.tensor([0, *(len(bag) for bag in chosen[:-1])]).cumsum(0)
            loss = functional.cross_entropy(classes(vectors(flat, starts)), targets[rows])
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
            for optimizer in optimizers:
                optimizer.step()  # type: ignore[no-untyped-call]  # torch ships it untyped
    weight = vectors.weight.detach()
    return weight * (SCALE / weight.std())
