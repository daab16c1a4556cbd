from __future__ import annotations

import pytest

from tests import builders
from tests.delivery.doubles import partition, record
from worker.messages import Outgoing, Position, Record
from worker.rules.offsets import Ledger

P0, P1 = partition(0), partition(1)


def output(text: str = "") -> Outgoing:
    return builders.outgoing(text.encode())


def at(offset: int, *, number: int = 0, epoch: int = 1) -> Position:
    return record(offset, number=number, epoch=epoch).position


def ledger_with(*offsets: int) -> Ledger:
    ledger = Ledger()
    ledger.assign(P0, 1)
    for offset in offsets:
        ledger.track(record(offset))
    return ledger


def test_nothing_is_released_before_what_came_first() -> None:
    ledger = ledger_with(5, 6, 7)
    ledger.resolve(at(6), output())
    ledger.resolve(at(7), output())
    assert not ledger.release()
    ledger.resolve(at(5), output())
    release = ledger.release()
    assert [position.offset for position, _ in release.outputs] == [5, 6, 7]
    assert release.offsets == {P0: 8}


def test_offsets_that_kafka_leaves_out_are_no_hole() -> None:
    """Transaction markers and compaction take offsets away."""
    ledger = ledger_with(5, 9)
    ledger.resolve(at(5), output())
    assert ledger.release().offsets == {P0: 6}
    ledger.resolve(at(9), output())
    assert ledger.release().offsets == {P0: 10}


def test_what_is_skipped_moves_the_offset_and_writes_nothing() -> None:
    ledger = ledger_with(0, 1)
    ledger.resolve(at(0), None)
    release = ledger.release()
    assert release
    assert release.outputs == ()
    assert release.offsets == {P0: 1}


def test_a_release_shows_the_same_again_until_it_is_acknowledged() -> None:
    ledger = ledger_with(0, 1)
    ledger.resolve(at(0), output())
    first = ledger.release()
    ledger.resolve(at(1), output())
    assert ledger.release().offsets == {P0: 2}
    ledger.acknowledge(first)
    assert ledger.release().offsets == {P0: 2}
    assert [position.offset for position, _ in ledger.release().outputs] == [1]
    assert ledger.in_flight == 1


def test_an_output_may_be_replaced_until_it_is_acknowledged() -> None:
    ledger = ledger_with(0)
    ledger.resolve(at(0), output("a result nobody takes"))
    assert ledger.resolve(at(0), output("a dead letter"))
    assert [found.value for _, found in ledger.release().outputs] == [b"a dead letter"]
    ledger.acknowledge(ledger.release())
    assert not ledger.resolve(at(0), output("too late"))


def test_a_former_assignment_changes_nothing() -> None:
    ledger = ledger_with(0, 1)
    ledger.resolve(at(0), output("old"))
    old = ledger.release()
    ledger.assign(P0, 2)
    assert ledger.in_flight == 0
    ledger.track(record(0, epoch=2))
    assert not ledger.is_live(at(0))
    assert not ledger.resolve(at(0), output("late"))
    ledger.acknowledge(old)
    assert ledger.in_flight == 1
    with pytest.raises(KeyError):
        ledger.record(at(0))
    assert ledger.record(at(0, epoch=2)) == record(0, epoch=2)


@pytest.mark.parametrize("wrong", [record(3), record(4), record(9, epoch=2), record(9, number=1)])
def test_a_reader_that_breaks_its_contract_is_told_so(wrong: Record) -> None:
    with pytest.raises(ValueError, match=r"not assigned|out of order"):
        ledger_with(4).track(wrong)


def test_bytes_in_hand_are_those_of_keys_values_and_headers() -> None:
    ledger = Ledger()
    ledger.assign(P0, 1)
    ledger.track(builders.record(b"value", at=at(0), headers=(("name", b"text"), ("none", None))))
    ledger.track(builders.record(None, at=at(1), key=None))
    assert ledger.held_bytes == 3 + 5 + 4 + 4 + 4
    ledger.resolve(at(0), output())
    ledger.acknowledge(ledger.release())
    assert ledger.held_bytes == 0


def test_a_limit_bounds_all_partitions_together() -> None:
    ledger = ledger_with(0, 1, 2)
    ledger.assign(P1, 7)
    for offset in (0, 1):
        ledger.track(record(offset, number=1, epoch=7))
        ledger.resolve(at(offset, number=1, epoch=7), output())
    for offset in (0, 1, 2):
        ledger.resolve(at(offset), output())
    assert ledger.release(0).offsets == {}
    assert ledger.release(4).offsets == {P0: 3, P1: 1}
    assert ledger.release(4).epochs == {P0: 1, P1: 7}


def test_forgetting_what_is_not_there_is_fine() -> None:
    ledger = ledger_with()
    ledger.forget(P1)
    ledger.forget(P0)
    ledger.forget(P0)
    assert ledger.in_flight == 0
