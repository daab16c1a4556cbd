from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.delivery.doubles import job, partition
from worker.messages import Job, LabelSetVersion, Trigger
from worker.pipeline.batch import Batcher, BatchPolicy

policies = st.builds(
    BatchPolicy, max_messages=st.integers(1, 6), max_tokens=st.integers(1, 40), max_wait_s=st.floats(0, 5)
)
costs = st.lists(st.integers(0, 60), min_size=1, max_size=30)


@given(policies, costs)
def test_every_job_leaves_once_in_order_and_no_batch_breaks_a_bound(policy: BatchPolicy, tokens: list[int]) -> None:
    batcher = Batcher(policy)
    for offset, cost in enumerate(tokens):
        batcher.add(job(offset, tokens=cost), now_s=float(offset))
    left: list[Job] = []
    while len(batcher):
        batch = batcher.take(Trigger.DRAIN)
        assert 1 <= len(batch.jobs) <= policy.max_messages
        assert batch.tokens == sum(j.encoded.tokens for j in batch.jobs)
        # Only a job that is over the budget by itself may be over it.
        assert batch.tokens <= policy.max_tokens or len(batch.jobs) == 1
        # Its age is the age of its own first job, not that of the batch before.
        assert batch.opened_at_s == batch.jobs[0].record.position.offset
        left += batch.jobs
    assert [j.record.position.offset for j in left] == list(range(len(tokens)))
    assert batcher.tokens == 0


@given(policies, costs)
def test_a_batch_is_as_large_as_the_bounds_allow(policy: BatchPolicy, tokens: list[int]) -> None:
    batcher = Batcher(policy)
    for offset, cost in enumerate(tokens):
        batcher.add(job(offset, tokens=cost), now_s=0.0)
    batch = batcher.take(Trigger.DRAIN)
    if len(batcher) and len(batch.jobs) < policy.max_messages:
        assert batch.tokens + tokens[len(batch.jobs)] > policy.max_tokens


@given(policies, st.floats(0, 100))
def test_a_lone_job_is_due_when_it_has_waited_and_not_before(policy: BatchPolicy, since_s: float) -> None:
    batcher = Batcher(policy)
    assert batcher.due(since_s) is None
    batcher.add(job(tokens=0), since_s)
    full = Trigger.MESSAGES if policy.max_messages == 1 else None
    assert batcher.due(batcher.deadline_s) == (full or Trigger.WAIT)
    if policy.max_wait_s > 0.001:
        assert batcher.due(since_s) == full


def test_an_idle_spell_does_not_age_the_next_batch() -> None:
    batcher = Batcher(BatchPolicy(max_messages=10, max_tokens=100, max_wait_s=1.0))
    batcher.add(job(0), now_s=0.0)
    batcher.take(Trigger.WAIT)
    batcher.add(job(1), now_s=500.0)
    assert batcher.due(500.5) is None
    assert batcher.due(501.0) is Trigger.WAIT


def test_what_tokens_close_is_counted_for_tokens() -> None:
    """163 of 256 messages with 16,300 of 16,384 tokens are no full batch of messages."""
    batcher = Batcher(BatchPolicy(max_messages=256, max_tokens=16_384, max_wait_s=1.0))
    for offset in range(256):
        batcher.add(job(offset, tokens=100), now_s=0.0)
    trigger = batcher.due(0.0)
    assert trigger is not None
    batch = batcher.take(trigger)
    assert (len(batch.jobs), batch.tokens, batch.trigger) == (163, 16_300, Trigger.TOKENS)


def test_what_is_forgotten_costs_nothing_any_more() -> None:
    batcher = Batcher(BatchPolicy(max_messages=10, max_tokens=100, max_wait_s=1.0))
    batcher.add(job(0, tokens=60, number=0), now_s=0.0)
    batcher.add(job(1, tokens=60, number=1), now_s=0.0)
    assert batcher.due(0.0) is Trigger.TOKENS
    batcher.forget(partition(0))
    assert (len(batcher), batcher.tokens, batcher.due(0.0)) == (1, 60, None)


named = st.lists(
    st.none() | st.builds(LabelSetVersion, st.sampled_from("ab"), st.sampled_from("123")), min_size=1, max_size=30
)


def naming(offset: int, version: LabelSetVersion | None) -> Job:
    made = job(offset, tokens=1)
    return replace(made, request=replace(made.request, label_set=version))


@given(policies, named, st.integers(0, 5))
def test_no_batch_has_two_versions_of_a_label_set(
    policy: BatchPolicy, versions: list[LabelSetVersion | None], late: int
) -> None:
    """The last ones join the batch that is cut already, as they do while it waits for the device."""
    batcher = Batcher(policy)
    early, late_ones = versions[: max(1, len(versions) - late)], versions[max(1, len(versions) - late) :]
    for offset, version in enumerate(early):
        batcher.add(naming(offset, version), now_s=0.0)
    first = batcher.take(Trigger.DRAIN)
    for offset, version in enumerate(late_ones, len(early)):
        batcher.add(naming(offset, version), now_s=0.0)
    batches = [batcher.fill(first)]
    while len(batcher):
        batches.append(batcher.take(Trigger.DRAIN))
    assert [j.record.position.offset for batch in batches for j in batch.jobs] == list(range(len(versions)))
    for batch in batches:
        found = {j.request.label_set for j in batch.jobs if j.request.label_set is not None}
        assert len(found) == len({version.name for version in found})
    assert not batcher._versions.differ
    assert batcher.due(0.0) is None


def test_a_newer_version_in_line_closes_the_batch_before_it_at_once() -> None:
    batcher = Batcher(BatchPolicy(max_messages=3, max_tokens=100, max_wait_s=1.0))
    old, new, other = LabelSetVersion("a", "1"), LabelSetVersion("a", "2"), LabelSetVersion("b", "1")
    batcher.add(naming(0, old), now_s=0.0)
    batcher.add(naming(1, other), now_s=0.0)
    assert batcher.due(0.0) is None
    batcher.forget(partition())
    batcher.add(naming(2, old), now_s=0.0)
    batcher.add(naming(3, new), now_s=0.0)
    assert batcher.due(0.0) is Trigger.LABEL_SET
    batcher.add(naming(4, new), now_s=0.0)
    assert batcher.due(0.0) is Trigger.MESSAGES
    cut = batcher.take(Trigger.MESSAGES)
    assert ([j.record.position.offset for j in cut.jobs], cut.trigger) == ([2], Trigger.LABEL_SET)
    assert batcher.due(0.0) is None
    assert len(batcher.take(Trigger.WAIT).jobs) == 2
