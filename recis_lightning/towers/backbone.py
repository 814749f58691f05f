"""Language models from the Hugging Face transformers library: find, check and load one, and train parts of it by LoRA.

backbone = load_backbone("models/all-MiniLM-L6-v2")
backbone = load_backbone({"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, ...}, seed=0)  # random
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from recis_lightning.llm_extra import import_llm
from recis_lightning.paths import expand_path
from recis_lightning.schema import did_you_mean
from recis_lightning.schema.towers import Lora
from recis_lightning.towers.errors import TowerError

# What a folder may keep weights in, and what it needs besides.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_CONFIG = "config.json"


def load_backbone(
    model: str | Mapping[str, Any],  # a folder, a name on the hub, or a config with its model_type
    *,
    seed: int = 0,  # of random first weights
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Load an encoder, or a causal language model without its head; a mapping gives random first weights.

    Raises TowerError where a folder lacks files, the hub does not have the name, a config is not understood, or the
    model is an encoder-decoder.
    """
    backbone: Any = _load_pretrained(model, dtype) if isinstance(model, str) else _build_random(model, seed, dtype)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # trained for another task, or not at all; its weights would wait for gradients in vain
    return backbone


def _load_pretrained(name: str, dtype: torch.dtype) -> nn.Module:
    transformers = import_llm("transformers")
    place = find_folder(name) or name
    try:
        config = transformers.AutoConfig.from_pretrained(place)
        _refuse_encoder_decoder(config, f"model '{name}'")
        return transformers.AutoModel.from_pretrained(place, config=config, dtype=dtype)
    except OSError as error:
        raise TowerError(
            f"model '{name}' is neither a folder here nor to be had from the Hugging Face hub ({_first_line(error)}); "
            "give the path of a folder with config.json and weights, or a name on the hub that is cached or reachable"
        ) from error


def find_folder(name: str) -> Path | None:
    """The folder that ``name`` means, None for a name on the hub; TowerError where it lacks the files of a model."""
    expanded = expand_path(name)
    folder = Path(expanded)
    if not folder.is_dir():
        if expanded.startswith((".", "/")) or expanded.count("/") > 1:
            raise TowerError(f"model '{name}': there is no folder {folder}; give one with config.json and weights")
        return None
    missing = [] if (folder / _CONFIG).exists() else [_CONFIG]
    if not any((folder / weights).exists() for weights in _WEIGHTS):
        missing.append("weights (model.safetensors)")
    if missing:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise TowerError(
            f"model '{name}': folder {folder} has no {' and no '.join(missing)}, it holds {found}; "
            "give the folder that save_pretrained wrote"
        )
    return folder


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _build_random(config: Mapping[str, Any], seed: int, dtype: torch.dtype) -> nn.Module:
    transformers = import_llm("transformers")
    options = dict(config)
    kind = options.pop("model_type", None)
    known = transformers.CONFIG_MAPPING.keys()
    if kind not in known:
        raise TowerError(f"model_type is {kind!r}, which transformers does not know{did_you_mean(str(kind), known)}")
    built = transformers.AutoConfig.for_model(kind, **options)
    unknown = options.keys() - type(built)().to_dict().keys() - getattr(type(built), "attribute_map", {}).keys()
    if unknown:
        # transformers takes any option and ignores what it does not know, a misspelt one too.
        name = sorted(unknown)[0]
        raise TowerError(f"model: config {kind} has no option '{name}'{did_you_mean(name, type(built)().to_dict())}")
    _refuse_encoder_decoder(built, f"model_type '{kind}'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModel.from_config(built).to(dtype)


def _refuse_encoder_decoder(config: Any, what: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise TowerError(f"{what} is an encoder-decoder; need an encoder or a causal language model")


def longest_sequence(backbone: nn.Module) -> int | None:
    """The most tokens a row may have, special ones included; None where the model sets no limit."""
    config: Any = backbone.config
    limit = getattr(config, "max_position_embeddings", None)
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # RoBERTa counts positions from padding_idx + 1 on, so its table of 514 is for 512 tokens.
            limit = module.num_embeddings - module.padding_idx - 1
    return limit


def vocabulary_size(backbone: nn.Module) -> int:
    """How many tokens the model has embeddings for."""
    embeddings: Any = backbone.get_input_embeddings()  # type: ignore[operator]
    return len(embeddings.weight)


def check_tokenizer(file: str | Path, vocabulary: int, where: str) -> None:
    """TowerError where a tokenizer's file gives tokens that the model has no embeddings for, or is not there."""
    path = Path(expand_path(str(file)))
    if not path.is_file():
        raise TowerError(f"{where}: there is no tokenizer {path}; train one: recis text train-tokenizer --help")
    tokenizer = import_llm("tokenizers").Tokenizer.from_file(str(path))
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocabulary:
        raise TowerError(
            f"{where}: tokenizer {file} gives tokens up to {largest}, and the model has embeddings for {vocabulary} "
            f"(0 to {vocabulary - 1}); take the tokenizer that belongs to the model, or set vocab_size: {largest + 1} "
            "in the config of a model with random weights"
        )


# -------------------------------------------------------------------------------------------------------------- LoRA


def add_lora(backbone: nn.Module, lora: Lora) -> nn.Module:
    """Freeze the model and put trainable low-rank matrices beside its linear layers: a peft.PeftModel.

    TowerError where a target matches no layer; it lists what there is.
    """
    peft = import_llm("peft")
    layers = {name.rsplit(".", 1)[-1] for name in _linear_layers(backbone)}
    names = list(_linear_layers(backbone))
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise TowerError(
                f"LoRA target '{target}' matches no linear layer of the model{did_you_mean(target, layers)}"
            )
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or sorted(layers),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what that has renamed
        return peft.get_peft_model(backbone, config)


def _linear_layers(backbone: nn.Module) -> Iterator[str]:
    for name, module in backbone.named_modules():
        # GPT-2 writes its linear layers as Conv1D, with transposed weights; peft takes both.
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            yield name


# ------------------------------------------------------------------------------------------------------- fingerprint


def fingerprint(backbone: nn.Module, *also: Any) -> str:
    """32 hexadecimal digits over the model's config and weights, and what else is given: equal only if all is equal."""
    config: Any = backbone.config
    ignored = {"_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype", "use_cache"}
    described = {key: value for key, value in config.to_dict().items() if key not in ignored}
    digest = xxhash.xxh3_128(json.dumps([described, *also], sort_keys=True, default=str).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
