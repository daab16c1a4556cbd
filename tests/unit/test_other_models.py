"""A second checkpoint beside the one that serves: a real one, a row a forward."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from prometheus_client import CollectorRegistry

from tests import builders
from tests.families.revisions import revision
from worker import settings
from worker.app import load_engine
from worker.http.calls import Gate
from worker.http.health import Health
from worker.messages import Answered, Job, Partition, Position, Record
from worker.other_models import load_shadow, open_reload
from worker.pipeline.shadow import Shadow
from worker.start import Start
from worker.telemetry.metrics import Metrics, Shadowed


def loaded(**model: str) -> settings.Settings:
    variables = {"XNLI_KAFKA__BOOTSTRAP_SERVERS": "none:9092", "XNLI_MODEL__NAME": "demo"}
    return settings.load(None, variables | {f"XNLI_MODEL__{name.upper()}": value for name, value in model.items()})


def test_a_changed_checkpoint_agrees_and_its_scores_drift(tmp_path: Path) -> None:
    found = loaded(shadow=str(revision(tmp_path / "other", 0.8)))
    serving = load_engine(found, progress=False)
    second = load_shadow(found, load_engine, Start(lambda: False))
    assert second is not None
    assert second.identity != serving.identity
    asked = builders.classify("The striker scored twice.", "sport", "cooking", template="This example is {}.")
    outcomes, work = serving.run([(asked, serving.encode(asked))])
    assert work.forwards == 1
    assert second.run([(asked, second.encode(asked))])[1].forwards == 2  # so that it can give way in between
    told, drifts = Counter[str](), list[float]()

    def tell(outcome: Shadowed, drift: float | None = None) -> None:
        told[outcome] += 1
        drifts.append(drift or 0.0)

    shadow = Shadow(second, 1.0, tell)
    shadow.attend(Gate(), lambda: False)
    record = Record(Position(Partition("requests", 0), 0, 1), None, b"", (), 0)
    shadow.sample([Answered(Job(record, asked, serving.encode(asked)), outcomes[0])])
    assert shadow.step(lambda: True, lambda: None)
    assert told == {"agrees": 1}
    assert 0 < drifts[0] < 0.2


def test_without_the_settings_there_is_neither() -> None:
    found = loaded()
    assert load_shadow(found, load_engine, Start(lambda: False)) is None
    metrics, health = Metrics(CollectorRegistry()), Health(loop_limit_s=1, inference_limit_s=1)
    assert open_reload(found, load_engine, metrics, health, lambda: False) is None
