"""Another checkpoint takes the place of the one that serves, or is refused and leaves it serving. Real checkpoints."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from tests import builders, families
from tests.families.revisions import Link, calibrate, revision
from worker import settings
from worker.app import load_engine
from worker.errors import CheckpointError, FatalError
from worker.http.health import Health
from worker.inference import checkpoint_files
from worker.inference.engine import Engine
from worker.learn import calibration_file
from worker.messages import Classification, Encoded, Outcome, Request
from worker.pipeline.served_model import ServedModel
from worker.reload import Load, Reload
from worker.rules.calibration import Temperature
from worker.telemetry.metrics import Metrics


class Stage:
    """A model that serves, at a link, and what was told."""

    def __init__(
        self, folder: Path, first: Path, load: Load = load_engine, free: int | None = None, **model: str
    ) -> None:
        self.link = Link(folder / "current", first)
        variables = {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": "none:9092",
            "XNLI_MODEL__NAME": str(self.link.path),
            "XNLI_MODEL__RELOAD": "signal",
        } | {f"XNLI_MODEL__{name.upper()}": value for name, value in model.items()}
        self.settings = settings.load(None, variables)
        self.registry = CollectorRegistry()
        self.health = Health(loop_limit_s=60, inference_limit_s=60)
        self.asked = False
        free_bytes = None if free is None else lambda _: free
        self.reload = Reload(self.settings, load, Metrics(self.registry), self.health, self._take, free_bytes)
        engine = load_engine(self.settings, progress=False)
        calibrations = calibration_file.offered(self.settings.model.calibration, engine.identity)
        self.served: ServedModel = self.reload.serve(engine, calibrations)
        self.first = self.served.identity

    def _take(self) -> bool:
        asked, self.asked = self.asked, False
        return asked

    def swap(self, to: Path) -> list[Any]:
        """Ask for it, and see it through. Returns the log."""
        self.link.to(to)
        self.asked = True
        with capture_logs() as lines:
            self.reload.step()
            self.go_on()
        return lines

    def is_loading(self) -> bool:
        return self.reload._loading is not None

    def go_on(self) -> None:
        deadline_s = time.monotonic() + 60
        while self.is_loading():
            assert time.monotonic() < deadline_s
            self.served.exchange(0.01)
            self.reload.step()

    def counted(self, outcome: str) -> float:
        return self.registry.get_sample_value("xnli_worker_model_swaps_total", {"outcome": outcome}) or 0.0

    def outcome(self, query: Request) -> Outcome:
        asked: tuple[Request, Encoded] = (query, self.served.encode(query))
        (found,), _ = self.served.run([asked], lambda: None)
        return found

    def answers(self) -> bool:
        return isinstance(self.outcome(builders.classify("text", "a", "b")), Classification)

    def require_refused(self, to: Path, why: str) -> None:
        """The one that serves goes on, loudly."""
        lines = self.swap(to)
        assert self.served.exchange(0)
        assert self.served.identity == self.first
        assert self.answers()
        assert self.counted("failed") == 1
        (line,) = (line for line in lines if line["event"] == "model_swap_failed")
        assert why in line["error"]
        (note,) = self.health.ready().notes
        assert why in note
        assert f"at {self.first.revision} goes on" in note


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return revision(tmp_path / "other", 0.8)


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    return revision(tmp_path / "shipped", 1.0)


def test_another_takes_its_place_and_the_metrics_name_it(tmp_path: Path, shipped: Path, other: Path) -> None:
    stage = Stage(tmp_path, shipped)
    (done,) = (line for line in stage.swap(other) if line["event"] == "model_swapped")
    assert done["former"] == stage.first.revision
    assert done["revision"] == stage.served.identity.revision == checkpoint_files.digest(other)
    assert stage.answers()
    labels = next(m for m in stage.registry.collect() if m.name == "xnli_worker_build").samples[0].labels
    assert labels["revision"] == done["revision"]
    assert (stage.counted("swapped"), stage.counted("failed")) == (1, 0)


def test_the_former_one_is_let_go_of_at_once(tmp_path: Path, shipped: Path, other: Path) -> None:
    """Without a search for cycles, which is rare: its weights are gone as soon as nobody computes by it."""
    import gc  # noqa: PLC0415
    import weakref  # noqa: PLC0415

    stage = Stage(tmp_path, shipped)
    model = stage.served._model
    assert isinstance(model, Engine)
    weights = weakref.ref(model.checkpoint.model)
    del model
    gc.disable()
    try:
        stage.swap(other)
        assert weights() is None
    finally:
        gc.enable()


def test_the_same_files_are_not_loaded_again(tmp_path: Path, shipped: Path) -> None:
    stage = Stage(tmp_path, shipped)
    stage.swap(shipped)
    assert (stage.counted("unchanged"), stage.counted("swapped")) == (1, 0)


def edited(folder: Path, change: Callable[[dict[str, Any]], None], file: str = "config.json") -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def permute(config: dict[str, Any]) -> None:
    config["id2label"] = {"0": "entailment", "1": "contradiction", "2": "neutral"}
    config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}


def anonymise(config: dict[str, Any]) -> None:
    config["id2label"] = {str(index): f"LABEL_{index}" for index in range(3)}
    config["label2id"] = {f"LABEL_{index}": index for index in range(3)}


def test_a_truncated_file_is_refused(tmp_path: Path, shipped: Path, other: Path) -> None:
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    Stage(tmp_path, shipped).require_refused(other, "If the files are damaged, copy or download them again")


class Calibrated:
    """A folder of calibrations, and a stage whose model has one."""

    def __init__(self, folder: Path, shipped: Path, **options: Any) -> None:
        self.folder = folder / "calibrations"
        self.put("topics-1", shipped, 2.0)
        self.stage = Stage(folder, shipped, calibration=str(self.folder), **options)

    def put(self, name: str, checkpoint: Path, temperature: float) -> None:
        calibrate(self.folder / f"{name}.json", checkpoint, ("sport", "cooking"), temperature)

    def require_calibrated_by(self, temperature: float) -> None:
        """Of a label set that names it, and of a request without one."""
        for named in (None, "topics"):
            query = builders.classify(
                "The striker scored.", "sport", "cooking", template="This example is {}.", calibration=named
            )
            found = self.stage.outcome(query)
            assert isinstance(found, Classification)
            wanted = Temperature(temperature)((0, 1), [one.score for one in found.labels])
            assert [one.calibrated for one in found.labels] == wanted


def test_a_newcomer_comes_with_its_own_calibration(tmp_path: Path, shipped: Path, other: Path) -> None:
    calibrated = Calibrated(tmp_path, shipped)
    calibrated.require_calibrated_by(2.0)
    calibrated.put("topics-2", other, 3.0)  # written after the start
    calibrated.stage.swap(other)
    assert calibrated.stage.served.identity != calibrated.stage.first
    calibrated.require_calibrated_by(3.0)
    calibrated.stage.swap(shipped)
    calibrated.require_calibrated_by(2.0)


def test_a_newcomer_without_a_calibration_is_refused_before_it_is_loaded(
    tmp_path: Path, shipped: Path, other: Path
) -> None:
    def load(*_: Any, **__: Any) -> Engine:
        pytest.fail("nothing was to be loaded")

    calibrated = Calibrated(tmp_path, shipped, load=load)
    calibrated.stage.require_refused(other, "has no calibration: model.calibration: 'topics' was fitted on demo at")
    calibrated.require_calibrated_by(2.0)


def test_calibrations_that_cannot_be_read_any_more_refuse_a_swap(tmp_path: Path, shipped: Path, other: Path) -> None:
    calibrated = Calibrated(tmp_path, shipped)
    (calibrated.folder / "topics-2.json").write_text("{")
    calibrated.stage.require_refused(other, "is no JSON")


def test_a_calibration_that_label_sets_may_name_stays_or_the_swap_is_refused(
    tmp_path: Path, shipped: Path, other: Path
) -> None:
    calibrated = Calibrated(tmp_path, shipped)
    (calibrated.folder / "topics-1.json").unlink()
    calibrated.put("default-2", other, 3.0)
    calibrated.stage.require_refused(other, "no longer holds 'topics'")
    calibrated.require_calibrated_by(2.0)


def test_requests_without_a_set_keep_a_calibration_or_the_swap_is_refused(
    tmp_path: Path, shipped: Path, other: Path
) -> None:
    calibrated = Calibrated(tmp_path, shipped)
    calibrated.put("topics-2", other, 3.0)
    calibrated.put("moods-2", other, 3.0)
    calibrated.stage.require_refused(other, "none for requests that name none, which have 'topics' so far")


def test_what_is_brought_back_has_its_own_calibration(tmp_path: Path, shipped: Path, other: Path) -> None:
    edited(other, permute)
    calibrated = Calibrated(tmp_path, shipped, free=0)
    calibrated.put("topics-2", other, 3.0)
    calibrated.stage.require_refused(other, "sure pairs came out right")
    calibrated.require_calibrated_by(2.0)


def test_permuted_labels_are_refused(tmp_path: Path, shipped: Path, other: Path) -> None:
    edited(other, permute)
    Stage(tmp_path, shipped).require_refused(other, "sure pairs came out right")


def test_classes_without_names_are_refused(tmp_path: Path, shipped: Path, other: Path) -> None:
    edited(other, anonymise)
    Stage(tmp_path, shipped).require_refused(other, "model.labels")


def test_an_empty_directory_is_refused_and_the_next_one_serves(tmp_path: Path, shipped: Path, other: Path) -> None:
    stage = Stage(tmp_path, shipped)
    (tmp_path / "empty").mkdir()
    stage.require_refused(tmp_path / "empty", "no checkpoint there")
    stage.swap(other)
    assert stage.served.identity != stage.first
    assert stage.health.ready().notes == ()


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path, families.checkpoint("roberta"), self_test="off")
    stage.require_refused(families.checkpoint("roberta", head="none"), "every CLASSIFY and ENTAIL would be refused")


def test_a_model_of_fewer_languages_is_refused(tmp_path: Path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(families.checkpoint("xlm"), fewer)

    def forget(config: dict[str, Any]) -> None:
        gone, *_ = sorted(config["lang2id"])
        del config["lang2id"][gone]

    edited(fewer, forget)
    stage = Stage(tmp_path, families.checkpoint("xlm"), self_test="off", default_language="en")
    stage.link.to(fewer)
    lines = stage.swap(fewer)
    assert any("does not know the languages" in line.get("error", "") for line in lines)
    assert stage.served.identity == stage.first


def test_another_family_serves_and_the_log_says_so(tmp_path: Path) -> None:
    stage = Stage(tmp_path, families.checkpoint("roberta"), self_test="off")
    (done,) = (line for line in stage.swap(families.checkpoint("bert")) if line["event"] == "model_swapped")
    assert done["family"] == "roberta -> bert"
    assert stage.answers()


def test_another_window_is_what_requests_are_cut_to_from_then_on(tmp_path: Path) -> None:
    stage = Stage(tmp_path, families.checkpoint("bert"), self_test="off")
    long = builders.classify("word " * 2_000, "a")
    assert len(stage.served.encode(long).rows[0].token_ids) == 512
    short = families.checkpoint("bert", changes=(("max_position_embeddings", 64),))
    (done,) = (line for line in stage.swap(short) if line["event"] == "model_swapped")
    assert done["max_length"] == "512 -> 64"
    encoded = stage.served.encode(long)
    assert len(encoded.rows[0].token_ids) == 64
    stage.served.run([(long, encoded)], lambda: None)


def test_files_that_change_while_they_are_read_are_refused(tmp_path: Path, shipped: Path, other: Path) -> None:
    def load(*arguments: Any, **options: Any) -> Engine:
        engine = load_engine(*arguments, **options)
        (other / "config.json").touch()
        return engine

    Stage(tmp_path, shipped, load).require_refused(other, "changed while they were read")


def test_what_nobody_foresaw_leaves_the_model_serving_too(tmp_path: Path, shipped: Path, other: Path) -> None:
    def load(*_: Any, **__: Any) -> Engine:
        raise ZeroDivisionError("a bug")

    Stage(tmp_path, shipped, load).require_refused(other, "ZeroDivisionError: a bug")


def test_where_memory_does_not_hold_two_they_follow_each_other(tmp_path: Path, shipped: Path, other: Path) -> None:
    stage: Stage

    def load(*arguments: Any, **options: Any) -> Engine:
        assert stage.served._model is None  # it has left before the newcomer is loaded
        return load_engine(*arguments, **options)

    stage = Stage(tmp_path, shipped, load, free=0)
    stage.swap(other)
    assert stage.served.identity.revision == checkpoint_files.digest(other)
    assert stage.answers()


def test_what_fails_then_brings_the_former_one_back(tmp_path: Path, shipped: Path, other: Path) -> None:
    edited(other, permute)
    Stage(tmp_path, shipped, free=0).require_refused(other, "sure pairs came out right")


def test_weights_that_are_cut_off_make_nobody_leave(tmp_path: Path, shipped: Path, other: Path) -> None:
    def load(*_: Any, **__: Any) -> Engine:
        pytest.fail("nothing was to be loaded")

    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    Stage(tmp_path, shipped, load, free=0).require_refused(other, "it is damaged")


def test_where_the_former_one_cannot_be_brought_back_the_process_ends(
    tmp_path: Path, shipped: Path, other: Path
) -> None:
    edited(other, permute)
    stage = Stage(tmp_path, shipped, free=0)
    (shipped / "model.safetensors").unlink()
    with pytest.raises(FatalError, match="nor can the former model serve again"):
        stage.swap(other)


def test_nothing_begins_while_a_record_is_looked_at_alone(tmp_path: Path, shipped: Path, other: Path) -> None:
    stage = Stage(tmp_path, shipped)
    stage.link.to(other)
    stage.asked = True
    stage.reload.step(lambda: False)
    assert not stage.is_loading()
    stage.reload.step()
    assert stage.is_loading()
    stage.go_on()


def test_a_hub_is_not_watched(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r'model\.reload = "watch" needs a directory'):
        Stage(tmp_path, tmp_path, name="owner/name", reload="watch")


def test_a_half_loaded_model_in_another_precision_changes_no_score(tmp_path: Path) -> None:
    """transformers sets the default dtype of the whole process while it makes a model."""
    engine = load_engine(Stage(tmp_path, families.checkpoint("mpnet"), self_test="off").settings, progress=False)
    asked = builders.classify("some text", "a", "b")
    requests = [(asked, engine.encode(asked))]
    alone, _ = engine.run(requests)
    torch.set_default_dtype(torch.bfloat16)
    try:
        beside, _ = engine.run(requests)
    finally:
        torch.set_default_dtype(torch.float32)
    assert alone == beside


def test_a_link_that_leads_elsewhere_is_noticed_where_it_is_watched(
    tmp_path: Path, shipped: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.reload.POLL_S", 0.01)
    monkeypatch.setattr("worker.inference.checkpoint_watch.QUIET_S", 0.05)
    stage = Stage(tmp_path, shipped, reload="watch")
    stage.link.to(other)
    deadline_s = time.monotonic() + 60
    while stage.served.identity == stage.first:
        assert time.monotonic() < deadline_s
        stage.served.exchange(0.01)
        stage.reload.step()
    assert stage.served.identity.revision == checkpoint_files.digest(other)
