"""DLRM against its picture, part by part."""

import pytest
import torch

from recis_lightning.models import DLRM
from tests.models.schemas import make_inputs, make_schema


def test_dlrm_is_bottom_pairs_and_top():
    torch.manual_seed(0)
    schema = make_schema({"a": 4, "b": 4}, dense=3)
    model = DLRM(schema, bottom=(6,), top=(5,)).double()
    inputs = make_inputs(schema)
    dense = torch.cat([inputs["d1"], inputs["d2"], inputs["d3"]], dim=1).double()
    for layer in (model.bottom.layers[0], model.bottom.layers[3]):
        dense = (dense @ layer.weight.T + layer.bias).relu()
    assert dense.shape == (5, 4)
    vectors = [dense, inputs["a"], inputs["b"]]
    pairs = [(vectors[i] * vectors[j]).sum(1, keepdim=True) for i in range(3) for j in range(i)]
    top = torch.cat([dense, *pairs], dim=1)
    top = (top @ model.top.layers[0].weight.T + model.top.layers[0].bias).relu()
    expected = top @ model.head.weight[0] + model.head.bias[0]
    torch.testing.assert_close(model(inputs)["ctr"], expected, rtol=1e-12, atol=1e-12)


def test_embeddings_of_different_dims_are_refused():
    with pytest.raises(ValueError, match="DLRM multiplies embeddings .* found dim 1: 'wide'; 4: 'a', 'b'"):
        DLRM(make_schema({"a": 4, "b": 4, "wide": 1}))


@pytest.mark.parametrize(
    ("dims", "dense", "found"), [({}, 2, "2 dense and 0 embedded"), ({"a": 4}, 0, "0 dense and 1 embedded")]
)
def test_dlrm_needs_dense_and_embedded_features(dims, dense, found):
    with pytest.raises(ValueError, match=f"DLRM needs both, found {found} features; DeepFM works with either alone"):
        DLRM(make_schema(dims, dense))
