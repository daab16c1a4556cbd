"""What a checkpoint of sentence-transformers says of itself, as its versions 1 to 6 wrote it, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests import families
from tests.builders import embed, entail
from worker import settings
from worker.app import load_engine
from worker.errors import CheckpointError
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.inference.scores import LabelOrder
from worker.inference.tokens import Tokens
from worker.messages import LongText, Pooling

OLD = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "word_embedding_dimension": 32}
CHAIN = ("Transformer", "Pooling", "Normalize")


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """all-MiniLM's files around a tiny encoder: MEAN, normalised, 100 tokens."""
    made = Path(shutil.copytree(families.checkpoint("bert", head="none"), tmp_path / "copy"))
    chain(made, *CHAIN)
    write(made / "1_Pooling/config.json", OLD | {"pooling_mode_mean_tokens": True})
    write(made / "sentence_bert_config.json", {"max_seq_length": 100, "do_lower_case": False})
    write(made / "config_sentence_transformers.json", {"__version__": {}, "prompts": {}, "default_prompt_name": None})
    return made


def chain(directory: Path, *kinds: str) -> None:
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write(directory / "modules.json", modules)


def load_quietly(directory: Path, **options: Any) -> Checkpoint:
    return load(str(directory), device="cpu", precision="fp32", **options)


def test_the_checkpoint_decides_where_nobody_else_does(directory: Path) -> None:
    checkpoint = load_quietly(directory)
    assert (checkpoint.pooling, checkpoint.max_length, checkpoint.prompt) == (Pooling.MEAN, 100, "")
    assert checkpoint.after_pooling is None  # the request says whether to normalise
    write(directory / "1_Pooling/config.json", OLD | {"pooling_mode_cls_token": True})
    assert load_quietly(directory).pooling is Pooling.CLS
    checkpoint = load_quietly(directory, pooling=Pooling.MEAN, max_length=200)
    assert (checkpoint.pooling, checkpoint.max_length) == (Pooling.MEAN, 200)
    (directory / "modules.json").unlink()
    checkpoint = load_quietly(directory)
    assert (checkpoint.pooling, checkpoint.max_length) == (Pooling.MEAN, 512)


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}, Pooling.CLS),
        ({"embedding_dimension": 32, "pooling_mode": ["mean"]}, Pooling.MEAN),
        (OLD, Pooling.MEAN),
        ({}, Pooling.MEAN),
    ],
)
def test_every_spelling_of_a_pooling_is_read(directory: Path, settings: dict[str, Any], pooling: Pooling) -> None:
    write(directory / "1_Pooling/config.json", settings)
    assert load_quietly(directory).pooling is pooling


def test_a_pooling_that_is_not_to_be_had_is_refused_unless_another_is_set(directory: Path) -> None:
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    for saved, mode in (({"pooling_mode": "lasttoken"}, "lasttoken"), (OLD | both, r"cls\+mean")):
        write(directory / "1_Pooling/config.json", saved)
        with pytest.raises(CheckpointError, match=rf'pools by "{mode}".*set model\.pooling to "CLS" or "MEAN"'):
            load_quietly(directory)
        assert load_quietly(directory, pooling=Pooling.CLS).pooling is Pooling.CLS


def test_the_module_files_are_part_of_the_revision(directory: Path) -> None:
    before = load_quietly(directory).identity.revision
    write(directory / "1_Pooling/config.json", OLD | {"pooling_mode_cls_token": True})
    assert load_quietly(directory).identity.revision != before


DENSE = {"in_features": 32, "out_features": 8, "bias": True}
TANH = {"activation_function": "torch.nn.modules.activation.Tanh"}


