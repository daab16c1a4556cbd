"""Loading a checkpoint: safely, whole, and with its classes known by name."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from worker.errors import CheckpointError
from worker.inference import labels as label_names
from worker.inference import precision as precisions
from worker.inference import selftest, source
from worker.inference import threads as cpu_threads
from worker.inference.model import Checkpoint
from worker.inference.precision import Precision
from worker.inference.scores import LabelOrder
from worker.inference.source import Source
from worker.inference.stage import Tell, tell_nobody

log = logging.getLogger("worker.inference")

_SELF_TEST_LIMIT_S = 300.0  # a handful of pairs, on the slowest CPU and the largest model
_LEAST_TOKENS = 16  # a smaller window holds no hypothesis and text worth scoring
_UNLIMITED = 10**6  # tokens; nobody trains with so many positions, and transformers writes 10^30 for "not said"
# Families that count positions from the one after the padding id (transformers: create_position_ids_from_input_ids).
_POSITIONS_AFTER_PADDING = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"})


def load(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_length: int | None = None,
    labels: Sequence[str] | None = None,
    default_language: str | None = None,
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
        name: a directory, or a hub id ("owner/name"); the directory where both exist.
        revision: a commit, tag or branch of the hub's repository; for a directory the digest that it must have.
        device: "auto", "cpu", "cuda", "cuda:N".
        precision: "auto" or a `Precision`.
        max_length: tokens in one sequence; by default as many as the model has positions for.
        labels: class names in the order of the logits, for checkpoints that do not say or say it wrongly. An empty
            sequence ignores the head: the checkpoint then serves EMBED alone.
        default_language: for XLM: the language of requests that name none.
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
    config = _load_config(found.directory, name)
    chosen = precisions.choose(precision, place, config.model_type)
    order = _order(config, name, labels)
    if not (sys.stderr.isatty() if progress is None else progress):
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers'
    size = source.shown_bytes(source.size_bytes(found.directory))
    tell(f"loading {name}, {size}", source.read_limit_s(found.directory))
    checkpoint = _assemble(
        found, name, config, order, place, chosen, max_length=max_length, default_language=default_language
    )
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
    *,
    max_length: int | None,
    default_language: str | None,
) -> Checkpoint:
    """Read the files and check them against one another. The weights come last: they take the longest."""
    languages = _languages(config, name, default_language)
    tokenizer = _load_tokenizer(found.directory, name, config.vocab_size)
    length = _max_length(config, tokenizer, name, max_length)
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
        hidden_size=config.hidden_size,
        family=config.model_type,
    )


def _load_config(directory: Path, name: str) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the config.json of {name} cannot be used: {_first_line(error)}. The architecture must be one that "
            f"transformers {transformers.__version__} has; code from the repository is never run"
        ) from error
    return config


def _order(config: PreTrainedConfig, name: str, labels: Sequence[str] | None) -> LabelOrder | None:
    """Decide from the config alone, before any weight is read, whether and how the head classifies."""
    if labels is not None and not labels:
        log.info('%s serves EMBED only, because "model.labels" is empty', name)
        return None
    architectures: list[str] = config.architectures or []
    if any(architecture.endswith("ForSequenceClassification") for architecture in architectures):
        names: Any = config.id2label
        ids: Any = config.label2id
        return label_names.find(names or {}, ids or {}, len(names or {}), labels)
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


def _load_tokenizer(directory: Path, name: str, vocabulary: int) -> PreTrainedTokenizerBase:
    # transformers makes up an empty tokenizer of the architecture's kind where there is no file at all.
    if not any(next(directory.glob(pattern), None) is not None for pattern in source.VOCABULARIES):
        raise CheckpointError(
            f"{name} has no tokenizer (none of {', '.join(source.VOCABULARIES)}): save the one it was trained with "
            "beside the weights, with tokenizer.save_pretrained(...)"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except ImportError as error:
        raise CheckpointError(f"the tokenizer of {name} needs another package: {_first_line(error)}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the tokenizer of {name} cannot be loaded: {_first_line(error)}") from error
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens but the model embeds {vocabulary}: they do not "
            "belong together; use the tokenizer that the model was trained with"
        )
    return tokenizer


def _load_model(
    directory: Path, name: str, config: PreTrainedConfig, precision: Precision, device: torch.device, *, classify: bool
) -> PreTrainedModel:
    automatic: Any = transformers.AutoModelForSequenceClassification if classify else transformers.AutoModel
    try:
        model, report = automatic.from_pretrained(
            directory,
            config=config,
            dtype=precision.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the weights of {name} cannot be loaded: {_first_line(error)}. If the files are damaged, copy or download "
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
    loaded: PreTrainedModel = model.to(device).eval().requires_grad_(requires_grad=False)
    return loaded


def _max_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str, wanted: int | None) -> int:
    positions: int = getattr(config, "max_position_embeddings", _UNLIMITED)
    if config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= config.pad_token_id + 1
    if wanted is None:
        length: int = min(positions, tokenizer.model_max_length)  # the latter is 10^30 where the tokenizer does not say
        if length >= _UNLIMITED:
            raise CheckpointError(f"{name} does not say how many tokens it reads: set model.max_length")
        return length
    if wanted < _LEAST_TOKENS:
        raise CheckpointError(
            f"model.max_length = {wanted} is too short for a text and a hypothesis: at least {_LEAST_TOKENS}"
        )
    # DeBERTa without absolute positions reads any length.
    if wanted > positions and getattr(config, "position_biased_input", True):
        raise CheckpointError(f"model.max_length = {wanted} but {name} has positions for {positions} tokens")
    return wanted


def _pad_id(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    for pad_id in (tokenizer.pad_token_id, config.pad_token_id):
        if isinstance(pad_id, int):
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
    fault = selftest.run(checkpoint)
    if fault is None:
        return
    if on_fault == "refuse":
        raise CheckpointError(fault)
    log.warning("%s", fault)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
