"""What a sentence-transformers checkpoint does around its transformer: ``modules.json``, and the files it names.

Such a checkpoint is a chain: Transformer, Pooling, and often Dense or Normalize. What this worker does not do itself is
refused by name rather than left out, because nobody notices vectors that are nearly right. (Reimers & Gurevych,
"Sentence-BERT", 2019; the files are those that sentence-transformers writes, up to version 6.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from worker.errors import CheckpointError
from worker.inference.checkpoint_files import first_line, read_json
from worker.messages import Pooling

_MODULES = "modules.json"
_OWN = "config_sentence_transformers.json"
_POOLINGS = {"cls": Pooling.CLS, "mean": Pooling.MEAN}
# Versions before 6 wrote the mode as flags, several of which may be set. The order is that of the joined vectors.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# What may stand beside a Transformer because it changes no vector, or because it is done here.
_TRANSFORMER_KEYS = {
    "max_seq_length",
    "do_lower_case",
    "tokenizer_args",
    "processor_kwargs",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
    "model_args",
    "model_kwargs",
    "config_args",
    "config_kwargs",
}
_OUTPUT_KEYS = {"module_input_name", "module_output_name"}
_ACTIVATION = re.compile(r"torch\.nn\.modules\.(?:activation|linear)\.(Identity|Tanh|ReLU|GELU|SiLU|Sigmoid|ELU|Mish)")


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """What a checkpoint says of itself. One without ``modules.json`` says nothing: the defaults.

    Attributes:
        pooling: the mode of its Pooling, as sentence-transformers spells it, several joined by "+"; None: not said.
        max_length: tokens that its Transformer reads, special ones included; None: not said.
        lower_case: whether texts are lower-cased, whatever the tokenizer does.
        prompt: what stands before each text to embed; may be empty.
        after_pooling: what pooled vectors go through, (rows, hidden size) to (rows, dimensions), in float32; None:
            nothing. A Normalize at the end is not in it: whether a vector is normalised, the request says.
    """

    pooling: str | None = None
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    after_pooling: nn.Module | None = None


def read(directory: Path, name: str, hidden_size: int) -> SentenceModules:
    """Read what a checkpoint in ``directory``, which messages call ``name``, says of its modules.

    ``hidden_size`` is the length of a token state.

    Raises:
        CheckpointError: it does something that this worker does not, or a file of it is damaged.
    """
    if not (directory / _MODULES).is_file():
        return SentenceModules()
    listed = read_json(directory, _MODULES, name, list)
    modules = [_module(name, entry) for entry in listed]
    kinds = [kind for kind, _ in modules]
    if kinds[:1] != ["Transformer"] or (len(kinds) > 1 and kinds[1] != "Pooling"):
        _refuse(
            name, _MODULES, f"lists {', '.join(kinds) or 'nothing'}", "a Transformer, then a Pooling, can be served"
        )
    settings = _transformer_settings(directory, name, modules[0][1])
    own = read_json(directory, _OWN, name, dict) if (directory / _OWN).is_file() else {}
    if own.get("truncate_dim") is not None:
        _refuse(name, _OWN, f"says truncate_dim = {own['truncate_dim']!r}", "readers of results can cut vectors")
    prompt = _prompt(name, own)
    return SentenceModules(
        pooling=_pooling(directory, name, modules[1][1], prompt=prompt) if len(modules) > 1 else None,
        max_length=_max_length(name, settings),
        lower_case=settings.get("do_lower_case") is True,
        prompt=prompt,
        after_pooling=_after_pooling(directory, name, modules[2:], hidden_size),
    )


def choose_pooling(modules: SentenceModules, wanted: Pooling | None, name: str) -> Pooling:
    """The pooling of requests that name none: ``wanted``, else what the checkpoint says, else MEAN.

    Raises:
        CheckpointError: the checkpoint's mode is neither CLS nor MEAN, and none is wanted.
    """
    if wanted is not None:
        return wanted
    if modules.pooling is None:
        return Pooling.MEAN
    if modules.pooling not in _POOLINGS:
        raise CheckpointError(
            f'{name} pools by "{modules.pooling}" (says its Pooling module), which this worker cannot: choose a '
            'checkpoint that pools by "cls" or "mean", or set model.pooling to "CLS" or "MEAN", which gives other '
            "vectors than sentence-transformers"
        )
    return _POOLINGS[modules.pooling]


def _module(name: str, entry: object) -> tuple[str, str]:
    """A module's class, without where it is defined, and its folder."""
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str) or not isinstance(entry.get("path"), str):
        raise CheckpointError(
            f"{_MODULES} of {name} has the entry {entry!r}: each needs a type and a path, both strings"
        )
    kind, path = entry["type"], entry["path"]
    if not kind.startswith("sentence_transformers."):
        _refuse(name, _MODULES, f"names the module {kind}", "code from the repository is never run")
    if path.startswith("/") or ".." in Path(path).parts:
        _refuse(name, _MODULES, f'has the path "{path}"', "a module lies in a folder of the checkpoint")
    return kind.rpartition(".")[2], path


