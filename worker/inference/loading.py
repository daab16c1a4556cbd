"""Loading a checkpoint: safely, whole, and with its classes known by name."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import tokenizers
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from worker.errors import CheckpointError, WorkerError
from worker.inference import checkpoint_files, selftest, sentence_modules, served_families, source
from worker.inference import labels as label_names
from worker.inference import precision as precisions
from worker.inference import threads as cpu_threads
from worker.inference.checkpoint_files import first_line, is_failure
from worker.inference.model import Checkpoint
from worker.inference.precision import Precision
from worker.inference.scores import LabelOrder
from worker.inference.sentence_modules import SentenceModules
from worker.inference.source import Source
from worker.inference.stage import Tell, tell_nobody
from worker.messages import Pooling

log = logging.getLogger("worker.inference")

_SELF_TEST_LIMIT_S = 300.0  # a handful of pairs, on the slowest CPU and the largest model
_LEAST_TOKENS = 16  # a smaller window holds no hypothesis and text worth scoring
_UNLIMITED = 10**6  # tokens; nobody trains with so many positions, and transformers writes 10^30 for "not said"


def load(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_length: int | None = None,
    labels: Sequence[str] | None = None,
    default_language: str | None = None,
    pooling: Pooling | None = None,
    self_test: Literal["refuse", "warn", "off"] = "refuse",
    progress: bool | None = None,
    attempts: int = 5,
    sleep: Callable[[float], None] = time.sleep,
    tell: Tell = tell_nobody,
    threads: int | None = None,
) -> Checkpoint:
    """Load a checkpoint from a directory or a model hub.

    Weights come from safetensors alone and no code from the repository runs. The directory's digest, or the commit that
    a hub's revision resolved to, becomes the revision that results carry.

    Args:
        name: a directory, or a hub id ("owner/name"), the directory where both exist; or "demo".
        revision: a commit, tag or branch of the hub's repository; for a directory the digest that it must have.
        device: "auto", "cpu", "cuda", "cuda:N".
        precision: "auto" or a `Precision`.
        max_length: tokens in one sequence; by default as many as the checkpoint says and has positions for.
        labels: class names in the order of the logits, for checkpoints that do not say or say it wrongly. An empty
            sequence ignores the head: the checkpoint then serves EMBED alone.
        default_language: for XLM: the language of requests that name none.
        pooling: of requests that name none; None: as the checkpoint's sentence-transformers modules say, else MEAN.
        self_test: what to do when sure pairs come out wrong (`worker.inference.selftest`).
        progress: show progress bars; None: on a terminal.
        attempts: tries of a download.
        sleep: waits between those, in seconds.
        tell: hears what is done, and how long it may take.
        threads: of torch on the CPU; None: as `worker.inference.threads.choose` says.

    Raises:
        CheckpointError: nothing to load, nothing that may be loaded safely, or a checkpoint that cannot serve.
    """
    if self_test not in {"refuse", "warn", "off"}:
        raise CheckpointError(f'self-test "{self_test}" is unknown: use refuse, warn or off')
    place = precisions.find_device(device)
    in_threads = cpu_threads.apply(threads)
    found = source.find(name, revision, progress=progress, attempts=attempts, sleep=sleep, tell=tell)
    config, says = _load_config(found.directory, name)
    chosen = precisions.choose(precision, place, config.model_type)
    order = _order(config, says, name, labels)
    # (The weights of a large model take seconds, and the bar is no line of ours.)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers'
    size = source.shown_bytes(source.size_bytes(found.directory))
    tell(f"loading {name}, {size}", source.read_limit_s(found.directory))
    checkpoint = _assemble(found, name, config, order, place, chosen, pooling, max_length, default_language)
    if self_test != "off":
        tell("running the self-test", _SELF_TEST_LIMIT_S)
        _run_self_test(checkpoint, self_test)
    log.info("loaded %s at %s on %s in %s, %s", name, found.identity.revision, place, chosen, in_threads)
    return checkpoint


def _assemble(
    found: Source,
    name: str,
    config: PreTrainedConfig,
    order: LabelOrder | None,
    device: torch.device,
    precision: Precision,
    pooling: Pooling | None,
    max_length: int | None,
    default_language: str | None,
) -> Checkpoint:
    """Read the files and check them against one another. The weights come last: they take the longest."""
    languages = _languages(config, name, default_language)
    modules = sentence_modules.read(found.directory, name, config.hidden_size)
    chosen_pooling = sentence_modules.choose_pooling(modules, pooling, name)
    tokenizer = _load_tokenizer(found.directory, name, config.vocab_size, lower_case=modules.lower_case)
    length = _max_length(config, tokenizer, modules, name, max_length)
    after_pooling = modules.after_pooling
    return Checkpoint(
        identity=found.identity,
        model=_load_model(found.directory, name, config, precision, device, classify=order is not None),
        tokenizer=tokenizer,
        order=order,
        device=device,
        precision=precision,
        max_length=length,
        pad_id=_pad_id(config, tokenizer),
        languages=languages,
        default_language=default_language,
        pooling=chosen_pooling,
        prompt=modules.prompt,
        after_pooling=after_pooling if after_pooling is None else after_pooling.to(device),
        hidden_size=config.hidden_size,
        family=config.model_type,
    )


def _load_config(directory: Path, name: str) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The config as transformers completes it, and what config.json itself says."""
    says: dict[str, Any] = checkpoint_files.read_json(directory, "config.json", name, dict)
    served_families.require(says.get("model_type"), name)
    if quantization := says.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise CheckpointError(
            f"config.json of {name} has a quantization_config ({method}): weights that are quantised already are not "
            'served. Choose the checkpoint that it was made from; model.precision = "int8" quantises here, on CPUs '
            'with VNNI, and "int4" on CPUs and CUDA'
        )
    try:
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        if says.get("label2id") and not says.get("id2label"):  # else transformers makes up two classes
            config.label2id = {label: int(index) for label, index in says["label2id"].items()}
            config.id2label = {index: label for label, index in config.label2id.items()}
    except Exception as error:
        raise CheckpointError(
            f"the config.json of {name} cannot be used: {first_line(error)}. Correct what it names, or copy or "
            "download the file again"
        ) from error
    if not isinstance(config.architectures or [], list) or not all(
        isinstance(architecture, str) for architecture in config.architectures or []
    ):
        raise CheckpointError(
            f"config.json of {name} says architectures = {config.architectures!r}: it must be a list of class names, "
            'such as ["XLMRobertaForSequenceClassification"]'
        )
    for size in ("vocab_size", "hidden_size"):
        count = getattr(config, size, None)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise CheckpointError(f"config.json of {name} says {size} = {count!r}: it must be a whole number above 0")
    return config, says


