"""A second model computes a sample while nothing else does, and gives way before each row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from tests.brokers.memory import MemoryBroker
from tests.delivery import doubles
from tests.delivery.doubles import ANSWER, job, partition
from tests.delivery.worker import RETRY, Worker
from worker.errors import FatalError
from worker.http.calls import Gate
from worker.messages import (
    Answered,
    Batch,
    Classification,
    Encoded,
    LabelScore,
    ModelIdentity,
    Outcome,
    Pooling,
    Request,
    Trigger,
    Work,
)
from worker.pipeline.infer import InferenceThread
from worker.pipeline.shadow import MOST_WAITING, Shadow
from worker.telemetry.metrics import Shadowed


class Second(doubles.Engine):
    """Beats before each of its ``rows``."""

    identity = ModelIdentity("second", "1")
    device = precision = "none"
    pooling = Pooling.MEAN

    def __init__(self, answer: Outcome = ANSWER, rows: int = 1) -> None:
        super().__init__()
        self._answer, self._rows = answer, rows
        self.rows = 0

    def encode(self, _: Request) -> Encoded:
        return Encoded((), 1, False, 1)

    def run(self, requests: Sequence[tuple[Request, Encoded]], beat: Callable[[], None]) -> tuple[list[Outcome], Work]:
        for _ in range(self._rows):
            beat()
            self.rows += 1
        _, work = super().run(requests, lambda: None)
        return [self._answer] * len(requests), work


class Stage:
    def __init__(self, second: Second, share: float = 1.0) -> None:
        self.outcomes: Counter[str] = Counter()
        self.drifts: list[float] = []
        self.gate = Gate()
        self.is_wanted = False
        self.shadow = Shadow(second, share, self._told, seed=1)
        self.shadow.attend(self.gate, lambda: self.is_wanted)
        self.thread = InferenceThread(
            doubles.Engine(), RETRY, lambda: 0.0, lambda _: None, lambda: None, shadow=self.shadow
        )

    def _told(self, outcome: Shadowed, drift: float | None = None) -> None:
        self.outcomes[outcome] += 1
        if drift is not None:
            self.drifts.append(drift)

    def batch(self, *texts: str) -> None:
        jobs = tuple(job(offset, text) for offset, text in enumerate(texts))
        self.thread.offer(Batch(jobs, len(jobs), 0.0, Trigger.WAIT))

    def answer(self, *texts: str) -> None:
        self.batch(*texts)
        assert self.thread.step(0)
        assert self.thread.collect() is not None


def test_what_was_answered_is_computed_again_once_nothing_else_waits() -> None:
    stage = Stage(second := Second())
    stage.answer("a", "b")
    assert second.runs == []
    stage.thread.step(0)
    stage.thread.step(0)
    assert second.runs == [1, 1]
    assert stage.outcomes == {"agrees": 2}
    assert not stage.shadow.step(lambda: True, lambda: None)


def test_another_answer_differs() -> None:
    other = Classification((LabelScore("a", 0.5, 0.5, 0.0, 0.5),), multi_label=False, abstained=False)
    stage = Stage(Second(other))
    stage.answer("a")
    stage.thread.step(0)
    assert stage.outcomes == {"differs": 1}
    assert stage.drifts == [0.0]


def test_it_begins_nothing_while_the_device_is_or_will_be_wanted() -> None:
    stage = Stage(second := Second())
    stage.answer("a")
    stage.is_wanted = True  # jobs wait for their batch
    stage.thread.step(0)
    assert second.runs == []
    stage.is_wanted = False
    stage.batch("b")
    assert stage.thread.step(0)
    assert second.runs == []
    assert stage.thread.collect() is not None


def test_it_gives_way_before_the_next_row_and_begins_again_later() -> None:
    stage = Stage(second := Second(rows=10))
    stage.answer("a")
    free = iter([True] * 4 + [False])
    assert not stage.shadow.step(lambda: next(free), lambda: None)
    assert second.rows == 3  # one look is before it begins
    assert not stage.gate.computing
    stage.thread.step(0)
    assert stage.outcomes == {"agrees": 1}


def test_a_marked_record_is_left_alone() -> None:
    stage = Stage(second := Second())
    stage.answer("a")
    stage.gate.hold()
    stage.thread.step(0)
    assert second.runs == []
    stage.gate.open()
    stage.thread.step(0)
    assert second.runs == [1]


def test_what_finds_no_room_is_left_out_and_counted() -> None:
    stage = Stage(Second())
    stage.answer(*["a"] * (MOST_WAITING + 5))
    assert stage.outcomes == {"shed": 5}


def test_the_share_is_kept() -> None:
    stage = Stage(second := Second(), share=0.2)
    for _ in range(100):
        stage.answer(*["a"] * 10)
        while stage.shadow.step(lambda: True, lambda: None):
            pass
    assert len(second.runs) == pytest.approx(200, rel=0.2)


def test_what_the_second_model_fails_on_concerns_nobody() -> None:
    stage = Stage(Second())
    stage.shadow.sample([Answered(job(0, "poison"), ANSWER), Answered(job(1, "a"), ANSWER)])
    stage.thread.step(0)
    stage.thread.step(0)
    assert stage.outcomes == {"failed": 1, "agrees": 1}


def test_a_device_that_is_lost_ends_the_worker() -> None:
    class Lost(Second):
        def run(self, *_: object) -> tuple[list[Outcome], Work]:
            raise FatalError("the device is gone")

    stage = Stage(Lost())
    stage.answer("a")
    with pytest.raises(FatalError):
        stage.thread.step(0)


def test_beside_a_stream_it_changes_no_answer(broker: MemoryBroker) -> None:
    told: Counter[str] = Counter()

    def count(outcome: Shadowed, drift: float | None = None) -> None:
        told[outcome] += 1

    worker = Worker(broker, shadow=Shadow(Second(), 1.0, count, seed=1))
    broker.assign(partition(0))
    broker.send(partition(0), *[b"ok", b"poison", b"flaky 1"] * 5)
    worker.settle()
    worker.turn(50)
    assert len(broker.visible) == 15
    assert told["agrees"] == 5  # the words of command are the second model's too: it fails on what is flaky at first
    assert told["failed"] == 5
