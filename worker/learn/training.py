"""Training on NLI pairs, by transformers' Trainer: a loss, what is trained, and when to stop.

The rows are those that the worker serves (`worker.inference.tokens`), padded a batch at a time. The loss of a pair is
the cross-entropy between the probabilities wanted and those of the model, so pairs with a right answer and pairs that
keep an old one go through the same loss.

The rate at which weights may change falls with their number: Adam's best learning rate is proportional to one over the
width (Yang et al., "Tensor Programs V", 2022). Both constants give rates in the usual range at 1,024: 5e-5, and 1.9e-4
for LoRA.

What is kept in the end lies between the former weights and those trained (WiSE-FT: Wortsman et al., "Robust fine-tuning
of zero-shot models", 2022): halfway nearly all of what is learnt is there, and next to nothing is forgotten.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
import transformers
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from worker.errors import SettingsError
from worker.inference.forwards.padded import Padded
from worker.inference.model import Checkpoint
from worker.inference.scores import LabelOrder, softmax
from worker.learn.training_pairs import Pair

Method = Literal["lora", "layers", "full"]

_WIDTH_TIMES_RATE: Final = {"full": 0.0512, "layers": 0.0512, "lora": 0.1920}
_WARM_UP: Final = 0.1  # of all steps
_DISTANCE: Final = "eval_distance"


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train.

    Attributes:
        method: "lora" trains low-rank additions to every linear layer, "layers" some of the blocks and the head,
            "full" everything.
        layers: with "layers" which, as the names of the weights count them; empty: the last half.
        rank: with "lora" the rank of the additions.
        interpolation: how far weights go from the former ones, 0, to those trained, 1.
        learning_rate: at its height; None: by the width of the model.
        epochs: at most.
        patience: epochs in which what is held out comes no nearer to what is wanted, after which training ends.
        batch_pairs: pairs in a step.
        seed: of everything that is drawn.
    """

    method: Method = "lora"
    layers: tuple[int, ...] = ()
    rank: int = 16
    interpolation: float = 0.5
    learning_rate: float | None = None
    epochs: int = 12
    patience: int = 6
    batch_pairs: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch came to: its mean loss, and how far what is held out still is from what is wanted (`_distance`)."""

    number: float
    steps: int
    loss: float
    distance: float | None


Tell = Callable[[int, Epoch | None], None]
"""Hears of each step: how many are done, and of an epoch at its end."""


def train(
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    plan: Plan,
    scratch: Path,
    tell: Tell,
) -> list[Epoch]:
    """Change the checkpoint's weights in place: towards those of the best epoch, as far as ``plan`` says.

    Args:
        checkpoint: in float32.
        pairs: what is trained on.
        held_out: what tells when to stop; empty: all epochs run, and the last is kept.
        plan: how, as `resolved` gives it.
        scratch: a folder for what training keeps meanwhile.
        tell: hears how far it is.

    Raises:
        SettingsError: the model has no head to train.
    """
    order = checkpoint.order
    if order is None:
        raise SettingsError(f"{checkpoint.identity.name} has no classification head to train")
    padded = Padded(checkpoint)  # before the model is wrapped: it asks what the model accepts
    watch = _Watch(tell)
    transformers.set_seed(plan.seed)  # LoRA's additions begin at random
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries', about one another
        model = _trainable(checkpoint, plan)
        former = {} if plan.method == "lora" else _trained(model)
        trainer = Trainer(
            model=model,
            args=_arguments(checkpoint, plan, scratch, stops=bool(held_out)),
            data_collator=lambda batch: _collated(batch, padded, order),
            train_dataset=list(pairs),
            eval_dataset=list(held_out) or None,
            compute_loss_func=_loss,
            compute_metrics=_distance,
            callbacks=[watch, *([EarlyStoppingCallback(plan.patience)] if held_out else [])],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        _interpolate(model, former, plan.interpolation)
    checkpoint.model.train(mode=False).requires_grad_(requires_grad=False)
    return watch.epochs


def best(epochs: Sequence[Epoch], plan: Plan) -> int:
    """For how many epochs to train: as many as brought what is held out nearest to what is wanted.

    It is a third of the plan's at least: a model that has hardly changed forgets nothing, and of a few examples it is
    by chance whether that looks better. Where nothing was held out, it is the number of all.
    """
    measured = [epoch for epoch in epochs if epoch.distance is not None]
    if not measured:
        return len(epochs)
    return max(round(min(measured, key=lambda epoch: epoch.distance or 0.0).number), math.ceil(plan.epochs / 3))


def resolved(checkpoint: Checkpoint, plan: Plan) -> Plan:
    """The plan with what it leaves open filled in: the learning rate by the width, and the last half of the layers.

    Raises:
        SettingsError: it names layers that the model does not have, or the Trainer cannot use the device.
    """
    if checkpoint.device.type == "cuda" and checkpoint.device.index:
        index = checkpoint.device.index
        raise SettingsError(
            f'model.device = "cuda:{index}": the Trainer takes the first GPU that it sees; set '
            f'CUDA_VISIBLE_DEVICES={index} in the environment, and model.device = "cuda"'
        )
    rate = _WIDTH_TIMES_RATE[plan.method] / checkpoint.hidden_size if plan.learning_rate is None else plan.learning_rate
    if plan.method != "layers":
        return replace(plan, learning_rate=rate)
    count = min((len(stack) for stack in _stacks(checkpoint.model)), default=0)
    layers = plan.layers or tuple(range(count // 2, count))
    if strange := [layer for layer in layers if not 0 <= layer < count]:
        raise SettingsError(
            f"--layers: {checkpoint.identity.name} has no layer {strange[0]}; its {count} are called 0 to {count - 1}"
        )
    return replace(plan, learning_rate=rate, layers=layers)


def _arguments(checkpoint: Checkpoint, plan: Plan, scratch: Path, *, stops: bool) -> TrainingArguments:
    when = "epoch" if stops else "no"
    is_cuda = checkpoint.device.type == "cuda"
    bfloat16 = is_cuda and torch.cuda.is_bf16_supported()
    arguments = TrainingArguments(
        output_dir=str(scratch),
        use_cpu=checkpoint.device.type == "cpu",
        bf16=bfloat16,
        fp16=is_cuda and not bfloat16,
        seed=plan.seed,
        data_seed=plan.seed,
        learning_rate=plan.learning_rate or 0.0,
        warmup_steps=_WARM_UP,
        lr_scheduler_type="linear",
        num_train_epochs=plan.epochs,
        per_device_train_batch_size=plan.batch_pairs,
        per_device_eval_batch_size=plan.batch_pairs,
        eval_strategy=when,
        save_strategy=when,
        logging_strategy="epoch",
        load_best_model_at_end=stops,
        metric_for_best_model=_DISTANCE if stops else None,
        greater_is_better=False if stops else None,
        save_total_limit=1,
        save_only_model=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,  # the rows lie on the device already
        disable_tqdm=True,
        report_to="none",
        log_level="error",
    )
    if is_cuda:
        # One worker has one device; on several the Trainer would run DataParallel.
        arguments._n_gpu = 1  # noqa: SLF001
    return arguments


def _trainable(checkpoint: Checkpoint, plan: Plan) -> Any:
    """The model with what is trained marked, wrapped by peft with "lora"."""
    model = checkpoint.model.requires_grad_(requires_grad=plan.method == "full")
    if plan.method == "lora":
        import peft  # noqa: PLC0415 (an extra)

        config = peft.LoraConfig(r=plan.rank, lora_alpha=2 * plan.rank, target_modules=_adapted(model))
        return peft.get_peft_model(model, config)
    if plan.method == "layers":
        _unfreeze(model, plan.layers)
    return model


def _trained(model: Any) -> dict[str, torch.Tensor]:
    """The weights that are trained, as they are now."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def _interpolate(model: Any, former: Mapping[str, torch.Tensor], share: float) -> None:
    """Let the weights go a share of the way from the former ones; with none, LoRA's additions are merged to a share."""
    if not former:
        from peft.tuners.lora import LoraLayer  # noqa: PLC0415 (an extra)

        for module in model.modules():
            if isinstance(module, LoraLayer):  # its scale_layer passes embeddings over
                module.scaling = {name: scale * share for name, scale in module.scaling.items()}
        model.merge_and_unload(safe_merge=True)
        return
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in former:
                weight.copy_(former[name].lerp(weight, share))


