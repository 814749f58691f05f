"""The model without ids."""

import pytest
import torch

from recis_lightning.models import DenseOnly
from tests.models.schemas import make_inputs, make_schema


def test_embeddings_do_not_change_its_logits():
    schema = make_schema({"a": 4})
    model, inputs = DenseOnly(schema), make_inputs(schema, dtype=torch.float32)
    before = model(inputs)["ctr"]
    assert torch.equal(model(inputs | {"a": inputs["a"] + 1})["ctr"], before)
    assert not torch.equal(model(inputs | {"d2": inputs["d2"] + 1})["ctr"], before)


def test_it_passes_over_sequences():
    schema = make_schema({"history": 4}, pooling="none")
    assert DenseOnly(schema)(make_inputs(schema, dtype=torch.float32))["ctr"].shape == (5,)


def test_a_schema_without_dense_features_is_refused():
    with pytest.raises(ValueError, match="DenseOnly needs dense features, found none; declare one"):
        DenseOnly(make_schema({"a": 4}, dense=0))
