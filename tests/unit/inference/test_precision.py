from __future__ import annotations

import logging

import pytest
import torch

from worker.errors import CheckpointError
from worker.inference import precision
from worker.inference.forwards import families
from worker.inference.precision import Precision, Processor

CPU = torch.device("cpu")
AMX = Processor(amx_bf16=True, vnni=True)
VNNI = Processor(amx_bf16=False, vnni=True)
NEITHER = Processor(amx_bf16=False, vnni=False)


@pytest.mark.parametrize(
    ("processor", "family", "expected", "reason"),
    [
        (AMX, "xlm-roberta", Precision.BF16, "AMX"),
        (VNNI, "xlm-roberta", Precision.INT8, "VNNI"),
        (NEITHER, "xlm-roberta", Precision.FP32, "neither"),
        (AMX, "bart", Precision.BF16, "AMX"),
        (VNNI, "bart", Precision.FP32, "bart is not measured in int8"),
        (AMX, "mpnet", Precision.FP32, "mpnet is not measured in bfloat16"),
    ],
)
def test_auto_goes_by_what_the_cpu_does_fast_and_says_why(
    processor: Processor, family: str, expected: Precision, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "worker.inference"):
        assert precision.choose("auto", CPU, family, processor) is expected
    assert reason in caplog.text


@pytest.mark.parametrize("family", sorted(families.PACKED))
def test_every_packed_family_takes_bfloat16_where_amx_multiplies_it(family: str) -> None:
    assert precision.choose("auto", CPU, family, AMX) is Precision.BF16


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), Precision.FP16), ((8, 0), Precision.BF16)])
def test_auto_goes_by_the_compute_capability(
    capability: tuple[int, int], expected: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert precision.choose("auto", torch.device("cuda"), "xlm-roberta", NEITHER) is expected


def test_what_is_asked_for_is_taken() -> None:
    assert precision.choose("int8", CPU, "xlm", VNNI) is Precision.INT8
    assert precision.choose("bf16", CPU, "deberta-v2", NEITHER) is Precision.BF16
    assert precision.choose("int4", CPU, "mpnet", NEITHER) is Precision.INT4


@pytest.mark.parametrize(("processor", "dtype"), [(AMX, torch.bfloat16), (VNNI, torch.float32)])
def test_weights_of_4_bits_are_multiplied_in_what_the_cpu_multiplies_fast(
    processor: Processor, dtype: torch.dtype
) -> None:
    assert precision.dtype(Precision.INT4, CPU, processor) is dtype
    assert precision.dtype(Precision.INT8, CPU, processor) is torch.float32


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((9, 0), torch.bfloat16)])
def test_and_what_the_gpu_does(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert precision.dtype(Precision.INT4, torch.device("cuda"), NEITHER) is dtype


@pytest.mark.parametrize(
    ("wanted", "device", "message"),
    [
        ("fp16", "cpu", "use auto, bf16"),
        ("int8", "cuda", "for CPUs"),
        ("int8", "cpu", "needs a CPU with VNNI"),
        ("int4", "mps", "for CPUs and CUDA"),
        ("float32", "cpu", "use auto, fp32, bf16, fp16, int8, int4"),
    ],
)
def test_what_cannot_work_is_refused_with_the_mend(wanted: str, device: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        precision.choose(wanted, torch.device(device), "bert", NEITHER)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "cpuu"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"model\.device"):
        precision.find_device(name)


def test_this_cpu_can_be_probed() -> None:
    processor = Processor.probe()
    assert processor.vnni or not processor.amx_bf16  # no CPU has AMX without VNNI
