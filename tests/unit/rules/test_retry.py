from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import DeviceAway, OutOfDeviceMemory, Reason, RegistryAway, Rejection
from worker.messages import Fault, FaultKind
from worker.rules.retry import STACKTRACE_BYTES, DeadLetter, Retry, RetryPolicy, decide, fault_of

policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 20),
    initial_s=st.floats(0.001, 10),
    max_s=st.floats(0.001, 100),
    multiplier=st.floats(1, 10),
    jitter=st.floats(0, 1),
)
draws = st.floats(0, 1, exclude_max=True)


@given(policies, st.integers(1, 10**9), draws)
def test_no_delay_is_over_the_cap_or_negative_however_long_the_outage(
    policy: RetryPolicy, attempt: int, draw: float
) -> None:
    assert 0 <= policy.delay_s(attempt, draw) <= policy.max_s


@given(policies, st.integers(1, 50))
def test_without_jitter_delays_grow_to_the_cap(policy: RetryPolicy, attempt: int) -> None:
    plain = RetryPolicy(policy.max_attempts, policy.initial_s, policy.max_s, policy.multiplier, jitter=0.0)
    assert plain.delay_s(attempt, 0.5) <= plain.delay_s(attempt + 1, 0.5)
    assert plain.delay_s(1, 0.5) == min(policy.initial_s, policy.max_s)


def test_full_jitter_draws_from_the_whole_interval() -> None:
    policy = RetryPolicy(5, 1.0, 60.0, 2.0, jitter=1.0)
    assert policy.delay_s(3, 0.0) == 0.0
    assert policy.delay_s(3, 0.5) == 2.0


@given(policies, st.sampled_from(Reason), st.integers(1, 100), draws)
def test_a_message_at_fault_is_never_retried(policy: RetryPolicy, reason: Reason, attempt: int, draw: float) -> None:
    fault = Fault(FaultKind.MESSAGE, reason, "decode", "Rejection", "")
    assert decide(policy, fault, attempt, 0.0, draw) == DeadLetter(reason)


@given(policies, st.sampled_from([FaultKind.UNKNOWN, FaultKind.TRANSIENT]), st.floats(0, 1e6), draws)
def test_others_are_tried_max_attempts_times(policy: RetryPolicy, kind: FaultKind, now_s: float, draw: float) -> None:
    fault = Fault(kind, Reason.INFERENCE, "inference", "Error", "")
    attempt = 1
    while isinstance(decision := decide(policy, fault, attempt, now_s, draw), Retry):
        assert decision.not_before_s >= now_s
        attempt += 1
    assert attempt == policy.max_attempts
    assert decision.reason is (Reason.INFERENCE if kind is FaultKind.UNKNOWN else Reason.EXHAUSTED)


def test_memory_is_not_tried_again_when_the_budget_is_down_to_one_row() -> None:
    fault = fault_of(OutOfDeviceMemory(9000, "9000 tokens do not fit"), "inference")
    assert decide(RetryPolicy(5, 1, 1, 1, 0), fault, 1, 0.0, 0.0) == DeadLetter(Reason.INFERENCE)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (Rejection(Reason.SCHEMA, "schema", "unknown"), FaultKind.MESSAGE, Reason.SCHEMA),
        (OutOfDeviceMemory(1, ""), FaultKind.OUT_OF_MEMORY, Reason.INFERENCE),
        (DeviceAway(), FaultKind.TRANSIENT, Reason.EXHAUSTED),
        (RegistryAway(), FaultKind.TRANSIENT, Reason.EXHAUSTED),
        (MemoryError(), FaultKind.TRANSIENT, Reason.EXHAUSTED),
        (RuntimeError("CUDA"), FaultKind.UNKNOWN, Reason.INFERENCE),
        (ZeroDivisionError(), FaultKind.UNKNOWN, Reason.INFERENCE),
    ],
)
def test_whose_fault_an_error_is(error: Exception, kind: FaultKind, reason: Reason) -> None:
    fault = fault_of(error, "inference", "x" * 10_000)
    assert (fault.kind, fault.reason, fault.error) == (kind, reason, type(error).__name__)
    assert len(fault.stacktrace) <= STACKTRACE_BYTES
