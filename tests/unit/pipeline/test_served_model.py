"""A model is exchanged for another between two batches, over Kafka in memory and on a fake clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from tests.brokers.memory import MemoryBroker
from tests.delivery import doubles
from tests.delivery.doubles import Codec, job, partition, reason, request, word
from tests.delivery.observed import BOTH
from tests.delivery.worker import RETRY, Guarantee, Worker
from worker.errors import Reason, Rejection
from worker.http.calls import CallQueue
from worker.messages import (
    Answered,
    Batch,
    BatchResult,
    Calibrator,
    Encoded,
    Failed,
    Fault,
    Job,
    ModelIdentity,
    Outcome,
    Output,
    Pooling,
    Request,
    Trigger,
    Work,
)
from worker.pipeline.infer import InferenceThread
from worker.pipeline.served_model import ServedModel
from worker.rules.calibration import Calibration, Calibrations, Curves, KnownLabel, Platt
from worker.rules.device_share import DeviceShare

P0, P1 = partition(0), partition(1)
REVISION = "revision"


class Model(doubles.Engine):
    """Tokens of its own, which it knows again. ``refused`` is a word that it cannot tokenise."""

    device = precision = "none"
    pooling = Pooling.MEAN

    def __init__(self, revision: str, *, tokens: int = 10, refused: str = "") -> None:
        super().__init__()
        self.identity = ModelIdentity("model", revision)
        self.computed: list[str] = []
        self.meanwhile: list[Callable[[], None]] = []  # done as it computes
        self._tokens, self._refused = tokens, refused
        self._calibrator: Calibrator | None = None

    def calibrations(self) -> Calibrations:
        """Of this revision alone."""
        curve = Platt(1.0, float(self.identity.revision))
        self._calibrator = Curves((curve,))
        made = Calibration("topics", self.identity, (KnownLabel("a", ("a",), curve),))
        return Calibrations({made.name: made}, made)

    def encode(self, request: Request) -> Encoded:
        if word(request) == self._refused:
            raise Rejection(Reason.INVALID, "encode", "no room for the text")
        return Encoded((), 1, False, self._tokens)

    def run(self, requests: Sequence[tuple[Request, Encoded]], beat: Callable[[], None]) -> tuple[list[Outcome], Work]:
        assert {encoded.tokens for _, encoded in requests} == {self._tokens}, "these are another model's tokens"
        calibrators = {request.calibrator for request, _ in requests}
        assert calibrators == {self._calibrator}, "these are another model's calibrations"
        while self.meanwhile:
            self.meanwhile.pop()()
        found = super().run(requests, beat)
        self.computed += [request.text for request, _ in requests]
        return found


def inference(served: ServedModel, calls: CallQueue | None = None) -> InferenceThread:
    share = DeviceShare(0.5, 1_000)
    return InferenceThread(served, RETRY, lambda: 0.0, lambda _: None, lambda: None, calls, share, swapped=served)


def jobs(served: ServedModel, *texts: str) -> tuple[Job, ...]:
    made = (job(offset, text) for offset, text in enumerate(texts))
    return tuple(replace(one, encoded=served.encode(one.request)) for one in made)


def computed(thread: InferenceThread, *waiting: Job) -> BatchResult:
    thread.offer(Batch(waiting, sum(one.encoded.tokens for one in waiting), 0.0, Trigger.WAIT))
    assert thread.step(0)
    done = thread.collect()
    assert done is not None
    return done


def revisions(done: BatchResult) -> list[str]:
    return [found.job.encoded.model.revision if found.job.encoded.model else "" for found in done.finished]


def test_jobs_that_wait_are_tokenised_anew_and_name_the_model_that_computed_them() -> None:
    served = ServedModel(Model("one"))
    thread = inference(served)
    waiting = jobs(served, "a", "b")
    served.offer(Model("two", tokens=7))
    done = computed(thread, *waiting)
    assert revisions(done) == ["two", "two"]
    assert done.batch.tokens == 14
    assert served.identity.revision == "two"


def test_a_batch_under_way_is_ended_by_the_model_that_began_it() -> None:
    served = ServedModel(first := Model("one"))
    thread = inference(served)
    first.meanwhile.append(lambda: served.offer(Model("two", tokens=7)))
    assert revisions(computed(thread, *jobs(served, "a", "poison", "c"))) == ["one"] * 3
    assert revisions(computed(thread, *jobs(served, "a"))) == ["two"]
    assert served.left() is first
    assert served.left() is None


def test_what_the_newcomer_cannot_tokenise_fails_alone() -> None:
    served = ServedModel(Model("one"))
    thread = inference(served)
    waiting = jobs(served, "a", "long", "c", "long", "e")
    served.offer(Model("two", tokens=7, refused="long"))
    done = computed(thread, *waiting)
    assert [isinstance(found, Answered) for found in done.finished] == [True, False, True, False, True]
    failed = done.finished[1]
    assert isinstance(failed, Failed)
    assert (failed.fault.reason, failed.fault.message) == (Reason.INVALID, "no room for the text")


def test_without_a_model_batches_wait() -> None:
    served = ServedModel(first := Model("one"))
    thread = inference(served)
    (waiting,) = jobs(served, "a")
    served.offer(None)
    thread.offer(Batch((waiting,), 10, 0.0, Trigger.WAIT))
    assert not thread.step(0)
    assert served.left() is first
    assert served.encode(request("b")).model == first.identity  # what comes meanwhile is tokenised all the same
    served.offer(Model("two", tokens=7))
    assert thread.step(0)
    done = thread.collect()
    assert done is not None
    assert revisions(done) == ["two"]


@pytest.fixture
def calls() -> Iterator[CallQueue]:
    loop = asyncio.new_event_loop()
    yield CallQueue(loop, most_calls=100, most_tokens=100_000)
    loop.close()


def test_calls_that_wait_are_tokenised_anew(calls: CallQueue) -> None:
    served = ServedModel(Model("one"))
    thread = inference(served, calls)
    asked = [request("a"), request("long")]
    taken = calls.submit([(one, served.encode(one)) for one in asked])
    served.offer(Model("two", tokens=7, refused="long"))
    while thread.step(0):
        calls._loop.run_until_complete(asyncio.sleep(0))
    answered, refused = taken
    assert answered.found.result() == doubles.ANSWER
    assert answered.encoded.model == ModelIdentity("model", "two")
    assert isinstance(refused.found.result(), Fault)
    assert calls._added_tokens - calls._taken_tokens == 0  # places are given back as they were taken


class NamingCodec(Codec):
    """Results name the model whose tokens their requests had."""

    def write(self, job: Job, outcome: Outcome) -> Output:
        model = job.encoded.model
        assert model is not None
        written = super().write(job, outcome)
        return replace(written, headers=(*written.headers, (REVISION, model.revision.encode())))


class Scene:
    """A worker at which anything may happen, and the models that served."""

    def __init__(self, broker: MemoryBroker, guarantee: Guarantee, draw: random.Random) -> None:
        self._broker, self._guarantee, self._draw = broker, guarantee, draw
        self.models = [Model("0", tokens=3)]
        self.sent = self.crashes = 0
        self.worker = self._born()

    def _born(self) -> Worker:
        self._served = ServedModel(self.models[-1], self.models[-1].calibrations())
        worker = Worker(self._broker, self._guarantee, codec=NamingCodec(), swapped=self._served)
        self._broker.assign(P0, P1)
        return worker

    def send(self) -> None:
        values = self._draw.choices((b"ok", b"flaky 1", b"poison"), (8, 1, 1), k=5)
        self._broker.send(self._draw.choice((P0, P1)), *values)
        self.sent += len(values)

    def loop(self) -> None:
        self.worker.loop.step()

    def infer(self) -> None:
        self.worker.infer()

    def turn(self) -> None:
        self.worker.turn(self._draw.randint(1, 10))

    def swap(self) -> None:
        self.models.append(Model(str(len(self.models)), tokens=3 + len(self.models)))
        self._served.offer(self.models[-1], self.models[-1].calibrations())

    def vacate(self) -> None:
        self._served.offer(None)
        self.worker.turn(self._draw.randint(0, 3))
        self.swap()

    def crash(self) -> None:
        if self.crashes < 2:
            self.crashes += 1
            self.worker = self._born()


def test_a_request_that_waits_is_calibrated_as_the_model_that_computes_it() -> None:
    served = ServedModel(first := Model("1"), first.calibrations())
    thread = inference(served)
    waiting = jobs(served, "a", "poison", "b")
    served.offer(second := Model("2", tokens=7), second.calibrations())
    done = computed(thread, *waiting)  # the models look at what they are given
    assert revisions(done) == ["2"] * 3
    assert all(found.job.request.calibrator is None for found in done.finished)  # so that another may come after it


@BOTH
@pytest.mark.parametrize("seed", range(2))
def test_swaps_at_any_moment_lose_and_double_nothing(broker: MemoryBroker, guarantee: Guarantee, seed: int) -> None:
    draw = random.Random(seed)
    scene = Scene(broker, guarantee, draw)
    acts = (scene.send, scene.loop, scene.infer, scene.turn, scene.swap, scene.vacate, scene.crash)
    for _ in range(400):
        draw.choices(acts, (20, 10, 10, 20, 10, 5, 1))[0]()
    scene.worker.settle()
    assert scene.crashes == 2
    names = [name_of(output) for output in broker.visible]
    assert len(set(names)) == scene.sent
    if guarantee == "exactly_once":
        assert len(names) == scene.sent
    computed_by = {model.identity.revision: set(model.computed) for model in scene.models}
    results = [output for output in broker.visible if not reason(output)]
    revisions_named = [(dict(output.headers)[REVISION] or b"").decode() for output in results]
    for output, revision in zip(results, revisions_named, strict=True):
        assert any(text.endswith(f"\n{name_of(output)}") for text in computed_by[revision]), revision
    assert len(set(revisions_named)) > 10


def name_of(output: Output) -> str:
    where, offset = doubles.answered(output)
    return f"{where.topic}/{where.number}/{offset}"
