"""DeepFM against its formula, term by term."""

import pytest
import torch

from recis_lightning.models import DeepFM
from tests.models.schemas import make_inputs, make_schema


def test_deepfm_is_first_order_plus_pairs_plus_deep():
    torch.manual_seed(0)
    schema = make_schema({"a": 4, "a_wide": 1, "b": 4, "b_wide": 1, "c": 4}, dense=2)
    model = DeepFM(schema, hidden=(8, 3)).double()
    inputs = make_inputs(schema)
    dense = torch.cat([inputs["d1"], inputs["d2"]], dim=1).double()
    expected = inputs["a_wide"][:, 0] + inputs["b_wide"][:, 0] + dense @ model.dense_weights.weight[0]
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        expected = expected + (inputs[one] * inputs[other]).sum(1)
    deep = torch.cat([inputs["a"], inputs["b"], inputs["c"], dense], dim=1)
    for layer in (model.deep.layers[0], model.deep.layers[3]):
        deep = (deep @ layer.weight.T + layer.bias).relu()
    expected = expected + deep @ model.head.weight[0] + model.head.bias[0]
    torch.testing.assert_close(model(inputs)["ctr"], expected, rtol=1e-12, atol=1e-12)


def test_tasks_share_the_terms_of_ids():
    schema = make_schema({"a": 4, "b": 4, "a_wide": 1}, dense=0, tasks=("ctr", "cvr"))
    model, inputs = DeepFM(schema), make_inputs(schema, dtype=torch.float32)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    logits = model(inputs)
    assert torch.equal(logits["ctr"], logits["cvr"])
    pairs = (inputs["a"] * inputs["b"]).sum(1)
    torch.testing.assert_close(logits["ctr"], inputs["a_wide"][:, 0] + pairs)


@pytest.mark.parametrize(
    ("dims", "dense"), [({"a": 4}, 0), ({}, 3), ({"a": 1}, 1), ({"a": 1, "b": 3}, 0), ({"a": 2, "b": 2}, 1)]
)
def test_deepfm_works_with_any_kind_of_feature_left_out(dims, dense):
    schema = make_schema(dims, dense)
    assert DeepFM(schema)(make_inputs(schema, dtype=torch.float32))["ctr"].shape == (5,)


def test_fields_of_different_dims_are_refused():
    with pytest.raises(
        ValueError,
        match="DeepFM multiplies embeddings with each other, so they share one dim; found dim 4: 'a', 'c'; 8: 'b'",
    ):
        DeepFM(make_schema({"a": 4, "b": 8, "c": 4, "wide": 1}))


def test_a_deep_network_without_input_is_refused():
    with pytest.raises(ValueError, match="DeepFM's deep network has no input: declare dense features, or embedded"):
        DeepFM(make_schema({"wide": 1}, dense=0))