def _order(
    config: PreTrainedConfig, says: Mapping[str, Any], name: str, labels: Sequence[str] | None
) -> LabelOrder | None:
    """Decide from the config alone, before any weight is read, whether and how the head classifies."""
    if labels is not None and not labels:
        log.info('%s serves EMBED only, because "model.labels" is empty', name)
        return None
    architectures: list[str] = config.architectures or []
    if any(architecture.endswith("ForSequenceClassification") for architecture in architectures):
        names: Any = config.id2label or {}
        ids: Any = (config.label2id or {}) if says.get("label2id") or not says.get("id2label") else None
        return label_names.find(names, ids, len(names), labels)
    if architectures and all(
        architecture.endswith("Model") and "LMHead" not in architecture for architecture in architectures
    ):
        if labels:
            raise CheckpointError(
                f"model.labels is set but {name} has no classification head (its architecture is "
                f"{', '.join(architectures)}): remove model.labels to serve EMBED only, or choose an NLI checkpoint"
            )
        log.warning("%s has no classification head: it serves EMBED only, other requests are invalid", name)
        return None
    raise CheckpointError(
        f"{name} has no classification head: its architecture is {', '.join(architectures) or 'not given'}. A head "
        "made up at load time would answer at random. Choose a checkpoint that was fine-tuned on NLI, or set "
        "model.labels = [] to serve EMBED only"
    )


def _load_tokenizer(directory: Path, name: str, vocabulary: int, *, lower_case: bool) -> PreTrainedTokenizerBase:
    # transformers makes up an empty tokenizer of the architecture's kind where there is no file at all.
    if not any(next(directory.glob(pattern), None) is not None for pattern in checkpoint_files.VOCABULARIES):
        raise CheckpointError(
            f"{name} has no tokenizer (none of {', '.join(checkpoint_files.VOCABULARIES)}): save the one it was "
            "trained with beside the weights, with tokenizer.save_pretrained(...)"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        largest = max(tokenizer.get_vocab().values(), default=-1)
    except ImportError as error:
        raise CheckpointError(f"the tokenizer of {name} needs another package: {first_line(error)}") from error
    except BaseException as error:
        if not is_failure(error):
            raise
        raise CheckpointError(
            f"the tokenizer of {name} cannot be loaded: {first_line(error)}. If its files are damaged, copy or "
            "download them again"
        ) from error
    if largest < 0 or max(len(tokenizer) - 1, largest) >= vocabulary:
        raise CheckpointError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, with ids up to {largest}, but the model embeds "
            f"{vocabulary}: they do not belong together; use the tokenizer that the model was trained with"
        )
    if lower_case:
        _lower(tokenizer, name)
    return tokenizer


def _lower(tokenizer: Any, name: str) -> None:
    """Lower-case whatever the tokenizer reads, as sentence-transformers does."""
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{name} asks for do_lower_case in sentence_bert_config.json, which its tokenizer in Python cannot: save "
            "it with a tokenizer.json"
        )
    backend = tokenizer.backend_tokenizer
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), *own])


