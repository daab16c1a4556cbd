"""What a user would run instead, each over the same pairs, from strings to scores, with batches of its own liking.

Peers that leave batching to their caller get pairs ordered by length, longest first: the best they can be given.
A peer that is not installed is left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from worker.commands.bench import zero_shot_pipeline
from worker.messages import Request

Subject = Callable[[], None]


def pipeline(directory: Path, requests: Sequence[Request], *, batch: int, dtype: torch.dtype, device: str) -> Subject:
    """transformers' zero-shot pipeline: one call per message, because each has labels of its own."""
    return zero_shot_pipeline(directory, requests, device=device, dtype=dtype, batch_size=batch)


def cross_encoder(
    directory: Path, requests: Sequence[Request], *, batch: int, dtype: torch.dtype, device: str
) -> Subject:
    """sentence-transformers' CrossEncoder, all pairs in one call: it orders them by length itself."""
    from sentence_transformers import CrossEncoder  # noqa: PLC0415 (an extra)

    model = CrossEncoder(str(directory), device=device, max_length=512, model_kwargs={"dtype": dtype})

    def run() -> None:
        model.predict(pairs(requests), batch_size=batch, show_progress_bar=False)

    return run


def onnx_runtime(directory: Path, requests: Sequence[Request], *, batch: int, int8: bool) -> Subject:
    """ONNX Runtime over the exported model, dynamically quantised if asked for."""
    import onnxruntime  # noqa: PLC0415 (an extra)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(export(directory, int8=int8)), options, ["CPUExecutionProvider"])
    tokenizer = _tokenizer(directory)

    def run() -> None:
        for inputs in _batches(tokenizer, requests, batch):
            session.run(None, inputs)

    return run


def openvino(directory: Path, requests: Sequence[Request], *, batch: int, precision: str) -> Subject:
    """OpenVINO over the exported model, set for throughput of one stream."""
    import openvino as ov  # noqa: PLC0415 (an extra)

    core = ov.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()})
    compiled = core.compile_model(core.read_model(export(directory, int8=False)), "CPU")
    tokenizer = _tokenizer(directory)

    def run() -> None:
        for inputs in _batches(tokenizer, requests, batch):
            compiled(inputs)

    return run


def installed(name: str) -> bool:
    """Whether a package is there."""
    return importlib.util.find_spec(name) is not None


def pairs(requests: Sequence[Request]) -> list[tuple[str, str]]:
    """Premises and hypotheses."""
    return [(request.text, hypothesis) for request in requests for hypothesis in request.hypotheses]


def export(directory: Path, *, int8: bool) -> Path:
    """The model as ONNX, made once."""
    path = directory / "model.onnx"
    if not path.exists():
        automatic: Any = transformers.AutoModelForSequenceClassification
        model = automatic.from_pretrained(directory, dtype=torch.float32).eval()
        ids = torch.full((2, 16), 5, dtype=torch.int64)
        ids[:, -1] = model.config.eos_token_id  # without one BART has nothing to classify by
        axes = {0: "batch", 1: "length"}
        torch.onnx.export(
            model,
            (ids, ids),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": {0: "batch"}},
            dynamo=False,
        )
    if not int8:
        return path
    quantised = directory / "model-int8.onnx"
    if not quantised.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 (an extra)

        quantize_dynamic(path, quantised, weight_type=QuantType.QInt8, per_channel=True)
    return quantised


def _tokenizer(directory: Path) -> Any:
    automatic: Any = transformers.AutoTokenizer
    return automatic.from_pretrained(directory, model_max_length=512)


def _batches(tokenizer: Any, requests: Sequence[Request], size: int) -> Iterator[dict[str, np.ndarray]]:
    encoded = tokenizer(pairs(requests), truncation="only_first")["input_ids"]
    encoded.sort(key=len, reverse=True)
    for start in range(0, len(encoded), size):
        chosen = encoded[start : start + size]
        padded = tokenizer.pad({"input_ids": chosen}, return_tensors="np")
        yield {name: padded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
