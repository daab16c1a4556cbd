"""What loads, against transformers' own loading; what is refused; and what the self-test sees."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests import families
from worker import demo
from worker.errors import CheckpointError
from worker.inference import selftest
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.inference.precision import Precision, Processor
from worker.inference.scores import LabelOrder
from worker.inference.selftest import SurePair

XLM_LANGUAGES = {"ar": 0, "bg": 1, "de": 2, "el": 3, "en": 4, "es": 5, "fr": 6, "ru": 7, "sw": 8, "ur": 9, "zh": 10}


def load_quietly(directory: Path, precision: str = "fp32", **options: Any) -> Checkpoint:
    return load(str(directory), device="cpu", precision=precision, **{"self_test": "off", **options})


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(families.checkpoint("xlm-roberta"), tmp_path / "copy"))


def edit(directory: Path, name: str = "config.json", **changes: Any) -> None:
    path = directory / name
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("family", families.EVERY)
def test_every_family_loads_with_the_weights_and_limits_it_was_saved_with(family: str) -> None:
    directory = families.checkpoint(family, order=("contradiction", "entailment", "neutral"))
    checkpoint = load_quietly(directory)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
    weights, expected = checkpoint.model.state_dict(), plain.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert checkpoint.order == LabelOrder(entailment=1, neutral=2, contradiction=0)
    assert checkpoint.max_length == 512
    assert checkpoint.hidden_size == 32
    assert checkpoint.pad_id == checkpoint.tokenizer.pad_token_id
    assert checkpoint.family == plain.config.model_type
    assert dict(checkpoint.languages) == (XLM_LANGUAGES if family == "xlm" else {})
    assert not checkpoint.model.training
    assert not any(parameter.requires_grad for parameter in checkpoint.model.parameters())


@pytest.mark.parametrize("family", families.EVERY)
def test_a_base_model_serves_embeddings_alone(family: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = load_quietly(families.checkpoint(family, head="none"))
    assert checkpoint.order is None
    assert "serves EMBED only" in caplog.text


@pytest.mark.parametrize("family", ["xlm-roberta", "bert", "xlm", "deberta-v2"])
def test_a_language_model_is_refused_unless_told_to_embed(family: str) -> None:
    directory = families.checkpoint(family, head="language")
    with pytest.raises(CheckpointError, match=r"answer at random.*set model\.labels = \[\] to serve EMBED only"):
        load_quietly(directory)
    with pytest.raises(CheckpointError, match="answer at random"):
        load_quietly(directory, labels=("entailment", "neutral", "contradiction"))
    checkpoint = load_quietly(directory, labels=())
    assert checkpoint.order is None
    plain = transformers.AutoModel.from_pretrained(directory)
    name = next(name for name in plain.state_dict() if "pooler" not in name)
    assert torch.equal(checkpoint.model.state_dict()[name], plain.state_dict()[name])


@pytest.mark.parametrize("family", families.EVERY)
def test_a_head_that_only_the_config_has_is_refused(family: str, tmp_path: Path) -> None:
    """transformers fills it with random numbers and a warning."""
    directory = Path(shutil.copytree(families.checkpoint(family, head="none"), tmp_path / "copy"))
    promised = json.loads((families.checkpoint(family) / "config.json").read_text())
    edit(directory, **{name: promised[name] for name in ("architectures", "id2label", "label2id")})
    with pytest.raises(CheckpointError, match=r"weights of .* lack (class|pre_class|pooler|sequence_summary).*random"):
        load_quietly(directory)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    edit(copy, id2label={"0": "entailment", "1": "not_entailment"}, label2id={"entailment": 0, "not_entailment": 1})
    with pytest.raises(CheckpointError, match=r"weights of .* cannot be loaded"):
        load_quietly(copy)


def test_labels_may_be_stated_where_the_config_does_not(copy: Path) -> None:
    edit(copy, id2label={str(i): f"LABEL_{i}" for i in range(3)}, label2id={f"LABEL_{i}": i for i in range(3)})
    with pytest.raises(CheckpointError, match=r"set model\.labels"):
        load_quietly(copy)
    assert load_quietly(copy, labels=("neutral", "contradiction", "entailment")).order == LabelOrder(2, 0, 1)


def test_two_classes() -> None:
    checkpoint = load_quietly(families.checkpoint("deberta-v2", order=("not_entailment", "entailment")))
    assert checkpoint.order == LabelOrder(entailment=1, neutral=None, contradiction=0)


def test_sharded_weights_load(tmp_path: Path) -> None:
    sharded = Path(shutil.copytree(families.checkpoint("xlm-roberta", shard="40KB"), tmp_path / "sharded"))
    shards = sorted(sharded.glob("model-*-of-*.safetensors"))
    assert len(shards) > 2
    expected = load_quietly(families.checkpoint("xlm-roberta")).model.state_dict()
    weights = load_quietly(sharded).model.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=rf'names "{shards[1].name}", and no such shard lies beside it'):
        load_quietly(sharded)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("int4", torch.bfloat16 if Processor.probe().amx_bf16 else torch.float32),
        pytest.param("int8", torch.float32, marks=pytest.mark.skipif(not Processor.probe().vnni, reason="needs VNNI")),
    ],
)
def test_precision_chooses_the_weights_format(precision: str, dtype: torch.dtype) -> None:
    checkpoint = load_quietly(families.checkpoint("bert"), precision)
    assert checkpoint.precision is Precision(precision)
    assert checkpoint.model.dtype is dtype


def test_fp32_is_fp32_whatever_the_weights_were_saved_in(copy: Path) -> None:
    transformers.AutoModelForSequenceClassification.from_pretrained(copy, dtype=torch.float16).save_pretrained(copy)
    assert load_quietly(copy).model.dtype is torch.float32


def test_code_in_a_checkpoint_never_runs(copy: Path) -> None:
    (copy / "modeling_evil.py").write_text("raise SystemExit('ran')\n")
    automatic = {"AutoConfig": "modeling_evil.C", "AutoModelForSequenceClassification": "modeling_evil.M"}
    edit(copy, auto_map=automatic)
    edit(copy, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "modeling_evil.T"]})
    assert type(load_quietly(copy).model) is transformers.XLMRobertaForSequenceClassification
    edit(copy, model_type="evil")
    with pytest.raises(CheckpointError, match="code from the repository is never run"):
        load_quietly(copy)


def test_damage_is_named(copy: Path, tmp_path: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json of .* is no JSON"):
        load_quietly(copy)
    other = Path(shutil.copytree(families.checkpoint("bert"), tmp_path / "other"))
    (other / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(CheckpointError, match=r"weights of .* cannot be loaded"):
        load_quietly(other)


def test_a_missing_or_foreign_tokenizer_is_refused(copy: Path) -> None:
    """transformers would make up an empty one, and index past the embeddings."""
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_quietly(copy)
    shutil.copy(families.checkpoint("bert") / "tokenizer.json", copy)
    shutil.copy(families.checkpoint("bert") / "tokenizer_config.json", copy)
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_quietly(copy)


@pytest.mark.parametrize(
    ("family", "wanted", "message"),
    [("bert", 513, "positions for 512"), ("roberta", 514, "positions for 512"), ("bert", 8, "too short")],
)
def test_a_window_the_model_has_no_positions_for_is_refused(family: str, wanted: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_quietly(families.checkpoint(family), max_length=wanted)


def test_relative_positions_have_no_limit() -> None:
    assert load_quietly(families.checkpoint("deberta-v2"), max_length=2048).max_length == 2048
    assert load_quietly(families.checkpoint("bert"), max_length=128).max_length == 128


def test_an_unknown_default_language_is_refused() -> None:
    with pytest.raises(CheckpointError, match="it knows ar, bg"):
        load_quietly(families.checkpoint("xlm"), default_language="tlh")
    assert load_quietly(families.checkpoint("xlm"), default_language="sw").default_language == "sw"


def test_xlm_languages_without_names_are_refused(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(families.checkpoint("xlm"), tmp_path / "copy"))
    edit(directory, lang2id=None)
    with pytest.raises(CheckpointError, match="add lang2id"):
        load_quietly(directory)


DEMO = Path(demo.__file__).parent / "checkpoint"


def test_the_shipped_checkpoint_passes_the_shipped_self_test() -> None:
    assert load_quietly(DEMO, self_test="refuse").order == LabelOrder(entailment=2, neutral=1, contradiction=0)


@pytest.mark.parametrize(
    "wrong",
    [
        # Entailment and contradiction the wrong way round: the mistake that people make.
        pytest.param(order, marks=() if order == ("entailment", "neutral", "contradiction") else pytest.mark.acceptance)
        for order in itertools.permutations(families.NLI)
        if order != ("contradiction", "neutral", "entailment")
    ],
)
def test_the_shipped_self_test_sees_every_permutation(wrong: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError, match="the order contradiction, neutral, entailment fits"):
        load_quietly(DEMO, self_test="refuse", labels=wrong)


SURE = tuple(
    SurePair(premise, hypothesis, label, language)
    for language, premise, lines in (
        ("en", "A man is playing the guitar.", ("A man plays.", "The man is famous.", "Nobody plays.")),
        ("de", "Das Paket kam zu spät an.", ("Das Paket kam.", "Es war teuer.", "Es kam nie an.")),
        ("ru", "Дети играют на улице.", ("Дети играют.", "Дети рады.", "Дети спят дома.")),
        ("zh", "孩子们在外面玩。", ("孩子们在玩。", "孩子们很高兴。", "孩子们在睡觉。")),
    )
    for label, hypothesis in zip(("entailment", "neutral", "contradiction"), lines, strict=True)
)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that has learnt the pairs by heart. Its classes: neutral, contradiction, entailment."""
    order = ("neutral", "contradiction", "entailment")
    return _teach(
        Path(shutil.copytree(families.checkpoint("xlm-roberta", order=order), tmp_path_factory.mktemp("a") / "b")),
        order,
    )


