import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recis_lightning.ragged import Ragged
from recis_lightning.schema.schedules import Schedule
from recis_lightning.schema.towers import Lora
from recis_lightning.towers.backbone import load_backbone
from recis_lightning.towers.distinct import select_rows
from recis_lightning.towers.text import TextTower, pool
from tests.towers.tiny import BERT, LLAMA, LONGEST, VOCABULARY, draw_rows

QUERY_VALUE = Lora(rank=2, targets=("query", "value"))


def make_tower(config: Any = BERT, **options: Any) -> TextTower:
    torch.manual_seed(0)
    return TextTower(config, 4, **({"name": "title"} | options))


def gradients(tower: TextTower) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in tower.named_parameters() if parameter.grad is not None}


# ------------------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize(("pooling", "expected"), [("cls", [1.0, 5.0]), ("mean", [2.0, 5.0]), ("last", [3.0, 5.0])])
def test_pooling_takes_no_notice_of_padding(pooling: Any, expected: list[float]) -> None:
    hidden = torch.tensor([[1.0, 2.0, 3.0], [5.0, torch.nan, torch.nan]])[..., None]
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert pool(hidden, mask, pooling)[:, 0].tolist() == expected


@pytest.mark.parametrize("config", [BERT, LLAMA], ids=["bert", "llama"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("train", ["frozen", "lora", "full"])
def test_a_batch_gives_what_each_row_gives_alone(config: Any, pooling: Any, train: Any) -> None:
    tower = make_tower(config, pooling=pooling, train=train)
    rows = draw_rows(40, contents=25)
    alone = torch.cat([tower(select_rows(rows, torch.tensor([row]))) for row in range(len(rows))])
    torch.testing.assert_close(tower(rows), alone, rtol=0, atol=1e-6)


def test_pooled_vectors_are_those_of_the_plain_model() -> None:
    tower, plain = make_tower(LLAMA, pooling="last"), load_backbone(LLAMA)
    expected = plain(input_ids=torch.tensor([[7, 3, 9]])).last_hidden_state[:, -1]
    torch.testing.assert_close(tower.encode(Ragged.from_lists([[7, 3, 9]])), expected, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------- once for each distinct row


@pytest.mark.parametrize("train", ["lora", "full"])
def test_gradients_equal_those_of_computing_every_row(train: Any) -> None:
    tower = make_tower(train=train, lora=QUERY_VALUE).double()
    rows = draw_rows(60, contents=12)
    weight = torch.randn(60, 4, dtype=torch.float64)
    (tower(rows) * weight).sum().backward()
    once = gradients(tower)
    tower.zero_grad()
    filled = rows.lengths.nonzero()[:, 0]
    every = tower.projection(tower.encode(select_rows(rows, filled)))
    (every * weight[filled]).sum().backward()
    assert gradients(tower).keys() == once.keys()
    for name, gradient in gradients(tower).items():
        torch.testing.assert_close(once[name], gradient, rtol=0, atol=1e-6)
    assert tower.statistics.computed == tower.statistics.distinct + len(filled) < 2 * len(filled)


def test_the_share_of_distinct_rows_is_counted() -> None:
    tower = make_tower()
    tower(Ragged.from_lists([[1, 2], [], [1, 2], [3], [1, 2]]))
    tower(Ragged.from_lists([[3], [3]]))
    assert (tower.statistics.rows, tower.statistics.distinct, tower.statistics.computed) == (6, 3, 3)


# ----------------------------------------------------------------------------------------- rows without tokens, errors


def test_a_row_without_tokens_gets_zeros_or_a_learned_vector() -> None:
    rows = Ragged.from_lists([[], [5], []])
    assert torch.equal(make_tower()(rows)[[0, 2]], torch.zeros(2, 4))
    tower = make_tower(empty="learned")
    torch.nn.init.ones_(tower.empty)
    vectors = tower(rows)
    assert torch.equal(vectors[[0, 2]], torch.ones(2, 4))
    vectors.sum().backward()
    assert tower.empty.grad.tolist() == [2.0] * 4


@pytest.mark.parametrize("rows", [[], [[], []]])
@pytest.mark.parametrize("train", ["frozen", "lora", "full"])
def test_a_batch_without_text_gives_every_trained_weight_a_gradient_of_zero(rows: list[Any], train: Any) -> None:
    tower = make_tower(train=train)
    vectors = tower(Ragged(torch.empty(0, dtype=torch.int64), torch.zeros(len(rows) + 1, dtype=torch.int64)))
    assert vectors.shape == (len(rows), 4)
    vectors.sum().backward()
    trained = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert gradients(tower).keys() == trained
    assert not any(gradient.any() for gradient in gradients(tower).values())


def test_a_row_longer_than_the_model_is_refused_with_what_to_declare() -> None:
    tower = make_tower()
    assert tower(Ragged.from_lists([[1] * LONGEST])).shape == (1, 4)
    with pytest.raises(ValueError, match="tower 'title': row 1 .* 25 tokens, .* takes 24 .*declare max_length: 24"):
        tower(Ragged.from_lists([[1], [2] * (LONGEST + 1)]))


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_a_token_that_the_model_does_not_have_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match="tower 'title': token ids from .* for 0 to 59"):
        make_tower()(Ragged.from_lists([[1, token]]))


def test_nested_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="lists of lists"):
        make_tower()(Ragged.from_lists([[[1], [2]]]))


def test_a_cache_of_a_trained_tower_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache is for a frozen model, and train is lora"):
        make_tower(train="lora", cache=str(tmp_path))


# ---------------------------------------------------------------------------------------------- frozen: bits and cache


@settings(max_examples=15)
@given(st.lists(st.integers(0, 59), min_size=1, max_size=60), st.sampled_from([64, 1024]))
def test_a_frozen_vector_is_the_same_to_the_bit_in_any_company(chosen: list[int], block_tokens: int) -> None:
    tower = FROZEN[block_tokens]
    rows = draw_rows(60)
    rows = select_rows(rows, rows.lengths.nonzero()[:, 0])
    company = select_rows(rows, torch.tensor(chosen) % len(rows))
    alone = torch.cat([tower.encode(select_rows(company, torch.tensor([row]))) for row in range(len(company))])
    assert torch.equal(tower.encode(company), alone)


FROZEN: dict[int, TextTower] = {}


@pytest.fixture(autouse=True, scope="module")
def _frozen_towers() -> None:
    FROZEN.update({block_tokens: make_tower(block_tokens=block_tokens) for block_tokens in (64, 1024)})


def train_a_little(tower: TextTower, epochs: int = 2) -> list[float]:
    """The losses of some steps on batches that are composed anew in each epoch, with a look at validation between."""
    rows, target = draw_rows(50), torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(tower.projection.parameters(), lr=0.1)
    losses = []
    for epoch in range(epochs):
        tower.eval()
        with torch.inference_mode():
            losses.append(tower(rows).sum().item())
        tower.train()
        for batch in torch.randperm(50, generator=torch.Generator().manual_seed(epoch)).split(20):
            loss = (tower(select_rows(rows, batch)) - target[batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        tower.flush_cache()
    return losses


def test_losses_are_the_same_to_the_bit_with_a_cache_and_without(tmp_path: Path) -> None:
    without = train_a_little(make_tower())
    tower = make_tower(cache=str(tmp_path))
    filling = train_a_little(tower)
    assert tower.statistics.computed < 50 < tower.statistics.distinct
    later = make_tower(cache=str(tmp_path))
    filled = train_a_little(later)
    assert later.statistics.computed == 0
    assert without == filling == filled


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64])
def test_a_cache_keeps_the_bits_of_other_dtypes(tmp_path: Path, precision: torch.dtype) -> None:
    rows = draw_rows(30)
    plain, cached = make_tower().to(precision), make_tower(cache=str(tmp_path)).to(precision)
    for _ in range(2):
        vectors = cached(rows)
        assert vectors.dtype == precision
        assert torch.equal(vectors, plain(rows))


@pytest.mark.parametrize(
    "changes", [{"pooling": "cls"}, {"seed": 1}, {"bf16": True}, {"config": BERT | {"layer_norm_eps": 1e-3}}]
)
def test_a_changed_tower_does_not_take_the_vectors_of_the_old_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    rows = draw_rows(20)
    old = make_tower(cache=str(tmp_path))
    old(rows)
    old.flush_cache()
    changed = make_tower(cache=str(tmp_path), **changes)
    assert torch.equal(changed(rows), make_tower(**changes)(rows))
    assert changed.statistics.computed == changed.statistics.distinct


def test_weights_changed_while_the_tower_lives_start_another_cache(tmp_path: Path) -> None:
    rows = draw_rows(20)
    tower = make_tower(cache=str(tmp_path))
    before = tower(rows)
    with torch.no_grad():
        next(tower.backbone.parameters()).mul_(1.5)
    after = tower(rows)
    assert not torch.equal(before, after)
    assert tower.statistics.computed == tower.statistics.distinct


def test_a_full_cache_changes_no_vector(tmp_path: Path) -> None:
    rows = draw_rows(60)
    tower = make_tower(cache=str(tmp_path), cache_bytes=3_000)
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vectors = tower(rows)
            tower.flush_cache()
        assert torch.equal(vectors, make_tower()(rows))


# ------------------------------------------------------------------------------------------------------------ training


def test_a_frozen_model_has_no_dropout_while_the_rest_trains() -> None:
    rows, config = draw_rows(10), BERT | {"hidden_dropout_prob": 0.5}
    for frozen in (make_tower(config), make_tower(config).eval().train()):
        assert torch.equal(frozen(rows), frozen(rows))
        assert all(module.training for module in frozen.modules())
    trained = make_tower(config, train="full")
    assert not torch.equal(trained(rows), trained(rows))


@pytest.mark.parametrize("train", ["lora", "full"])
def test_gradient_checkpointing_changes_no_gradient(train: Any) -> None:
    rows, found = draw_rows(10), []
    for gradient_checkpointing in (False, True):
        tower = make_tower(train=train, lora=QUERY_VALUE, gradient_checkpointing=gradient_checkpointing).train()
        for name, parameter in tower.named_parameters():
            if "lora_B" in name:  # zeros at first, which would hide the gradients of lora_A
                torch.nn.init.ones_(parameter)
        tower(rows).square().sum().backward()
        found.append(gradients(tower))
    assert found[0].keys() == found[1].keys()
    assert all(gradient.any() for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_checkpointing_keeps_fewer_activations() -> None:
    kept = []
    for gradient_checkpointing in (False, True):
        sizes = []
        tower = make_tower(train="full", gradient_checkpointing=gradient_checkpointing).train()
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: (s.append(x.numel()), x)[1], lambda x: x):
            tower(draw_rows(30))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


def test_bf16_runs_the_model_in_bfloat16_and_leaves_an_outer_autocast_alone() -> None:
    rows = draw_rows(10)
    full = make_tower()(rows)
    half = make_tower(bf16=True)(rows)
    assert half.dtype == torch.float32
    assert 1e-5 < (half - full).abs().max() < 0.1
    tower = make_tower()
    with torch.autocast("cpu", torch.bfloat16):
        outer = tower.encode(select_rows(rows, rows.lengths.nonzero()[:, 0]))
    assert not torch.equal(outer, tower.encode(select_rows(rows, rows.lengths.nonzero()[:, 0])))


def test_the_model_has_a_parameter_group_of_its_own_where_it_has_a_rate_or_a_schedule() -> None:
    assert make_tower(train="full").parameter_groups() == []
    assert make_tower(train="frozen", lr=1.0).parameter_groups() == []
    tower = make_tower(train="lora", lora=QUERY_VALUE, lr=1e-4, schedule=Schedule(warmup_steps=3))
    (group,) = tower.parameter_groups()
    assert (group["name"], group["lr"]) == (tower.group_name, 1e-4) == ("tower/title", 1e-4)
    trained = [parameter for name, parameter in tower.named_parameters() if "lora_" in name]
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in trained}


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("train", ["frozen", "lora", "full"])
def test_the_state_holds_what_was_trained_and_gives_the_same_vectors(train: Any) -> None:
    rows = draw_rows(20)
    tower = make_tower(train=train, lora=QUERY_VALUE)
    optimizer = torch.optim.SGD([parameter for parameter in tower.parameters() if parameter.requires_grad], lr=0.5)
    tower(rows).square().sum().backward()
    optimizer.step()
    state = tower.state_dict()
    names = [name for name in state if name.startswith("backbone.")]
    assert all("lora_" in name for name in names) or train == "full"
    assert len(names) == {"frozen": 0, "lora": 8, "full": len(tower.backbone.state_dict())}[train]
    torch.manual_seed(9)
    fresh = TextTower(BERT, 4, train=train, lora=QUERY_VALUE)
    assert not torch.equal(fresh(rows), tower(rows))
    holder = torch.nn.ModuleDict({"towers": torch.nn.ModuleDict({"a": fresh, "b": make_tower(train=train)})})
    holder["towers"]["a"].load_state_dict(state)
    assert torch.equal(fresh(rows), tower(rows))


