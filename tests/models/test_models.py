"""What all models have in common: logits by task, any precision, the same weights for the same seed."""

import pytest
import torch

from recis_lightning.models import DLRM, DeepFM, DenseOnly
from recis_lightning.schema import Schema
from tests.models.schemas import make_inputs, make_schema

MODELS = [DLRM, DeepFM, DenseOnly]


@pytest.fixture
def schema() -> Schema:
    return make_schema({"a": 4, "b": 4, "c": 4}, tasks=("ctr", "cvr"))


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_model_gives_one_logit_for_each_row_and_task(model_class, schema, rows):
    logits = model_class(schema)(make_inputs(schema, rows, torch.float32))
    assert {task: logit.shape for task, logit in logits.items()} == {"ctr": (rows,), "cvr": (rows,)}
    assert all(logit.dtype == torch.float32 for logit in logits.values())


@pytest.mark.parametrize("model_class", MODELS)
def test_a_double_model_takes_float32_features(model_class, schema):
    logits = model_class(schema).double()(make_inputs(schema, dtype=torch.float64))
    assert all(logit.dtype == torch.float64 for logit in logits.values())


@pytest.mark.parametrize("model_class", MODELS)
def test_a_bfloat16_model_takes_float32_embeddings(model_class, schema):
    logits = model_class(schema).to(torch.bfloat16)(make_inputs(schema, dtype=torch.float32))
    assert all(logit.dtype == torch.bfloat16 for logit in logits.values())


@pytest.mark.parametrize("model_class", MODELS)
def test_a_model_runs_under_autocast(model_class, schema):
    model, inputs = model_class(schema), make_inputs(schema, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = model(inputs)
    for task, logit in model(inputs).items():
        torch.testing.assert_close(under_autocast[task].float(), logit, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("model_class", MODELS)
def test_the_same_seed_gives_the_same_weights(model_class, schema):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(torch.cat([tensor.flatten() for tensor in model_class(schema).state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("model_class", MODELS)
def test_each_task_has_a_logit_of_its_own_and_each_weight_a_gradient(model_class, schema):
    torch.manual_seed(0)
    model = model_class(schema)
    inputs = {name: value.requires_grad_() for name, value in make_inputs(schema, 64, torch.float32).items()}
    logits = model(inputs)
    assert not torch.equal(logits["ctr"], logits["cvr"])
    (logits["ctr"].square().sum() + logits["cvr"].square().sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    used = ["d1", "d2"] if model_class is DenseOnly else list(inputs)
    assert all((value.grad is not None) == (name in used) for name, value in inputs.items())


@pytest.mark.parametrize("model_class", MODELS)
def test_dropout_makes_training_random_and_leaves_evaluation_alone(model_class, schema):
    torch.manual_seed(0)
    model, inputs = model_class(schema, dropout=0.5), make_inputs(schema, dtype=torch.float32)
    assert not torch.equal(model(inputs)["ctr"], model(inputs)["ctr"])
    model.eval()
    assert torch.equal(model(inputs)["ctr"], model(inputs)["ctr"])


@pytest.mark.parametrize("model_class", MODELS)
def test_a_model_compiles_as_one_graph(model_class, schema):
    model, inputs = model_class(schema), make_inputs(schema, dtype=torch.float32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)(inputs)
    assert all(torch.equal(compiled[task], logit) for task, logit in model(inputs).items())


@pytest.mark.parametrize("model_class", [DLRM, DeepFM])
def test_the_vectors_of_a_tower_are_taken_as_embeddings_are(model_class, schema):
    settings = schema.to_dict()
    settings["columns"].append({"name": "words", "dtype": "int64", "layout": "list"})
    settings["features"].append({"name": "words", "tower": "text"})
    settings["towers"].append({"name": "text", "dim": 4, "model": {"model_type": "bert"}})
    inputs = make_inputs(schema, dtype=torch.float32)
    model = model_class(Schema.from_dict(settings))
    words = torch.randn(5, 4, requires_grad=True)
    model(inputs | {"words": words})["ctr"].sum().backward()
    assert words.grad.abs().min() > 0


@pytest.mark.parametrize("model_class", [DLRM, DeepFM])
def test_sequences_are_refused_when_the_model_is_built(model_class):
    schema = make_schema({"history": 4, "c": 4}, pooling="none")
    with pytest.raises(
        ValueError,
        match=f"{model_class.__name__} takes one vector a row, but 'history', 'c' keep their sequences",
    ):
        model_class(schema)


@pytest.mark.parametrize("model_class", MODELS)
def test_a_schema_without_tasks_is_refused(model_class):
    schema = make_schema({"a": 4}, tasks=())
    with pytest.raises(ValueError, match=f"{model_class.__name__} gives one logit a task, but the schema declares no"):
        model_class(schema)