def _load_model(
    directory: Path, name: str, config: PreTrainedConfig, precision: Precision, device: torch.device, *, classify: bool
) -> PreTrainedModel:
    automatic: Any = transformers.AutoModelForSequenceClassification if classify else transformers.AutoModel
    if not classify and all(architecture.endswith("EncoderModel") for architecture in config.architectures or [""]):
        automatic = transformers.AutoModelForTextEncoding  # half of an encoder-decoder, as T5EncoderModel
    try:
        model, report = automatic.from_pretrained(
            directory,
            config=config,
            dtype=precisions.dtype(precision, device),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise CheckpointError(
            f"the weights of {name} cannot be loaded: {first_line(error)}. If the files are damaged, copy or download "
            "them again"
        ) from error
    # transformers fills what the weights lack with random numbers. EMBED reads token states, which no pooler touches.
    missing = sorted(key for key in report["missing_keys"] if classify or "pooler" not in key.split("."))
    if missing:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise CheckpointError(
            f"the weights of {name} lack {shown}: loaded, they would be random numbers. config.json promises "
            f"{', '.join(config.architectures or ['nothing'])}; choose a checkpoint that was fine-tuned and saved whole"
            + (", or set model.labels = [] to serve EMBED only" if classify else "")
        )
    try:
        loaded: PreTrainedModel = model.to(device).eval().requires_grad_(requires_grad=False)
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"the weights of {name} do not fit into the memory of {device}: {first_line(error)}. Free it, or "
            'choose another model.device, model.precision = "bf16" or a smaller checkpoint'
        ) from error
    return loaded


def _max_length(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    modules: SentenceModules,
    name: str,
    wanted: int | None,
) -> int:
    positions = served_families.positions(config, name)
    if wanted is None:
        said: Any = tokenizer.model_max_length if modules.max_length is None else modules.max_length
        if isinstance(said, bool) or not isinstance(said, int | float):
            raise CheckpointError(
                f"tokenizer_config.json of {name} says model_max_length = {said!r}: it must be a whole number of "
                "tokens; correct it, or set model.max_length"
            )
        limit = min(said, _UNLIMITED if positions is None else positions)
        if limit >= _UNLIMITED:  # transformers writes 10^30 where the tokenizer does not say
            raise CheckpointError(f"{name} does not say how many tokens it reads: set model.max_length")
        if not limit >= _LEAST_TOKENS:
            raise CheckpointError(
                f"{name} reads {limit} tokens (model_max_length of tokenizer_config.json, max_position_embeddings of "
                f"config.json or max_seq_length of sentence_bert_config.json): at least {_LEAST_TOKENS} are needed for "
                "a text and a hypothesis; correct those, or set model.max_length"
            )
        return int(limit)
    if wanted < _LEAST_TOKENS:
        raise CheckpointError(
            f"model.max_length = {wanted} is too short for a text and a hypothesis: at least {_LEAST_TOKENS}"
        )
    # DeBERTa without absolute positions reads any length.
    if positions is not None and wanted > positions and getattr(config, "position_biased_input", True):
        raise CheckpointError(f"model.max_length = {wanted} but {name} has positions for {positions} tokens")
    return wanted


def _pad_id(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    for pad_id in (tokenizer.pad_token_id, config.pad_token_id):
        if isinstance(pad_id, int) and 0 <= pad_id < config.vocab_size:
            return pad_id
    return 0  # masked away wherever it stands


def _languages(config: PreTrainedConfig, name: str, default: str | None) -> Mapping[str, int]:
    """XLM's languages, where it embeds them (``use_lang_emb`` and more than one, as in modeling_xlm.py).

    ``default`` is the default language; it must be one of them.
    """
    if not (getattr(config, "use_lang_emb", False) and getattr(config, "n_langs", 1) > 1):
        return MappingProxyType({})
    languages: dict[str, int] = getattr(config, "lang2id", None) or {}
    if not languages:
        raise CheckpointError(
            f"the checkpoint embeds {config.n_langs} languages but its config.json names none: add lang2id, from codes "
            "to numbers"
        )
    if default is not None and default not in languages:
        raise CheckpointError(
            f'default language "{default}" is unknown to {name}: it knows {", ".join(sorted(languages))}'
        )
    return MappingProxyType(dict(languages))


def _run_self_test(checkpoint: Checkpoint, on_fault: Literal["refuse", "warn"]) -> None:
    try:
        fault = selftest.run(checkpoint)
    except WorkerError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint.identity.name} cannot score a pair ({type(error).__name__}: {first_line(error)}): "
            "config.json, tokenizer and weights do not fit one another; copy or download the checkpoint again, or "
            "choose another"
        ) from error
    if fault is None:
        return
    if on_fault == "refuse":
        raise CheckpointError(fault)
    log.warning("%s", fault)
