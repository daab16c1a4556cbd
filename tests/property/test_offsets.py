"""The ledger against a model that remembers everything and is asked the plain question."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import outgoing
from tests.delivery.doubles import record
from worker.messages import Outgoing, Partition, Position
from worker.rules.offsets import Ledger

Operation = tuple[str, int, int]
operations = st.lists(
    st.tuples(
        st.sampled_from(["track", "track", "resolve", "resolve", "skip", "publish", "assign", "forget"]),
        st.integers(0, 2),  # which partition
        st.integers(0, 30),  # which of its open records
    ),
    max_size=80,
)


@given(operations)
def test_the_ledger_commits_what_a_perfect_memory_would(done: list[Operation]) -> None:
    ledger = Ledger()
    epoch = 0
    epochs: dict[int, int] = {}
    # Per partition, in read order: position and, once resolved, its output (None where it is skipped).
    book: dict[int, list[tuple[Position, list[Outgoing | None]]]] = {}
    next_offset = dict.fromkeys(range(3), 0)
    for operation, number, which in done:
        if operation == "assign":
            epoch += 1
            book.pop(number, None)  # to the end: a limit is spent in order of assignment
            epochs[number], book[number] = epoch, []
            ledger.assign(Partition("requests", number), epoch)
        elif operation == "forget":
            epochs.pop(number, None)
            book.pop(number, None)
            ledger.forget(Partition("requests", number))
        elif operation == "track" and number in epochs:
            read = record(next_offset[number], number=number, epoch=epochs[number])
            next_offset[number] += 1 + which % 3  # Kafka leaves offsets out
            book[number].append((read.position, []))
            ledger.track(read)
        elif operation in {"resolve", "skip"} and book.get(number):
            position, answer = book[number][which % len(book[number])]
            found = outgoing(b"%d" % which) if operation == "resolve" else None
            answer[:] = [found]
            assert ledger.resolve(position, found)
        elif operation == "publish":
            ledger.acknowledge(ledger.release(which))
            left = which
            for entries in book.values():  # in order of assignment, as the ledger has it
                while left and entries and entries[0][1]:
                    del entries[0]
                    left -= 1
        expect(ledger, book)


def expect(ledger: Ledger, book: dict[int, list[tuple[Position, list[Outgoing | None]]]]) -> None:
    assert ledger.in_flight == sum(map(len, book.values()))
    outputs: list[tuple[Position, Outgoing]] = []
    offsets: dict[Partition, int] = {}
    for entries in book.values():
        for position, answer in entries:
            if not answer:
                break
            offsets[position.partition] = position.offset + 1
            if answer[0] is not None:
                outputs.append((position, answer[0]))
    release = ledger.release()
    assert release.offsets == offsets
    assert sorted(release.outputs, key=str) == sorted(outputs, key=str)
    for partition in offsets:  # and within a partition in read order
        order = [position.offset for position, _ in release.outputs if position.partition == partition]
        assert order == sorted(order)
