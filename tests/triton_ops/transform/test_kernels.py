"""The Triton kernels equal the reference: on a GPU, or in the interpreter where there is none."""

from tests.triton_ops.transform.columns_check import check


def test_kernels_equal_the_reference(on_triton, capsys):
    check(str(on_triton), sizes=(0, 1, 63, 1000))
    assert capsys.readouterr().out == "equal\n"
