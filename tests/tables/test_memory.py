"""Reserved memory: address space first, memory where it is touched."""

import mmap

import pytest
import torch

from recis_lightning.schema import Table
from recis_lightning.tables import TableGroup, memory, places
from recis_lightning.tables.memory import reserve


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * mmap.PAGESIZE


def test_reserved_terabyte_takes_memory_only_where_it_is_written() -> None:
    before = resident_bytes()
    array = reserve((1 << 34, 16), torch.float32)
    assert array.shape == (1 << 34, 16)
    array[5] = 1.0
    array[-1] = 2.0
    assert array[5].sum() == 16
    assert array[1 << 33].sum() == 0
    assert resident_bytes() - before < 64 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int32])
def test_reserved_array_is_zero_and_of_its_dtype(dtype: torch.dtype) -> None:
    array = reserve((3, 5), dtype)
    assert array.dtype == dtype
    assert array.tolist() == [[0] * 5] * 3
    assert reserve((7, 0), dtype).shape == (7, 0)


def test_group_made_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        group = TableGroup([Table(name="t", dim=2)], max_rows=64)
        row = group[0].find_or_insert(torch.tensor([3]))
    assert not group.weight[:1].is_inference()
    group.weight[row.clone()] += 1.0
    assert group[0].weight(row.clone()).tolist() == [[1.0, 1.0]]


def test_system_that_refuses_address_space_gets_asked_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse_large(nbytes: int) -> bytearray:
        asked.append(nbytes)
        if nbytes > 32 << 20:
            raise MemoryError(f"the system refused to reserve {nbytes:,} bytes of address space")
        return bytearray(nbytes)

    monkeypatch.setattr(memory, "_map", refuse_large)
    monkeypatch.setattr(places, "lies_in_blocks", lambda device: False)
    monkeypatch.setattr(places, "FEWEST_ROWS", 1 << 10)
    group = TableGroup([Table(name="t", dim=16)])
    assert 1 << 10 <= group.rows.capacity < 1 << 20
    assert len(asked) > 5
    group[0].find_or_insert(torch.arange(100))
    with pytest.raises(MemoryError, match="refused to reserve"):
        TableGroup([Table(name="t", dim=16)], max_rows=1 << 30)


def test_refused_mapping_is_a_memory_error_that_names_the_size() -> None:
    with pytest.raises(MemoryError, match="refused to reserve"):
        reserve((1 << 58,), torch.float32)
