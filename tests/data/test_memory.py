"""Buffers come back when, and only when, nothing refers to them any more."""

import torch

from recis_lightning.data.memory import BufferPool
from recis_lightning.ragged import ALIGNMENT


def test_memory_comes_back_once_the_last_view_is_gone() -> None:
    pool = BufferPool()
    tensor = pool.take(1000)
    address = tensor.data_ptr()
    view = tensor[8:16].view(torch.int64)
    array = tensor[64:128].view(torch.float32).view(2, 8).numpy()[1, 2:]
    del tensor
    assert pool.take(1000).data_ptr() != address
    del view
    assert pool.take(1000).data_ptr() != address
    array[:] = 7
    del array
    assert address in {buffer.data_ptr() for buffer in [pool.take(1000) for _ in range(4)]}


def test_a_buffer_serves_smaller_and_slightly_larger_requests() -> None:
    pool = BufferPool()
    address = pool.take(1000).data_ptr()
    assert [pool.take(nbytes).data_ptr() for nbytes in (1000, 1, 1100)] == [address] * 3
    assert len(pool.take(5000)) == 5000


def test_buffers_are_aligned_and_as_long_as_asked_for() -> None:
    pool = BufferPool()
    for nbytes in (0, 1, 63, 64, 100_000, 5_000_000):
        buffer = pool.take(nbytes)
        assert (buffer.dtype, len(buffer)) == (torch.uint8, nbytes)
        assert nbytes == 0 or buffer.data_ptr() % ALIGNMENT == 0


def test_buffers_outlive_their_pool() -> None:
    buffer = BufferPool().take(100)
    buffer[:] = 3
    assert int(buffer.sum()) == 300
