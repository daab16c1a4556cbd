"""Training by transformers' Trainer, in a few steps: what changes, what does not, and when it ends."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import families
from worker.errors import SettingsError
from worker.inference.engine import Engine
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.learn import training
from worker.learn.training import Epoch, Plan
from worker.learn.training_pairs import CONTRADICTED, ENTAILED, Pair, Target
from worker.messages import Entailment, LongText, Pooling, Request, Task

PREMISES = ("the cat sleeps", "rain falls on the town", "we won the game", "prices rise again")
HYPOTHESES = ("it is about animals", "it is about weather", "it is about sport", "it is about money")


def checkpoint_of(family: str, **options: Any) -> Checkpoint:
    return load(str(families.checkpoint(family, **options)), device="cpu", precision="fp32", self_test="off")


def request(premise: str, language: str | None = None) -> Request:
    return Request(
        id="1",
        task=Task.ENTAIL,
        text=premise,
        labels=(),
        hypotheses=HYPOTHESES,
        multi_label=False,
        language=language,
        top_k=None,
        threshold=None,
        long_text=LongText.TRUNCATE,
        pooling=Pooling.MEAN,
        normalize=True,
        attributes={},
    )


def pairs(checkpoint: Checkpoint) -> list[Pair]:
    engine = Engine(checkpoint, max_tokens=1024)
    language = "en" if checkpoint.languages else None
    return [
        Pair(row, ENTAILED if premise == hypothesis else CONTRADICTED, 1.0)
        for premise, text in enumerate(PREMISES)
        for hypothesis, row in enumerate(engine.encode(request(text, language)).rows)
    ]


def train(checkpoint: Checkpoint, plan: Plan, scratch: Path, held_out: bool = False) -> list[Epoch]:
    given = pairs(checkpoint)
    return training.train(
        checkpoint,
        given,
        given[:4] if held_out else (),
        training.resolved(checkpoint, plan),
        scratch,
        lambda _steps, _epoch: None,
    )


def changed(before: dict[str, torch.Tensor], checkpoint: Checkpoint) -> set[str]:
    after = checkpoint.model.state_dict()
    assert after.keys() == before.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in checkpoint.model.state_dict().items()}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in {"xlm-roberta", "bart"} else pytest.mark.acceptance)
        for name in families.FAMILIES
    ],
)
@pytest.mark.parametrize("method", ["lora", "layers", "full"])
def test_every_family_learns_by_every_method(family: str, method: Any, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(family)
    before = weights(checkpoint)
    epochs = train(checkpoint, Plan(method, learning_rate=3e-3, epochs=6, batch_pairs=8), tmp_path)
    assert len(epochs) == 6
    assert epochs[-1].loss < epochs[0].loss
    moved = changed(before, checkpoint)
    assert moved
    if method == "lora":  # what a word means is learnt too, save where two halves share the embeddings
        words = {name for name in moved if before[name].shape[0] == checkpoint.model.config.vocab_size}
        assert bool(words) != checkpoint.model.config.is_encoder_decoder
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())
    assert not checkpoint.model.training


def test_of_the_layers_those_chosen_change_and_the_head(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("xlm-roberta")
    before = weights(checkpoint)
    train(checkpoint, Plan("layers", layers=(1,), epochs=3), tmp_path)
    moved = changed(before, checkpoint)
    assert {name for name in before if ".layer.1." in name or name.startswith("classifier.")} >= moved
    assert {name.split(".")[0] for name in moved} == {"roberta", "classifier"}


@pytest.mark.parametrize("method", ["lora", "layers", "full"])
def test_weights_go_a_share_of_the_way_to_those_trained(method: Any, tmp_path: Path) -> None:
    found = []
    for interpolation in (0.0, 0.25, 1.0):
        checkpoint = checkpoint_of("xlm-roberta")
        plan = Plan(method, learning_rate=3e-3, epochs=2, interpolation=interpolation)
        former = weights(checkpoint)
        train(checkpoint, plan, tmp_path)
        found.append(weights(checkpoint))
    unmoved, between, trained = found
    for name, weight in former.items():
        assert torch.equal(unmoved[name], weight)
        assert torch.allclose(between[name], weight.lerp(trained[name], 0.25), atol=1e-6)
    assert any(not torch.equal(weight, former[name]) for name, weight in trained.items())


def test_a_layer_that_is_not_there_is_told() -> None:
    with pytest.raises(SettingsError, match=r"--layers: .* has no layer 2; its 2 are called 0 to 1"):
        training.resolved(checkpoint_of("xlm-roberta"), Plan("layers", layers=(0, 2)))


@pytest.mark.parametrize("family", ["xlm-roberta", "bart"])
def test_without_a_choice_the_last_half_of_the_layers_is_trained(family: str) -> None:
    assert training.resolved(checkpoint_of(family), Plan("layers")).layers == (1,)


def test_a_wider_model_is_changed_more_slowly() -> None:
    checkpoint = checkpoint_of("xlm-roberta")  # of 32
    assert training.resolved(checkpoint, Plan("full")).learning_rate == pytest.approx(5e-5 * 1024 / 32)
    assert training.resolved(checkpoint, Plan("full", learning_rate=0.1)).learning_rate == 0.1


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    found = []
    for seed in (1, 1, 2):
        checkpoint = checkpoint_of("xlm-roberta")
        train(checkpoint, Plan("lora", epochs=2, seed=seed), tmp_path)
        found.append(weights(checkpoint))
    one, same, other = found
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_training_ends_where_what_is_held_out_gets_no_better_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("xlm-roberta")
    # What is held out is the opposite of what is taught, so the first epoch is the best.
    given = pairs(checkpoint)
    opposite = [Pair(pair.row, Target(*reversed(pair.target)), 1.0) for pair in given]
    told: list[Epoch] = []
    plan = training.resolved(checkpoint, Plan("full", epochs=30, patience=2))
    epochs = training.train(
        checkpoint, given, opposite, plan, tmp_path, lambda _steps, epoch: told.extend([epoch] if epoch else [])
    )
    assert told == epochs
    assert len(epochs) == 3
    assert epochs[0].distance is not None
    engine = Engine(checkpoint, max_tokens=1024)
    outcomes, _ = engine.run([(one, engine.encode(one)) for one in map(request, PREMISES)])
    distances = [
        1 - (said.contradiction if row == index else said.entailment)
        for index, outcome in enumerate(outcomes)
        if isinstance(outcome, Entailment)
        for row, said in enumerate(outcome.judgements)
    ]
    assert sum(distances) / len(distances) == pytest.approx(epochs[0].distance, abs=1e-3)


@pytest.mark.parametrize(
    ("distances", "epochs"), [([0.3, 0.2, 0.1, 0.2], 4), ([0.1] + [0.2] * 6, 4), ([0.2] * 6 + [0.1], 7), ([], 0)]
)
def test_for_how_long_to_train(distances: list[float], epochs: int) -> None:
    given = [Epoch(float(number), number, 1.0, distance) for number, distance in enumerate(distances, 1)]
    assert training.best(given, Plan(epochs=12)) == epochs
    assert training.best([replace(epoch, distance=None) for epoch in given], Plan(epochs=12)) == len(given)


def test_a_head_of_two_classes_learns(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("bert", order=("not_entailment", "entailment"))
    epochs = train(checkpoint, Plan("full", learning_rate=3e-3, epochs=6, batch_pairs=8), tmp_path)
    assert epochs[-1].loss < epochs[0].loss


@pytest.mark.parametrize("method", ["lora", "full"])
def test_libraries_say_nothing(method: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint = checkpoint_of("xlm-roberta")
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(checkpoint, Plan(method, epochs=1), tmp_path, held_out=True)
    assert capfd.readouterr() == ("", "")
