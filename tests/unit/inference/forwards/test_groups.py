from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from worker.inference.forwards.groups import group

CPU = torch.device("cpu")


@settings(max_examples=examples(50))
@given(
    st.lists(st.integers(1, 70) | st.integers(30, 34), min_size=1, max_size=12),
    st.sampled_from([1, 16]),
    st.none() | st.integers(1, 9000),
)
def test_groups_hold_each_row_whole_and_nothing_of_another(
    lengths: list[int], multiple_of: int, most_pairs: int | None
) -> None:
    row_of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place_of = torch.cat([torch.arange(length) for length in lengths])
    back = torch.full((len(row_of), 2), -1)
    for part in group(lengths, CPU, multiple_of=multiple_of, most_pairs=most_pairs):
        own = lengths[part.first : part.first + part.count]
        assert {-(-length // multiple_of) * multiple_of for length in own} == {part.width}
        assert most_pairs is None or part.count == 1 or part.count * part.width**2 <= most_pairs
        rows, places = (part.gather(x).view(part.count, part.width) for x in (row_of, place_of))
        assert rows.eq(torch.arange(part.first, part.first + part.count).unsqueeze(1)).all()
        for length, seen in zip(own, places.tolist(), strict=True):
            assert seen == [*range(length), *[length - 1] * (part.width - length)]
        if part.beyond is not None:
            assert part.beyond.view(part.count, part.width).sum(dim=1).tolist() == [part.width - n for n in own]
        part.scatter(torch.stack([rows.flatten(), places.flatten()], dim=1), back)
    assert back.tolist() == torch.stack([row_of, place_of], dim=1).tolist()


def test_rows_of_one_length_are_seen_where_they_lie() -> None:
    tokens = torch.arange(36)
    (part,) = group([12, 12, 12], CPU)
    assert part.gather(tokens).data_ptr() == tokens.data_ptr()
    assert part.beyond is None
