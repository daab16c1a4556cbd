"""The device and the number format to compute in, chosen by what the hardware does fast."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch

from worker.errors import CheckpointError

log = logging.getLogger("worker.inference")


class Precision(StrEnum):
    """The number format of the computation. For INT8 and INT4 the forward quantises its linear layers when it is made.

    INT8 multiplies integers. INT4 only keeps its weights in 4 bits, for the memory, and multiplies in `dtype`.
    """

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def quantises(self) -> bool:
        """Whether linear layers have weights of their own, so that those of the checkpoint need not be kept."""
        return self in {Precision.INT8, Precision.INT4}


@dataclass(frozen=True, slots=True)
class Processor:
    """What a CPU multiplies fast: bfloat16 tiles (AMX) or int8 vectors (AVX-512 VNNI)."""

    amx_bf16: bool
    vnni: bool

    @classmethod
    def probe(cls) -> Processor:
        """Ask torch about this CPU. AMX counts only where the operating system lets this process use it."""
        flags: Mapping[str, object] = torch.cpu.get_capabilities()
        onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's
        amx = onednn and bool(flags.get("amx_bf16")) and bool(flags.get("amx_tile"))
        # Linux grants AMX on request (arch_prctl, ARCH_REQ_XCOMP_PERM), for which torch has no public call.
        amx = amx and torch.cpu._init_amx()  # noqa: SLF001 (see above)
        return cls(amx_bf16=amx, vnni=onednn and bool(flags.get("avx512_vnni")))


def dtype(precision: Precision, device: torch.device, processor: Processor | None = None) -> torch.dtype:
    """The format of the loaded weights, and of what is not quantised.

    Args:
        precision: as `choose` resolved it.
        device: where the model will run.
        processor: the CPU; probed if not given.
    """
    if precision is Precision.INT4:  # what is multiplied fast here
        if device.type == "cuda":
            precision = _of_cuda(device)[0]
        elif (processor or Processor.probe()).amx_bf16:
            precision = Precision.BF16
    return {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}.get(precision, torch.float32)


def find_device(name: str) -> torch.device:
    """Resolve the setting ``model.device``: "auto" (CUDA if there is one, else the CPU) or a torch device name.

    Raises:
        CheckpointError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CheckpointError(f'model.device = "{name}" is no device name: use auto, cpu, cuda or cuda:N') from error
    if device.type == "cpu":
        return device
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) < count:
            return device
        raise CheckpointError(
            f'model.device = "{name}" but torch {torch.__version__} sees {count} CUDA devices: install the driver and '
            'a CUDA build of torch, choose another index, or set model.device = "cpu"'
        )
    if device.type == "mps" and torch.backends.mps.is_available():
        return device
    raise CheckpointError(f'model.device = "{name}" cannot be used here: use auto, cpu, cuda or cuda:N')


def choose(wanted: str, device: torch.device, family: str, processor: Processor | None = None) -> Precision:
    """Resolve the setting ``model.precision`` and log why "auto" chose what it did.

    Args:
        wanted: "auto" or a `Precision`.
        device: where the model will run.
        family: ``config.model_type``.
        processor: the CPU; probed if not given.

    Raises:
        CheckpointError: no such precision, or none that works on this device.
    """
    if wanted == "auto":
        precision, reason = _automatic(device, family, processor or Processor.probe())
        log.info("precision %s on %s: %s", precision, device, reason)
        return precision
    try:
        precision = Precision(wanted)
    except ValueError:
        known = ", ".join(Precision)
        raise CheckpointError(f'model.precision = "{wanted}" is unknown: use auto, {known}') from None
    if precision is Precision.FP16 and device.type == "cpu":
        raise CheckpointError(
            'model.precision = "fp16" on a CPU is slower and coarser than fp32: use auto, bf16 (fast with AMX), int8 '
            "(fast with VNNI) or fp32"
        )
    if precision is Precision.INT4 and device.type not in {"cpu", "cuda"}:
        raise CheckpointError(f'model.precision = "int4" is for CPUs and CUDA, not {device}: use auto, fp16 or fp32')
    if precision is Precision.INT8 and device.type != "cpu":
        raise CheckpointError(f'model.precision = "int8" is for CPUs, not {device}: use auto, bf16, fp16 or fp32')
    if precision is Precision.INT8 and not (processor or Processor.probe()).vnni:
        # Without VNNI the kernels add pairs of products in 16 bits and saturate: wrong scores, not only slow ones.
        raise CheckpointError('model.precision = "int8" needs a CPU with VNNI: use auto or fp32')
    return precision


# What "auto" may take on a CPU, family by family. Scores are measured to stay within the format's bound of fp32, of
# each (tests/golden). Speed in bfloat16 was measured on CPUs with AMX for packed BERT and RoBERTa (4.6 x fp32), and
# while they were padded for BART (4 x) and DeBERTa (2.8 x). The others have the same products, and are not measured.
_BF16_ON_CPU = frozenset(
    {
        *("xlm-roberta", "roberta", "camembert", "bert", "distilbert", "electra", "albert", "bart", "mbart", "xlm"),
        *("deberta-v2", "modernbert"),
    }
)
_INT8_ON_CPU = frozenset({"xlm-roberta", "roberta", "camembert", "bert", "distilbert"})


def _automatic(device: torch.device, family: str, processor: Processor) -> tuple[Precision, str]:
    if device.type == "cuda":
        return _of_cuda(device)
    if device.type != "cpu":
        return Precision.FP32, "nothing faster is measured there"
    if processor.amx_bf16:
        if family in _BF16_ON_CPU:
            return Precision.BF16, "the CPU has AMX"
        return Precision.FP32, f"{family} is not measured in bfloat16 on a CPU"
    if processor.vnni:
        if family in _INT8_ON_CPU:
            return Precision.INT8, "the CPU has VNNI and no AMX"
        return Precision.FP32, f"the CPU has no AMX, and {family} is not measured in int8"
    return Precision.FP32, "the CPU has neither AMX nor VNNI"


def _of_cuda(device: torch.device) -> tuple[Precision, str]:
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 8:
        return Precision.BF16, f"compute capability {major}.{minor} has bfloat16 tensor cores"
    return Precision.FP16, f"compute capability {major}.{minor} has no bfloat16 tensor cores"
