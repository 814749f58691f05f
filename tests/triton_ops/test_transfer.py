"""Numbers on their way from a device to the CPU."""

import torch

from tests.interpreter import import_interpreted
from tests.pretend_gpu import GPU, on_pretended_gpu, pretending
from triton_ops.transfer import Arriving


def test_a_tensor_of_the_cpu_has_come() -> None:
    tensor = torch.arange(3)
    assert Arriving(tensor).has_come()
    assert Arriving(tensor).read() is tensor


@on_pretended_gpu
def test_a_tensor_of_a_gpu_is_copied_as_it_is_now_without_waiting() -> None:
    import_interpreted()
    with pretending() as gpu:
        tensor = torch.zeros(3, device=GPU)
        arriving = Arriving(tensor + 1)
        tensor.fill_(2)
        assert gpu.waits == []
        assert arriving.read().device.type == "cpu"
        assert arriving.read().tolist() == [1, 1, 1]