def test_loading_is_strict_about_what_was_trained() -> None:
    lora, frozen = make_tower(train="lora", lora=QUERY_VALUE), make_tower()
    with pytest.raises(RuntimeError, match="Unexpected key.*lora_A"):
        frozen.load_state_dict(lora.state_dict())
    with pytest.raises(RuntimeError, match="Missing key.*lora_A"):
        lora.load_state_dict(frozen.state_dict())


def test_weights_saved_on_another_base_are_refused() -> None:
    state = make_tower(train="lora", lora=QUERY_VALUE).state_dict()
    with pytest.raises(ValueError, match='tower \'title\' was saved with base weights .*"seed": 0.*"seed": 1'):
        make_tower(train="lora", lora=QUERY_VALUE, seed=1).load_state_dict(state)


def test_the_adapter_loads_into_plain_peft(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    load_backbone(BERT).save_pretrained(tmp_path / "base")
    tower = make_tower(str(tmp_path / "base"), train="lora", lora=QUERY_VALUE)
    for parameter in tower.backbone.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    for name, data in tower.adapter_files().items():
        (tmp_path / "adapter").mkdir(exist_ok=True)
        (tmp_path / "adapter" / name).write_bytes(data)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = AutoModel.from_pretrained(tmp_path / "base")
        model = PeftModel.from_pretrained(model, tmp_path / "adapter")
    tokens = torch.tensor([[4, 8, 15]])
    expected = model(input_ids=tokens).last_hidden_state.mean(1)
    torch.testing.assert_close(tower.encode(Ragged(tokens[0], torch.tensor([0, 3]))), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="no LoRA weights: train is frozen"):
        make_tower().save_adapter(str(tmp_path / "none"))
    assert make_tower().adapter_files() == {}


def test_training_lora_leaves_all_other_weights_as_they_were() -> None:
    tower = make_tower(train="lora", lora=QUERY_VALUE)
    before = {name: value.clone() for name, value in tower.backbone.state_dict().items()}
    optimizer = torch.optim.AdamW([parameter for parameter in tower.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(3):
        tower(draw_rows(10)).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in tower.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name}
