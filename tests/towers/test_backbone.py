import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recis_lightning import llm_extra
from recis_lightning.schema.towers import Lora
from recis_lightning.towers.backbone import (
    add_lora,
    check_tokenizer,
    fingerprint,
    load_backbone,
    longest_sequence,
    vocabulary_size,
)
from tests.towers.tiny import BERT, LLAMA, LONGEST, VOCABULARY


def save(folder: Path, **changes: Any) -> Path:
    load_backbone(BERT | changes).save_pretrained(folder)
    return folder


def write_tokenizer(path: Path, tokens: int) -> Path:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"w{token}": token for token in range(tokens)}, unk_token="w0")).save(str(path))
    return path


@pytest.mark.parametrize("config", [BERT, LLAMA])
def test_random_weights_are_a_function_of_config_and_seed(config: dict[str, Any]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (load_backbone(config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)


def test_a_folder_gives_back_the_weights_that_were_saved(tmp_path: Path) -> None:
    assert fingerprint(load_backbone(str(save(tmp_path)))) == fingerprint(load_backbone(BERT))


def test_a_folder_may_be_named_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "small")
    monkeypatch.setenv("MODELS", str(tmp_path))
    assert fingerprint(load_backbone("${MODELS}/small")) == fingerprint(load_backbone(BERT))


def test_one_changed_weight_changes_the_fingerprint() -> None:
    backbone = load_backbone(BERT)
    before = fingerprint(backbone)
    next(backbone.parameters()).data[3, 1] += 1e-6
    assert fingerprint(backbone) != before
    assert fingerprint(backbone, "mean") != fingerprint(backbone, "last")


def test_limits_are_read_from_the_model() -> None:
    bert = load_backbone(BERT)
    assert (longest_sequence(bert), vocabulary_size(bert)) == (LONGEST, VOCABULARY)
    roberta = load_backbone(BERT | {"model_type": "roberta", "max_position_embeddings": 26, "pad_token_id": 1})
    assert longest_sequence(roberta) == 24
    tokens = torch.full((1, 24), 5)
    assert roberta(input_ids=tokens).last_hidden_state.shape == (1, 24, 32)
    with pytest.raises((IndexError, RuntimeError)):
        roberta(input_ids=torch.full((1, 25), 5))


# ------------------------------------------------------------------------------------------------------------ bad input


def test_a_folder_without_weights_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (save(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no weights \(model.safetensors\), it holds config.json"):
        load_backbone(str(tmp_path))


def test_an_empty_folder_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config.json and no weights .*it holds nothing"):
        load_backbone(str(tmp_path))
    with pytest.raises(ValueError, match="there is no folder"):
        load_backbone(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="variable NO_SUCH, which is not set"):
        load_backbone("${NO_SUCH}/model")


def test_a_name_that_the_hub_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="'nobody/nothing' is neither a folder here nor to be had from the Hugging Face"
    ):
        load_backbone("nobody/nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bertt"}, "'bertt', which transformers does not know; did you mean 'bert'"),
        ({"hiden_size": 8}, "config bert has no option 'hiden_size'; did you mean 'hidden_size'"),
        ({"model_type": "t5"}, "encoder-decoder"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    config = {"model_type": "t5"} if changes == {"model_type": "t5"} else BERT | changes
    with pytest.raises(ValueError, match=message):
        load_backbone(config)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    check_tokenizer(write_tokenizer(tmp_path / "fits.json", VOCABULARY), VOCABULARY, "column 'title'")
    with pytest.raises(ValueError, match="here: there is no tokenizer .*nowhere.json; train one"):
        check_tokenizer(tmp_path / "nowhere.json", VOCABULARY, "here")
    with pytest.raises(ValueError, match=r"column 'title': tokenizer .* up to 60, .* for 60 .*set vocab_size: 61"):
        check_tokenizer(write_tokenizer(tmp_path / "large.json", VOCABULARY + 1), VOCABULARY, "column 'title'")


@pytest.mark.parametrize("package", ["transformers", "peft", "tokenizers"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, file = load_backbone(BERT), write_tokenizer(tmp_path / "any.json", 3)
    monkeypatch.setitem(sys.modules, package, None)
    use = {
        "transformers": lambda: load_backbone(BERT),
        "peft": lambda: add_lora(backbone, Lora()),
        "tokenizers": lambda: check_tokenizer(file, 3, "here"),
    }
    with pytest.raises(
        ImportError, match=rf"'{package}', which is not installed; pip install 'recis-lightning\[llm\]'"
    ):
        use[package]()


def test_a_package_that_is_broken_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, *rest: Any) -> Any:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(llm_extra.importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        llm_extra.import_llm("peft")


# ----------------------------------------------------------------------------------------------------------------- LoRA


def test_lora_trains_its_matrices_and_nothing_else() -> None:
    backbone = add_lora(load_backbone(BERT), Lora(rank=2, targets=("query", "value")))
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 2 * 2  # layers, targets, matrices
    assert all(".lora_" in name and (".query." in name or ".value." in name) for name in trained)


def test_lora_without_targets_takes_all_linear_layers() -> None:
    backbone = add_lora(load_backbone(LLAMA), Lora(rank=2))
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 * 2


def test_a_lora_target_that_matches_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="'querry' matches no linear layer of the model; did you mean 'query'"):
        add_lora(load_backbone(BERT), Lora(targets=("value", "querry")))
    with pytest.raises(ValueError, match="'c_attn' .*there are: dense, key, query, value"):
        add_lora(load_backbone(BERT), Lora(targets=("c_attn",)))