def _teach(directory: Path, order: Sequence[str]) -> Path:
    checkpoint = load_quietly(directory)
    model = checkpoint.model.requires_grad_(requires_grad=True)
    inputs = checkpoint.tokenizer(
        [p.premise for p in SURE], [p.hypothesis for p in SURE], padding=True, return_tensors="pt"
    )
    target = torch.tensor([order.index(pair.label) for pair in SURE])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits, target)
        if loss.item() < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "sure_pairs", lambda: SURE)


def test_a_checkpoint_that_gets_sure_pairs_right_passes(taught: Path, sure: None) -> None:
    assert load_quietly(taught, self_test="refuse").order == LabelOrder(2, 0, 1)


def test_a_permuted_checkpoint_is_refused_and_told_its_order(taught: Path, sure: None, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(taught, tmp_path / "copy"))
    wrong = ("contradiction", "neutral", "entailment")
    edit(directory, id2label=dict(enumerate(wrong)), label2id={name: i for i, name in enumerate(wrong)})
    with pytest.raises(
        CheckpointError, match=r"4 of 12 .* the order neutral, contradiction, entailment fits 12"
    ) as caught:
        load_quietly(directory, self_test="refuse")
    mend = str(caught.value).partition("set model.labels = ")[2]
    assert load_quietly(directory, self_test="refuse", labels=json.loads(mend)).order == LabelOrder(2, 0, 1)