def test_a_dense_module_lies_on_the_device_in_float32(directory: Path) -> None:
    chain(directory, "Transformer", "Pooling", "Dense")
    write(directory / "2_Dense/config.json", DENSE | TANH)
    weights = {"linear.weight": torch.rand(8, 32).half(), "linear.bias": torch.rand(8).half()}
    save_file(weights, directory / "2_Dense/model.safetensors")
    module = load(str(directory), device="cpu", precision="bf16").after_pooling
    assert module is not None
    vectors = torch.rand(3, 32)
    expected = torch.tanh(vectors @ weights["linear.weight"].float().T + weights["linear.bias"].float())
    assert torch.allclose(module(vectors), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"2_Dense/config.json": DENSE | TANH}, r"no 2_Dense/model\.safetensors.*Pickles"),
        ({"2_Dense/config.json": DENSE | TANH | {"in_features": 64}}, "follows a vector of 32 numbers"),
        ({"2_Dense/config.json": DENSE | TANH | {"out_features": "8"}}, "follows a vector of 32 numbers"),
        ({"2_Dense/config.json": {}}, "follows a vector of 32 numbers"),
        ({"2_Dense/config.json": DENSE | {"activation_function": "os.system"}}, r"activation_function = 'os\.system'"),
        ({"2_Dense/config.json": DENSE | TANH | {"use_residual": True}}, "use_residual"),
        ({"2_Dense/config.json": DENSE | TANH | {"module_input_name": "token_embeddings"}}, "pooled vector alone"),
        ({"2_Dense/config.json": DENSE | TANH | {"gate": 3}}, "says gate = 3"),
        ({"modules.json": []}, "lists nothing"),
        ({"modules.json": {"0": "Transformer"}}, "holds no JSON array"),
        ({"modules.json": ["Transformer"]}, "needs a type and a path"),
        ({"modules.json": [{"type": "evil.Module", "path": ""}]}, "code from the repository is never run"),
        ({"modules.json": [{"type": "sentence_transformers.models.Transformer", "path": "../x"}]}, "lies in a folder"),
        ({"modules.json": [{"type": "sentence_transformers.models.Transformer", "path": "0_X"}]}, "save it anew"),
        ({"modules.json": [{"type": "sentence_transformers.models.BoW", "path": ""}]}, "lists BoW"),
        ({"1_Pooling/config.json": []}, "holds no JSON object"),
        ({"1_Pooling/config.json": {"pooling_mode": 7}}, 'pools by "7"'),
        ({"sentence_bert_config.json": {"max_seq_length": "100"}}, "max_seq_length = '100'"),
        ({"sentence_bert_config.json": {"max_seq_length": 4}}, "reads 4 tokens"),
        ({"sentence_bert_config.json": {"tokenizer_name_or_path": "other/one"}}, "tokenizer_name_or_path"),
        ({"config_sentence_transformers.json": {"default_prompt_name": "query"}}, "name one of them, or null"),
        ({"config_sentence_transformers.json": {"truncate_dim": 8}}, "truncate_dim = 8"),
        (
            {
                "config_sentence_transformers.json": {"default_prompt_name": "q", "prompts": {"q": "find: "}},
                "1_Pooling/config.json": {"include_prompt": False},
            },
            "include_prompt = false",
        ),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(directory: Path, changes: dict[str, Any], message: str) -> None:
    if "2_Dense/config.json" in changes:
        chain(directory, "Transformer", "Pooling", "Dense")
    for file, content in changes.items():
        write(directory / file, content)
    with pytest.raises(CheckpointError, match=message):
        load_quietly(directory)


@pytest.mark.parametrize("kinds", [("Transformer", "Dense"), ("Transformer", "Pooling", "LSTM"), ("Pooling",)])
def test_other_chains_are_refused(directory: Path, kinds: tuple[str, ...]) -> None:
    chain(directory, *kinds)
    with pytest.raises(CheckpointError, match=rf"modules\.json of .* lists.* {kinds[-1]}"):
        load_quietly(directory)


def test_dense_weights_of_another_shape_or_with_nan_are_refused(directory: Path) -> None:
    chain(directory, "Transformer", "Pooling", "Dense")
    write(directory / "2_Dense/config.json", DENSE)
    file = directory / "2_Dense/model.safetensors"
    for weights, message in (
        ({"linear.weight": torch.rand(32, 8), "linear.bias": torch.rand(8)}, "cannot be loaded"),
        ({"linear.weight": torch.rand(8, 32)}, "cannot be loaded"),
        ({"linear.weight": torch.full((8, 32), torch.nan), "linear.bias": torch.rand(8)}, "infinities or NaN"),
    ):
        save_file(weights, file)
        with pytest.raises(CheckpointError, match=rf"2_Dense/model\.safetensors of .* {message}|{message}"):
            load_quietly(directory)
    file.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_quietly(directory)


def test_the_default_prompt_stands_before_every_window_of_a_text_to_embed_and_nowhere_else(directory: Path) -> None:
    own = {"default_prompt_name": "q", "prompts": {"q": "Search for this: ", "d": "passage: "}}
    write(directory / "config_sentence_transformers.json", own)
    checkpoint = load_quietly(directory, labels=())
    tokens = Tokens(checkpoint)
    (row,) = tokens.encode(embed("The parcel.")).rows
    assert row.token_ids.tolist() == checkpoint.tokenizer("Search for this: The parcel.")["input_ids"]
    prompt = checkpoint.tokenizer("Search for this: ")["input_ids"][:-1]
    for long_text in LongText:
        rows = tokens.encode(embed("The parcel arrived. " * 60, long_text=long_text)).rows
        assert all(row.token_ids[: len(prompt)].tolist() == prompt for row in rows)
        assert all(len(row.token_ids) == checkpoint.max_length for row in rows)
    judging = Tokens(replace(checkpoint, order=LabelOrder(0, 1, 2)))
    (row,) = judging.encode(entail("The parcel.", "A parcel.")).rows
    assert row.token_ids.tolist() == checkpoint.tokenizer("The parcel.", "A parcel.")["input_ids"]


def test_lower_case_is_the_tokenizers_too(directory: Path) -> None:
    shutil.copytree(families.checkpoint("roberta", head="none"), directory, dirs_exist_ok=True)
    write(directory / "sentence_bert_config.json", {"do_lower_case": True})
    tokenizer = load_quietly(directory).tokenizer
    assert tokenizer("THE PARCEL")["input_ids"] == tokenizer("the parcel")["input_ids"]


def test_the_worker_embeds_as_the_checkpoint_says_unless_its_setting_says_otherwise(directory: Path) -> None:
    write(directory / "1_Pooling/config.json", OLD | {"pooling_mode_cls_token": True})
    environment = {"XNLI_KAFKA__BOOTSTRAP_SERVERS": "none", "XNLI_MODEL__NAME": str(directory)}
    assert load_engine(settings.load(environ=environment)).pooling is Pooling.CLS
    assert load_engine(settings.load(environ=environment | {"XNLI_MODEL__POOLING": "MEAN"})).pooling is Pooling.MEAN
