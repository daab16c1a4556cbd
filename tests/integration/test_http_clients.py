"""Clients of others against a worker without Kafka, and its answers against transformers' pipeline and the stream's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import openai
import pytest

from tests.faults.workers import ROOT, WorkerProcess
from tests.golden.reference import Reference

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHECKPOINT = ROOT / "worker" / "demo" / "checkpoint"
TEXT = "The parcel came two days late, and the box was crushed."
LABELS = ["delivery", "payment", "praise"]
TEMPLATE = "This text is about {}."
CLOSE = 1e-5


class Serving:
    def __init__(self, process: WorkerProcess) -> None:
        self.process = process
        process.wait_for("started", 180)
        self.url = f"http://127.0.0.1:{process.events('started')[0]['http_port']}"

    def curl(self, path: str, body: object) -> object:
        found = subprocess.run(
            ["curl", "-sS", f"{self.url}{path}", "-H", "Content-Type: application/json", "-d", json.dumps(body)],
            check=True,
            capture_output=True,
            timeout=60,
        )
        return json.loads(found.stdout)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    environment = {"XNLI_MODEL__NAME": str(CHECKPOINT), "XNLI_MODEL__PRECISION": "fp32", "XNLI_LOG__FORMAT": "json"}
    log = tmp_path_factory.mktemp("serve") / "log"
    with WorkerProcess(environment, log, ("worker.cli", "serve")) as process:
        yield Serving(process)
        assert process.stop() == 0


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(CHECKPOINT)


@pytest.mark.parametrize("multi_label", [False, True])
def test_huggingface_hub_classifies_as_transformers_pipeline(
    serving: Serving, reference: Reference, multi_label: bool
) -> None:
    found = huggingface_hub.InferenceClient(serving.url).zero_shot_classification(
        TEXT, LABELS, multi_label=multi_label, hypothesis_template=TEMPLATE
    )
    expected = reference.pipeline(TEXT, LABELS, template=TEMPLATE, multi_label=multi_label)
    assert [one.label for one in found] == [label for label, _ in expected]
    assert [one.score for one in found] == pytest.approx([score for _, score in expected], abs=CLOSE)


def test_every_way_of_asking_for_a_vector_gives_the_same(serving: Serving) -> None:
    own = serving.curl("/v1/embed", {"text": TEXT})
    assert isinstance(own, dict)
    vector = np.array(own["outcome"]["vector"], np.float32)
    client = huggingface_hub.InferenceClient(serving.url)
    np.testing.assert_allclose(client.feature_extraction(TEXT), vector, atol=CLOSE)
    asked = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none").embeddings
    for encoding in (openai.omit, "float", "base64"):  # left out, the client asks for base64 and decodes it
        data = asked.create(input=[TEXT, "x"], model="any", encoding_format=encoding).data
        assert len(data) == 2
        if encoding != "base64":
            np.testing.assert_allclose(data[0].embedding, vector, atol=CLOSE)
    np.testing.assert_allclose(np.array(serving.curl("/embed", {"inputs": TEXT})), [vector], atol=CLOSE)


def test_a_pair_is_judged_as_the_model_judges_it(serving: Serving, reference: Reference) -> None:
    found = serving.curl("/", {"inputs": {"text": TEXT, "text_pair": "Something is late."}})
    assert isinstance(found, list)
    own = serving.curl("/v1/entail", {"text": TEXT, "hypotheses": ["Something is late."]})
    assert isinstance(own, dict)
    judged = own["outcome"]["judgements"][0]
    logits = reference.logits(TEXT, "Something is late.").astype(np.float64)
    expected = np.sort(np.exp(logits) / np.exp(logits).sum())[::-1]
    assert [one["score"] for one in found] == pytest.approx(expected.tolist(), abs=CLOSE)
    assert {one["label"]: one["score"] for one in found} == pytest.approx(
        {name: judged[name] for name in ("entailment", "neutral", "contradiction")}
    )


def test_clients_understand_why_they_are_refused(serving: Serving) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="nothing of it can be seen"):
        openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none").embeddings.create(input="", model="any")
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="nothing of it can be seen"):
        huggingface_hub.InferenceClient(serving.url).zero_shot_classification("", LABELS)


def test_classify_asks_a_worker_by_its_address(serving: Serving) -> None:
    assert shutil.which("curl")
    command = [serving.process._command[5], "-m", "worker.cli", "classify", TEXT, "--labels", ",".join(LABELS)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
    done = subprocess.run(
        [*command, "--url", serving.url, "--template", TEMPLATE, "--evidence", "1", "--json"],
        env=environment | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        timeout=60,
    )
    shown = json.loads(done.stdout)
    asked = {"text": TEXT, "labels": LABELS, "hypothesis_template": TEMPLATE, "evidence": 1}
    own = serving.curl("/v1/classify", asked)
    assert isinstance(own, dict)
    spans = [[(one["start"], one["end"]) for one in label.get("evidence", ())] for label in own["outcome"]["labels"]]
    assert any(spans)
    assert [[(one["start"], one["end"]) for one in label["evidence"]] for label in shown["labels"]] == spans
    assert [one["label"] for one in shown["labels"]] == [one["label"] for one in own["outcome"]["labels"]]
    assert [one["score"] for one in shown["labels"]] == pytest.approx(
        [one["score"] for one in own["outcome"]["labels"]], abs=CLOSE
    )


def test_serve_refuses_strangers_at_the_settings(tmp_path: Path) -> None:
    environment = {"XNLI_HTTP__HOST": "0.0.0.0", "XNLI_MODEL__NAME": "demo"}  # noqa: S104 (what is refused)
    with WorkerProcess(environment, tmp_path / "log", ("worker.cli", "serve")) as process:
        assert process.process.wait(60) == 2
        assert "http.insecure = true" in (tmp_path / "log").read_text()
