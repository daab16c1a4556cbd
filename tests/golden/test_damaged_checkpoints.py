"""Folders as people have them: broken off, copied in part, edited by hand. Each is refused in one line, or serves."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import families
from tests.builders import classify, embed
from tests.golden.test_loading import edit
from worker.errors import CheckpointError
from worker.inference.engine import Engine
from worker.inference.forwards.padded import Padded
from worker.inference.loading import load

PAIRS = {"entailment": 0, "neutral": 1, "contradiction": 2}


def serve(directory: Path, **options: Any) -> Engine:
    """Whatever a worker does with a checkpoint before its first message, and two messages."""
    engine = Engine(
        load(str(directory), device="cpu", precision="fp32", **{"self_test": "off", **options}), max_tokens=2000
    )
    engine.warm_up()
    requests = [embed("Some text. " * 300)]
    if engine.checkpoint.order is not None:
        requests.append(classify("Ein Paket kam an, \u0378 zu spät. " * 80, "Ja", "Nein und nochmals nein"))
    engine.run([(request, engine.encode(request)) for request in requests])
    return engine


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(families.checkpoint("roberta"), tmp_path / "copy"))


def damage_tokenizer(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def weights_with_nan(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["roberta.encoder.layer.0.attention.self.query.weight"][0, 0] = torch.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def truncated(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "config: no JSON": (lambda d: (d / "config.json").write_text("{"), r"config\.json of .* is no JSON"),
    "config: binary": (lambda d: (d / "config.json").write_bytes(b"\xff\xfe\0"), r"config\.json of .* is no JSON"),
    "config: nested": (lambda d: (d / "config.json").write_text("[" * 100_000), r"config\.json of .* is no JSON"),
    "config: an array": (lambda d: (d / "config.json").write_text("[]"), r"config\.json of .* holds no JSON object"),
    "config: no model_type": (lambda d: edit(d, model_type=None), r"model_type = None.*Served are albert"),
    "config: a list as model_type": (lambda d: edit(d, model_type=["bert"]), r"model_type = \['bert'\]"),
    "config: a family not proven": (lambda d: edit(d, model_type="convbert"), "'convbert'.*Served are albert"),
    "config: quantised": (
        lambda d: edit(d, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        r"quantization_config \(bitsandbytes\)",
    ),
    "config: layers": (
        lambda d: edit(d, num_hidden_layers="2"),
        r"config\.json of .* cannot be used.*num_hidden_layers",
    ),
    "config: more layers": (lambda d: edit(d, num_hidden_layers=3), "weights of .* lack"),
    "config: heads": (lambda d: edit(d, num_attention_heads=5), "weights of .* cannot be loaded"),
    "config: hidden_act": (lambda d: edit(d, hidden_act="gelo"), "weights of .* cannot be loaded.*gelo"),
    "config: architectures": (lambda d: edit(d, architectures="RobertaModel"), r"config\.json .*architectures"),
    "config: vocab_size": (lambda d: edit(d, vocab_size=100), "do not belong together"),
    "config: vocab_size of None": (lambda d: edit(d, vocab_size=0), "vocab_size = 0"),
    "config: window of a string": (lambda d: edit(d, max_position_embeddings="514"), "max_position_embeddings"),
    "config: window of -1": (lambda d: edit(d, max_position_embeddings=-1), "reads -3 tokens.*max_position_embeddings"),
    "config: huge window": (lambda d: edit(d, max_position_embeddings=10**12), "weights of .* cannot be loaded"),
    "config: no padding": (lambda d: edit(d, pad_token_id=-1), "pad_token_id = -1.*counts positions from it"),
    "config: padding outside": (lambda d: edit(d, pad_token_id=10**6), "reads -"),
    "config: dtype": (lambda d: edit(d, dtype="float99"), r"config\.json of .* cannot be used"),
    "config: labels of numbers": (lambda d: edit(d, id2label={"0": 1, "1": 2, "2": 3}), "id2label|no NLI classes"),
    "config: labels of a list": (lambda d: edit(d, id2label=["a", "b", "c"]), r"config\.json of .* cannot be used"),
    "tokenizer: no JSON": (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer of .* cannot be loaded"),
    "tokenizer: empty": (lambda d: (d / "tokenizer.json").write_text(""), "tokenizer of .* cannot be loaded"),
    "tokenizer: no vocabulary": (
        lambda d: damage_tokenizer(d, lambda content: content["model"].pop("vocab")),
        "tokenizer of .* cannot be loaded",
    ),
    "tokenizer: an id outside": (
        lambda d: damage_tokenizer(d, lambda content: content["model"]["vocab"].update(parcel=10**7)),
        "ids up to 10000000, .* do not belong together",
    ),
    "tokenizer: a broken character map": (  # a panic in Rust
        lambda d: damage_tokenizer(
            d, lambda content: content.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAA:"})
        ),
        "tokenizer of .* cannot be loaded",
    ),
    "tokenizer: another kind": (
        lambda d: edit(d, "tokenizer_config.json", tokenizer_class=7),
        "tokenizer of .* cannot",
    ),
    "tokenizer: its window": (
        lambda d: edit(d, "tokenizer_config.json", model_max_length="512"),
        "model_max_length = '512'",
    ),
    "tokenizer: a tiny window": (lambda d: edit(d, "tokenizer_config.json", model_max_length=3), "reads 3 tokens"),
    "tokenizer: a window below 0": (lambda d: edit(d, "tokenizer_config.json", model_max_length=-1), "reads -1 tokens"),
    "weights: truncated": (truncated, "weights of .* cannot be loaded.*download them again"),
    "weights: a header without end": (
        lambda d: (d / "model.safetensors").write_bytes(struct.pack("<Q", 2**63 - 1)),
        "weights of .* cannot be loaded",
    ),
    "weights: empty": (lambda d: (d / "model.safetensors").write_bytes(b""), "weights of .* cannot be loaded"),
    "weights: NaN": (weights_with_nan, "gives infinities or NaN for its first text"),
}
_SUITE = {
    "config: a family not proven",
    "config: quantised",
    "config: window of -1",
    "tokenizer: its window",
    "weights: NaN",
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in _SUITE else pytest.mark.acceptance) for n in DAMAGES]
)
def test_every_damage_is_named_and_how_to_mend_it(name: str, copy: Path) -> None:
    damage, message = DAMAGES[name]
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        serve(copy)
    assert "\n" not in str(caught.value)


def test_one_of_the_two_maps_of_labels_is_enough(copy: Path) -> None:
    expected = serve(copy).checkpoint.order
    edit(copy, label2id=None)
    assert serve(copy).checkpoint.order == expected
    edit(copy, label2id=PAIRS, id2label=None)
    assert serve(copy).checkpoint.order == expected
    edit(copy, label2id=dict.fromkeys(PAIRS, "x"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        serve(copy)


def test_a_bart_without_padding_is_refused_at_the_start(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(families.checkpoint("bart"), tmp_path / "copy"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    with pytest.raises(CheckpointError, match=r"cannot score a pair .*pad_token_id"):
        serve(directory, self_test="warn")
    checkpoint = load(str(directory), device="cpu", precision="fp32", self_test="off")
    with pytest.raises(CheckpointError, match=r"cannot compute 1 rows .*pad_token_id"):
        Engine(checkpoint, max_tokens=2000, forward=Padded(checkpoint)).warm_up()  # packed it needs none


@pytest.mark.acceptance
@pytest.mark.parametrize("family", families.FAMILIES)
def test_no_edit_of_a_file_ends_in_anything_else(family: str, tmp_path: Path) -> None:
    """Forty random edits of the JSON files, and as many of bytes."""
    draw = random.Random(family)
    good = families.checkpoint(family)
    served = 0
    for trial in range(80):
        directory = Path(shutil.copytree(good, tmp_path / str(trial)))
        files = [path for path in directory.iterdir() if trial % 2 or path.suffix == ".json"]
        path = draw.choice(sorted(files))
        if trial % 2:
            content = bytearray(path.read_bytes())
            for _ in range(draw.choice([1, 3, 30])):
                content[draw.randrange(min(len(content), 2000))] = draw.randrange(256)
            path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
        else:
            path.write_text(json.dumps(_edited(draw, json.loads(path.read_text()))))
        try:
            serve(directory, default_language="en" if family == "xlm" else None)
        except CheckpointError:
            pass
        else:
            served += 1
        shutil.rmtree(directory)
    assert served < 80


def _edited(draw: random.Random, content: Any) -> Any:
    """One value somewhere becomes another, or goes."""
    if isinstance(content, dict | list) and content and draw.random() < 0.9:
        keys = list(content) if isinstance(content, dict) else range(len(content))
        key = draw.choice(list(keys))
        if draw.random() < 0.15:
            del content[key]
        else:
            content[key] = _edited(draw, content[key])
        return content
    return draw.choice([None, True, -1, 0, 1, 3, 10**9, 0.5, "", "x", "0", [], {}, ["x"], {"x": 1}])
