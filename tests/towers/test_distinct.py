import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recis_lightning.ragged import Ragged
from recis_lightning.towers import distinct
from recis_lightning.towers.distinct import distinct_rows, select_rows

ROWS = st.lists(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2), max_size=4), max_size=12)


def as_ragged(rows: list[list[int]]) -> Ragged:
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return Ragged(torch.tensor([value for row in rows for value in row], dtype=torch.int64), offsets)


def test_equal_rows_share_the_first_one() -> None:
    first, inverse = distinct_rows(as_ragged([[5, 6], [7], [5, 6], [], [6, 5], []]))
    assert first.tolist() == [0, 1, 3, 4]
    assert inverse.tolist() == [0, 1, 0, 2, 3, 2]


@given(ROWS)
def test_distinct_rows_equal_those_of_a_dictionary(rows: list[list[int]]) -> None:
    first, inverse = distinct_rows(as_ragged(rows))
    seen: dict[tuple[int, ...], int] = {}
    expected = [seen.setdefault(tuple(row), len(seen)) for row in rows]
    assert inverse.tolist() == expected
    assert [tuple(rows[index]) for index in first.tolist()] == list(seen)


@given(ROWS)
def test_rows_that_share_a_hash_are_told_apart(rows: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distinct, "_hash_rows", lambda rows: torch.zeros(len(rows), dtype=torch.int64))
        first, inverse = distinct_rows(as_ragged(rows))
    assert [rows[index] for index in first[inverse].tolist()] == rows


def test_permuted_and_shifted_values_have_other_hashes() -> None:
    rows = [[a, b, c] for a in range(12) for b in range(12) for c in range(12)] + [[0] * n for n in range(3)]
    assert len(distinct._hash_rows(as_ragged(rows)).unique()) == len(rows)


@given(ROWS, st.data())
def test_select_rows_gives_the_rows_asked_for(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8)) if rows else []
    selected = select_rows(as_ragged(rows), torch.tensor(chosen, dtype=torch.int64)).check()
    assert [row.tolist() for row in selected.values.split(selected.lengths.tolist())] == [
        rows[index] for index in chosen
    ]