def _adapted(model: Any) -> list[str]:
    """The linear layers, and the embeddings of tokens: what a word means is learnt there.

    An encoder-decoder shares its embeddings between both halves: an addition to each would be merged twice.
    """
    embeddings = None if model.config.is_encoder_decoder else model.get_input_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) or module is embeddings]


def _stacks(model: nn.Module) -> list[nn.ModuleList]:
    """The stacks of equal blocks that a transformer is made of: one, or those of encoder and decoder."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and _is_uniform(module)]
    most = max(map(len, stacks), default=0)
    return [stack for stack in stacks if len(stack) == most]


def _is_uniform(blocks: nn.ModuleList) -> bool:
    return len({type(block) for block in blocks}) == 1


def _unfreeze(model: Any, layers: Sequence[int]) -> None:
    """Train some layers and the head: all that is no part of the base model."""
    for stack in _stacks(model):
        for layer in layers:
            stack[layer].requires_grad_(requires_grad=True)
    base = {id(parameter) for parameter in model.base_model.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in base:
            parameter.requires_grad_(requires_grad=True)


def _collated(batch: Sequence[Pair], padded: Padded, order: LabelOrder) -> dict[str, torch.Tensor]:
    inputs = padded.inputs([pair.row for pair in batch])
    classes = 2 if order.neutral is None else 3
    labels = torch.zeros(len(batch), classes, device=inputs["input_ids"].device)
    for row, pair in enumerate(batch):
        labels[row, order.entailment] = pair.target.entailment * pair.weight
        labels[row, order.contradiction] = pair.target.contradiction * pair.weight
        if order.neutral is not None:
            labels[row, order.neutral] = pair.target.neutral * pair.weight
    return {**inputs, "labels": labels}


def _loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: object = None) -> torch.Tensor:
    """Cross-entropy with the probabilities wanted, each pair as heavy as those are together: the mean over pairs."""
    del num_items_in_batch  # counts labels of -100, which are none of ours
    logits: torch.Tensor = outputs.logits if hasattr(outputs, "logits") else outputs["logits"]
    return -(labels * logits.float().log_softmax(-1)).sum() / len(labels)


def _distance(predicted: EvalPrediction) -> dict[str, float]:
    """How far the probabilities are from those wanted: the mean over pairs of the total variation distance, in [0, 1].

    The loss would not do: it grows without bound where a few pairs come out wrong and sure of it, as long as the others
    get better.
    """
    labels = np.asarray(predicted.label_ids, dtype=np.float64)
    weights = labels.sum(axis=-1, keepdims=True)
    probabilities = softmax(np.asarray(predicted.predictions, dtype=np.float64))
    distances = 0.5 * np.abs(probabilities - labels / weights).sum(axis=-1, keepdims=True)
    return {"distance": float((weights * distances).sum() / weights.sum())}


class _Watch(TrainerCallback):
    """Tells of each step, and keeps what each epoch came to."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.epochs: list[Epoch] = []
        self._loss = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_rest: Any) -> None:  # noqa: ARG002 (by name)
        self._tell(state.global_step, None)

    def on_log(self, args: Any, state: Any, control: Any, **rest: Any) -> None:  # noqa: ARG002 (as above)
        logs = rest.get("logs") or {}
        if "loss" in logs:
            self._loss = float(logs["loss"])
            if args.eval_strategy == "no":
                self._close(state, None)

    def on_evaluate(self, args: Any, state: Any, control: Any, **rest: Any) -> None:  # noqa: ARG002 (as above)
        self._close(state, float(rest["metrics"][_DISTANCE]))

    def _close(self, state: Any, distance: float | None) -> None:
        epoch = Epoch(float(state.epoch), int(state.global_step), self._loss, distance)
        self.epochs.append(epoch)
        self._tell(state.global_step, epoch)