def _transformer_settings(directory: Path, name: str, path: str) -> dict[str, Any]:
    if path:
        _refuse(
            name,
            _MODULES,
            f'has its transformer in the folder "{path}"',
            "load it with a current sentence-transformers and save it anew, which puts it beside modules.json",
        )
    # sentence_bert_config.json since version 2; before that the name told the architecture.
    for file in sorted(
        directory.glob("sentence_*_config.json"), key=lambda file: file.name != "sentence_bert_config.json"
    ):
        settings: dict[str, Any] = read_json(directory, file.name, name, dict)
        _require_known(name, file.name, settings, _TRANSFORMER_KEYS)
        return settings
    return {}


def _max_length(name: str, settings: Mapping[str, Any]) -> int | None:
    """``max_seq_length``, or what the arguments of the tokenizer say in its place."""
    arguments = settings.get("tokenizer_args") or settings.get("processor_kwargs") or {}
    given = arguments.get("model_max_length") if isinstance(arguments, dict) else None
    length = settings.get("max_seq_length") if given is None else given
    if length is None:
        return None
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise CheckpointError(
            f"sentence_bert_config.json of {name} says max_seq_length = {length!r}: it must be a whole number of "
            "tokens; correct it, or leave it out and set model.max_length"
        )
    return length


def _prompt(name: str, own: Mapping[str, Any]) -> str:
    """The text of ``default_prompt_name``. Other prompts are for the sender to put before a text."""
    chosen = own.get("default_prompt_name")
    if chosen is None:
        return ""
    prompts = own.get("prompts")
    prompt = prompts.get(chosen) if isinstance(prompts, dict) and isinstance(chosen, str) else None
    if not isinstance(prompt, str):
        raise CheckpointError(
            f"{_OWN} of {name} says default_prompt_name = {chosen!r}, but its prompts are {prompts!r}: name one of "
            "them, or null"
        )
    return prompt


def _pooling(directory: Path, name: str, path: str, *, prompt: str) -> str:
    file, settings = _settings(directory, name, path)
    known = {"pooling_mode", "embedding_dimension", "word_embedding_dimension", "include_prompt", *_FLAGS}
    _require_known(name, file, settings, known)
    if prompt and settings.get("include_prompt") is False:
        _refuse(
            name, file, "says include_prompt = false", "only pooling over the whole text, prompt included, is served"
        )
    mode = (
        settings.get("pooling_mode") or [mode for flag, mode in _FLAGS.items() if settings.get(flag) is True] or "mean"
    )
    return mode if isinstance(mode, str) else "+".join(map(str, mode if isinstance(mode, list) else [mode]))


def _after_pooling(
    directory: Path, name: str, modules: list[tuple[str, str]], hidden_size: int
) -> nn.Sequential | None:
    chain: list[nn.Module] = []
    size = hidden_size
    for position, (kind, path) in enumerate(modules, start=1):
        if kind == "Dropout":  # does nothing but in training
            continue
        if kind not in {"Dense", "Normalize", "LayerNorm"}:
            _refuse(name, _MODULES, f"lists the module {kind}", "Dense, LayerNorm, Normalize and Dropout can be served")
        file, settings = _settings(directory, name, path)
        for key in _OUTPUT_KEYS & settings.keys():
            if settings[key] not in (None, "sentence_embedding"):
                _refuse(name, file, f"says {key} = {settings[key]!r}", "modules work on the pooled vector alone")
        if kind == "Normalize":
            _require_known(name, file, settings, _OUTPUT_KEYS)
            if position < len(modules):
                chain.append(_UnitLength())
        else:
            module, size = (_dense if kind == "Dense" else _layer_norm)(directory, name, path, settings, size)
            chain.append(module)
    return nn.Sequential(*chain).eval().requires_grad_(requires_grad=False) if chain else None


