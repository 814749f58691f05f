"""BufferPool: memory comes back when nobody holds it any more, and not before."""

import torch

from recis_lightning.tables.buffers import BufferPool

LARGE = (1 << 20, 3)


def test_memory_is_used_again_when_nobody_holds_it() -> None:
    pool = BufferPool()
    tensor = pool.take(LARGE, torch.float32)
    place = tensor.data_ptr()
    part = tensor[5:]
    del tensor
    other = pool.take(LARGE, torch.float32)
    assert other.data_ptr() != place
    del part
    assert pool.take(LARGE, torch.float32).data_ptr() == place


def test_memory_saved_for_backward_is_held() -> None:
    pool = BufferPool()
    tensor = pool.take(LARGE, torch.float32).fill_(3)
    factor = torch.ones((), requires_grad=True)
    loss = (tensor * factor).sum()
    del tensor
    pool.take(LARGE, torch.float32).fill_(7)
    loss.backward()
    assert factor.grad == 3 * LARGE[0] * LARGE[1]


def test_smaller_and_slightly_larger_tensors_share_memory() -> None:
    pool = BufferPool()
    place = pool.take((1000, 1000), torch.float64).data_ptr()
    for shape, dtype in (((1100, 1000), torch.float64), ((600, 1000), torch.float32), ((2000, 1000), torch.float32)):
        assert pool.take(shape, dtype).data_ptr() == place


def test_the_pool_has_no_more_pieces_than_were_in_use_at_once() -> None:
    pool = BufferPool()
    for rows in (1, 2, 3, 4, 7, 5, 9, 8):
        held = [pool.take((rows << 20,), torch.float32), pool.take((1 << 20,), torch.float32)]
        del held
    assert len(pool._free) == 2


def test_tensors_have_the_shape_and_dtype_asked_for_and_are_no_views() -> None:
    pool = BufferPool()
    for shape in ((0, 3), (2, 3), LARGE, (1 << 18, 2, 3)):
        tensor = pool.take(shape, torch.float64)
        assert tensor.shape == shape
        assert tensor.dtype == torch.float64
        assert tensor.is_contiguous()
        assert tensor._base is None
