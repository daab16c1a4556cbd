"""The ledger against a model that remembers everything and is asked the plain question."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import output
from tests.delivery.doubles import record
from worker.messages import Output, Partition, Position
from worker.rules.offsets import Account, Ledger

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
    ledger: Ledger[Account] = Ledger()
    generation = 0
    generations: dict[int, int] = {}
    # Per partition, in read order: position and, once resolved, its output (None where it is skipped).
    book: dict[int, list[tuple[Position, list[Output | None]]]] = {}
    next_offset = dict.fromkeys(range(3), 0)
    for operation, number, which in done:
        if operation == "assign":
            generation += 1
            book.pop(number, None)  # to the end: a limit is spent in order of assignment
            generations[number], book[number] = generation, []
            ledger.assign(Account(Partition("requests", number), generation))
        elif operation == "forget":
            generations.pop(number, None)
            book.pop(number, None)
            ledger.forget(Partition("requests", number))
        elif operation == "track" and number in generations:
            read = record(next_offset[number], number=number, generation=generations[number])
            next_offset[number] += 1 + which % 3  # Kafka leaves offsets out
            book[number].append((read.position, []))
            ledger.track(read)
        elif operation in {"resolve", "skip"} and book.get(number):
            position, answer = book[number][which % len(book[number])]
            found = output(b"%d" % which) if operation == "resolve" else None
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


def expect(ledger: Ledger[Account], book: dict[int, list[tuple[Position, list[Output | None]]]]) -> None:
    assert ledger.in_flight == sum(map(len, book.values()))
    outputs: list[tuple[Position, Output]] = []
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