def test_a_checkpoint_that_knows_nothing_is_refused_or_warned_of(sure: None, caplog: pytest.LogCaptureFixture) -> None:
    directory = families.checkpoint("xlm-roberta", seed=1)
    with pytest.raises(CheckpointError, match="no other order fits better than"):
        load_quietly(directory, self_test="refuse")
    with caplog.at_level(logging.WARNING, "worker.inference"):
        load_quietly(directory, self_test="warn")
    assert "turn the self-test into a warning" in caplog.text


def test_two_classes_are_tested_as_two(taught: Path) -> None:
    """Neutral and contradiction are both not_entailment."""
    checkpoint = load_quietly(taught)
    head: Any = checkpoint.model
    linear = head.classifier.out_proj
    with torch.no_grad():  # one logit for the larger of the two
        two = torch.nn.Linear(linear.in_features, 2)
        two.weight.copy_(torch.stack((linear.weight[2], linear.weight[:2].mean(0))))
        two.bias.copy_(torch.stack((linear.bias[2], linear.bias[:2].mean(0))))
    head.classifier.out_proj = two
    assert selftest.run(replace(checkpoint, order=LabelOrder(0, None, 1)), SURE) is None
    fault = selftest.run(replace(checkpoint, order=LabelOrder(1, None, 0)), SURE)
    assert fault is not None
    assert 'set model.labels = ["entailment", "not_entailment"]' in fault


def test_xlm_is_asked_in_its_own_languages_alone() -> None:
    checkpoint = load_quietly(families.checkpoint("xlm"))
    unknown = [replace(pair, language="tlh") for pair in SURE]
    assert selftest.run(checkpoint, unknown) is None
    fault = selftest.run(checkpoint, [*unknown, *SURE])
    assert fault is not None
    assert "of 12 sure pairs" in fault