class _UnitLength(nn.Module):
    """Normalize, where something follows it."""

    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1)


class _Dense(nn.Module):
    """A linear layer and its activation. The names of its parameters are those in the file."""

    def __init__(self, linear: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation

    def forward(self, vectors: Tensor) -> Tensor:
        result: Tensor = self.activation(self.linear(vectors))
        return result


class _LayerNorm(nn.Module):
    """Likewise."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, device="meta")

    def forward(self, vectors: Tensor) -> Tensor:
        result: Tensor = self.norm(vectors)
        return result


def _dense(directory: Path, name: str, path: str, settings: Mapping[str, Any], size: int) -> tuple[nn.Module, int]:
    file = f"{path}/config.json"
    known = {"in_features", "out_features", "bias", "activation_function", "use_residual", *_OUTPUT_KEYS}
    _require_known(name, file, settings, known)
    if settings.get("use_residual"):
        _refuse(name, file, "says use_residual = true", "a Dense without it can be served")
    width, bias = settings.get("out_features"), settings.get("bias", True)
    if settings.get("in_features") != size or type(width) is not int or width < 1 or not isinstance(bias, bool):
        raise CheckpointError(
            f"{file} of {name} says in_features = {settings.get('in_features')!r}, out_features = {width!r}, bias = "
            f"{bias!r}, but it follows a vector of {size} numbers: the files do not belong together; copy or download "
            "the checkpoint again"
        )
    spelled = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    activation = _ACTIVATION.fullmatch(spelled) if isinstance(spelled, str) else None
    if activation is None:
        _refuse(name, file, f"says activation_function = {spelled!r}", f"known are {_ACTIVATION.pattern}")
    module = _Dense(nn.Linear(size, width, bias, device="meta"), getattr(nn, activation[1])())
    return _filled(module, directory, name, path), width


def _layer_norm(directory: Path, name: str, path: str, settings: Mapping[str, Any], size: int) -> tuple[nn.Module, int]:
    _require_known(name, f"{path}/config.json", settings, {"dimension"})
    return _filled(_LayerNorm(size), directory, name, path), size


def _filled(module: nn.Module, directory: Path, name: str, path: str) -> nn.Module:
    """The module with the weights of its folder, in float32."""
    file = directory / path / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(
            f"{name} has no {path}/model.safetensors, the weights of a module in {_MODULES}. Pickles "
            "(pytorch_model.bin) are not loaded: convert the checkpoint once, in a place you trust, with "
            "SentenceTransformer(...).save_pretrained(...)"
        )
    try:
        weights = safetensors.torch.load_file(file)
        module.load_state_dict({key: tensor.float() for key, tensor in weights.items()}, assign=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}/model.safetensors of {name} cannot be loaded: {first_line(error)}. If it is damaged, copy or "
            "download it again"
        ) from error
    if not all(tensor.isfinite().all() for tensor in module.state_dict().values()):
        raise CheckpointError(f"{path}/model.safetensors of {name} has infinities or NaN: copy or download it again")
    return module


def _settings(directory: Path, name: str, path: str) -> tuple[str, dict[str, Any]]:
    """A module's settings and the name of their file. Without one all are at their defaults."""
    file = f"{path}/config.json"
    return file, read_json(directory, file, name, dict) if (directory / file).is_file() else {}


def _require_known(name: str, file: str, settings: Mapping[str, Any], known: set[str]) -> None:
    for key in settings.keys() - known:
        if settings[key] not in (None, False, "", {}, []):
            _refuse(name, file, f"says {key} = {settings[key]!r}", f"known are {', '.join(sorted(known))}")


def _refuse(name: str, file: str, what: str, mend: str) -> NoReturn:
    raise CheckpointError(
        f"{file} of {name} {what}, which this worker does not do as sentence-transformers does: {mend}; or choose "
        "another checkpoint"
    )
