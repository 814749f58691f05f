"""TextTower: rows of token ids through a language model to one vector a row, trained with the rest or frozen.

    tower = TextTower("models/all-MiniLM-L6-v2", dim=32, train="lora", lora=Lora(targets=("query", "value")), lr=1e-4)
    vectors = tower(Ragged.from_lists([[101, 2143, 102], [], [101, 2143, 102]]))  # [3, 32]; the model ran on one row

Each distinct row of a batch goes through the model once. A frozen model computes a row's vector from the row alone, to
the bit (see `blocks.FixedBlocks`), so that a cache on disk changes nothing but the time.

R rows of token ids, U distinct ones that are not empty, H width of the model, D width of the tower.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from recis_lightning.ragged import Ragged
from recis_lightning.schema.schedules import Schedule
from recis_lightning.schema.towers import Lora
from recis_lightning.towers.backbone import add_lora, fingerprint, load_backbone, longest_sequence, vocabulary_size
from recis_lightning.towers.blocks import FixedBlocks, encode_blocks
from recis_lightning.towers.distinct import distinct_rows, select_rows
from recis_lightning.towers.errors import TowerError
from recis_lightning.towers.vector_cache import VectorCache, content_keys

Pooling = Literal["cls", "mean", "last"]


@dataclass
class TowerStatistics:
    """What a tower has been given, and what it had to compute."""

    rows: int = 0
    """Rows that were not empty."""
    distinct: int = 0
    """Distinct ones, batch by batch."""
    computed: int = 0
    """Those that went through the model: the cache had the others."""


class TextTower(nn.Module):
    """A language model from the Hugging Face library, pooled and projected to ``dim``.

    ``model`` is the path of a folder, a name on the hub, or a config with its ``model_type`` for random first weights
    (of ``seed``). ``pooling`` takes the first token's vector, the mean, or the last token's; causal models have seen
    all of a row only at its last. ``train`` says what of the model is trained: nothing, LoRA matrices, or all; the
    projection always is. A row without tokens gets zeros, or, with ``empty="learned"``, a trained vector.

    ``lr`` and ``schedule`` are the model's own; without them it is trained as the rest is. ``bf16`` runs it under
    autocast, ``dtype`` is what its weights are kept in. ``cache`` is a folder that keeps the vectors of a frozen model,
    up to ``cache_bytes``. ``block_tokens`` is about how many tokens go through the model at once.
    """

    def __init__(
        self,
        model: str | Mapping[str, Any],
        dim: int,
        *,
        name: str = "text",  # in messages and in the names of what is logged
        pooling: Pooling = "mean",
        train: Literal["frozen", "lora", "full"] = "frozen",
        lora: Lora | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        bf16: bool = False,
        gradient_checkpointing: bool = False,
        empty: Literal["zeros", "learned"] = "zeros",
        lr: float | None = None,
        schedule: Schedule | None = None,
        cache: str | None = None,
        cache_bytes: int = 1 << 30,
        block_tokens: int = 1024,
    ) -> None:
        super().__init__()
        if cache is not None and train != "frozen":
            raise TowerError(
                f"tower '{name}': a cache is for a frozen model, and train is {train}; leave one of them out"
            )
        backbone = load_backbone(model, seed=seed, dtype=dtype)
        self.name, self.dim, self.pooling, self.train_mode = name, dim, pooling, train
        self.lr, self.schedule, self.bf16, self.block_tokens = lr, schedule, bf16, block_tokens
        self.cache_folder, self.cache_bytes = cache, cache_bytes
        self.base = {"model": model if isinstance(model, str) else json.loads(json.dumps(model)), "seed": seed}
        self.base_fingerprint = fingerprint(backbone)
        self.longest, self.vocabulary = longest_sequence(backbone), vocabulary_size(backbone)
        config: Any = backbone.config
        self.padding = config.pad_token_id if isinstance(getattr(config, "pad_token_id", None), int) else 0
        if gradient_checkpointing:
            _enable_checkpointing(backbone)
        self.backbone = self._choose_trained(backbone, lora or Lora())
        self.projection = nn.Linear(config.hidden_size, dim)
        self.empty = nn.Parameter(torch.zeros(dim)) if empty == "learned" else None
        self.statistics = TowerStatistics()
        self._blocks = FixedBlocks(block_tokens)
        self._cache: VectorCache | None = None
        self._state: tuple[Any, ...] = ()
        self.register_state_dict_post_hook(_omit_base)
        self.register_load_state_dict_pre_hook(_add_base)
        self.train()

    def _choose_trained(self, backbone: nn.Module, lora: Lora) -> nn.Module:
        if self.train_mode == "lora":
            return add_lora(backbone, lora)
        backbone.requires_grad_(self.train_mode == "full")
        return backbone

    # ------------------------------------------------------------------------------------------------------- the rows

    def forward(self, tokens: Ragged) -> Tensor:
        """Vectors [R, D] of rows of token ids, int64.

        TowerError for a row longer than the model takes, and for ids that it has no embedding for.
        """
        self.check(tokens, f"tower '{self.name}'")
        filled_F = tokens.lengths.nonzero()[:, 0]
        first_U, inverse_F = distinct_rows(select_rows(tokens, filled_F))
        distinct = select_rows(tokens, filled_F[first_U])
        self.statistics.rows += len(filled_F)
        self.statistics.distinct += len(first_U)
        vectors_UH = self.encode(distinct) if len(distinct) else self._encode_nothing(tokens.device)
        table_UD = torch.cat([self._default_vector()[None], self.projection(vectors_UH)])
        place_R = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        return table_UD.index_select(0, place_R.index_copy(0, filled_F, inverse_F + 1))

    def check(self, tokens: Ragged, where: str) -> None:
        """TowerError, beginning with ``where``, for rows that the model cannot take."""
        if tokens.inner_offsets:
            raise TowerError(f"{where}: rows are lists of lists; need one list of token ids a row")
        if not len(tokens.values):
            return
        longest = int(tokens.lengths.max())
        if self.longest is not None and longest > self.longest:
            row = int(tokens.lengths.argmax())
            raise TowerError(
                f"{where}: row {row} of the batch has {longest} tokens, and the model takes {self.longest} at most; "
                f"truncate: declare max_length: {self.longest} at its column"
            )
        low, high = map(int, tokens.values.aminmax())
        if low < 0 or high >= self.vocabulary:
            raise TowerError(
                f"{where}: token ids from {low} to {high}, and the model has embeddings for 0 to "
                f"{self.vocabulary - 1}; take the tokenizer that belongs to the model"
            )

    def _default_vector(self) -> Tensor:
        return self.projection.weight.new_zeros(self.dim) if self.empty is None else self.empty

    def _encode_nothing(self, device: torch.device) -> Tensor:
        """What no row of the batch uses: a rank without text takes part, for its peers wait for all gradients."""
        if self.train_mode == "frozen" or not (self.training and torch.is_grad_enabled()):
            return self.projection.weight.new_zeros(1, self.projection.in_features)
        token, offsets = torch.zeros(1, dtype=torch.int64, device=device), torch.tensor([0, 1], device=device)
        return self._compute(Ragged(token, offsets), [1])

    def take_statistics(self) -> TowerStatistics:
        """What was counted since this was last called."""
        taken, self.statistics = self.statistics, TowerStatistics()
        return taken

    # --------------------------------------------------------------------------------------------- the model's vectors

    def encode(self, rows: Ragged) -> Tensor:
        """The pooled vectors [U, H] of rows that are not empty, before the projection."""
        if self.train_mode != "frozen":
            self.statistics.computed += len(rows)
            return self._compute(rows, rows.lengths.tolist())
        with torch.no_grad(), evaluation(self.backbone):
            return self._encode_frozen(rows)

    def _compute(self, rows: Ragged, lengths: list[int]) -> Tensor:
        return encode_blocks(
            rows,
            lengths,
            self._run,
            lambda length: max(self.block_tokens // length, 1),
            padding=self.padding,
            longest=self.longest,
            fill=False,
        )

    def _encode_frozen(self, rows: Ragged) -> Tensor:
        cache = self._open_cache()
        if cache is None:
            return self._compute_fixed(rows)
        keys = content_keys(rows)
        known, found_KH = cache.find(keys)
        vectors_UH = self.projection.weight.new_empty(len(rows), self.projection.in_features)
        missing = torch.ones(len(rows), dtype=torch.bool)
        missing[torch.from_numpy(known)] = False
        vectors_UH[(~missing).to(vectors_UH.device)] = found_KH.to(vectors_UH)
        places = missing.nonzero()[:, 0].to(vectors_UH.device)
        if len(places):
            computed_MH = self._compute_fixed(select_rows(rows, places))
            cache.add([keys[place] for place in places.tolist()], computed_MH)
            vectors_UH[places] = computed_MH
        return vectors_UH

    def _compute_fixed(self, rows: Ragged) -> Tensor:
        self.statistics.computed += len(rows)
        return self._blocks.encode(
            rows,
            rows.lengths.tolist(),
            self._run,
            padding=self.padding,
            longest=self.longest,
            vocabulary=self.vocabulary,
        )

    def _run(self, ids_CL: Tensor, mask_CL: Tensor) -> Tensor:
        # Not enabled=self.bf16: that would switch off what the Trainer's precision has switched on.
        with torch.autocast(ids_CL.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            outputs = self.backbone(input_ids=ids_CL, attention_mask=mask_CL.to(torch.int64), use_cache=False)
        return pool(outputs.last_hidden_state.to(self.projection.weight.dtype), mask_CL, self.pooling)

    # ------------------------------------------------------------------------------------------------------- the cache

    def _open_cache(self) -> VectorCache | None:
        """The cache of the model as it is now; opened anew where its weights, dtype or device have changed."""
        if self.cache_folder is None:
            return None
        state = self._present_state()
        if self._cache is None or state != self._state:
            self.flush_cache()
            dtype = self.projection.weight.dtype
            kept = (
                torch.float32 if dtype == torch.bfloat16 else dtype
            )  # numpy has no bfloat16; float32 holds it exactly
            self._cache = VectorCache(
                self.cache_folder, self._fingerprint(), self.projection.in_features, kept, self.cache_bytes
            )
            self._state = state
        return self._cache

    def _present_state(self) -> tuple[Any, ...]:
        weights = list(self.backbone.parameters())
        # torch counts the changes in place of each tensor
        versions = sum(weight._version for weight in weights)
        return versions, weights[0].data_ptr(), weights[0].dtype, weights[0].device, torch.is_autocast_enabled()

    def _fingerprint(self) -> str:
        """Of all that a vector depends on besides its row."""
        device = next(self.backbone.parameters()).device.type
        autocast = torch.is_autocast_enabled(device) and str(torch.get_autocast_dtype(device))
        settings = (self.pooling, self.bf16, self.block_tokens, device, autocast, str(self.projection.weight.dtype))
        return fingerprint(self.backbone, *settings)

    def flush_cache(self) -> None:
        """Write vectors that wait in memory; the end of an epoch is a good time."""
        if self._cache is not None:
            self._cache.flush()

    # ------------------------------------------------------------------------------------------------------- training

    def replicated_parameters(self) -> list[nn.Parameter]:
        """What every rank keeps whole under FSDP2: a frozen model, whose weights its cache looks at."""
        return list(self.backbone.parameters()) if self.train_mode == "frozen" else []

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A group of the model's trained parameters with its own learning rate, where it has one; else none."""
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        if not trained or (self.lr is None and self.schedule is None):
            return []
        own = {} if self.lr is None else {"lr": self.lr}
        return [{"params": trained, "name": self.group_name, **own}]

    @property
    def group_name(self) -> str:
        """What the group of `parameter_groups` is called, and the learning rate in a log."""
        return f"tower/{self.name}"

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def get_extra_state(self) -> dict[str, Any]:
        """What the saved weights stand on: where the base weights come from, and what they are."""
        if self.train_mode == "full":
            return {}
        return {"base": json.dumps(self.base), "fingerprint": self.base_fingerprint}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """TowerError where the saved weights stand on others than this tower's."""
        saved = state.get("fingerprint")
        if self.train_mode != "full" and saved is not None and saved != self.base_fingerprint:
            raise TowerError(
                f"tower '{self.name}' was saved with base weights {saved}, from {state['base']}; the weights loaded "
                f"now are {self.base_fingerprint}, from {json.dumps(self.base)}; give the model it was trained with"
            )

    def save_adapter(self, folder: str) -> None:
        """Write the LoRA weights as `peft.PeftModel.from_pretrained(base_model, folder)` reads them."""
        if self.train_mode != "lora":
            raise TowerError(f"tower '{self.name}' has no LoRA weights: train is {self.train_mode}")
        backbone: Any = self.backbone
        # Whole tensors, where FSDP2 has cut them; it takes all ranks to put them together.
        state = {
            name: value.full_tensor() if isinstance(value, DTensor) else value
            for name, value in backbone.state_dict().items()
        }
        # Embeddings are never trained beside LoRA; to find that out peft would ask the hub.
        backbone.save_pretrained(folder, save_embedding_layers=False, state_dict=state)

    def adapter_files(self) -> dict[str, bytes]:
        """What `save_adapter` writes, by file name; nothing without LoRA."""
        if self.train_mode != "lora":
            return {}
        with tempfile.TemporaryDirectory() as folder:
            self.save_adapter(folder)
            names = ("adapter_config.json", "adapter_model.safetensors")
            return {name: Path(folder, name).read_bytes() for name in names}


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Let a frozen model be without dropout, so that a row has one vector.

    Only for a moment: a module that is in evaluation while its neighbours train looks like a mistake to Lightning.
    """
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def pool(hidden_CLH: Tensor, mask_CL: Tensor, pooling: Pooling) -> Tensor:
    """One vector a row [C, H]: of tokens [[1], [3]] and padding, cls gives [1], mean [2], last [3].

    Padding stands behind the tokens, of which each row has at least one.
    """
    if pooling == "cls":
        return hidden_CLH[:, 0]
    count_C1 = mask_CL.sum(1, keepdim=True)
    if pooling == "mean":
        # where, not times: padding may hold NaN, and 0 * NaN would stay.
        return torch.where(mask_CL[..., None], hidden_CLH, 0).sum(1) / count_C1
    last_C11 = (count_C1 - 1)[..., None].expand(-1, 1, hidden_CLH.shape[2])
    return hidden_CLH.gather(1, last_C11)[:, 0]


def _enable_checkpointing(backbone: Any) -> None:
    # Not the reentrant kind: it drops the gradients of LoRA where the embeddings before it are frozen.
    enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    enable({"use_reentrant": False})


# ---------------------------------------------------------------------------- base weights stay out of the state_dict


def _base_weights(tower: TextTower) -> dict[str, Tensor]:
    """What is not trained, and so loaded from where it came from rather than saved, by its name in the state_dict."""
    if tower.train_mode == "full":
        return {}
    trained = {name for name, parameter in tower.backbone.named_parameters() if parameter.requires_grad}
    return {f"backbone.{name}": value for name, value in tower.backbone.state_dict().items() if name not in trained}


def _omit_base(tower: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    assert isinstance(tower, TextTower)
    for name in _base_weights(tower):
        state.pop(prefix + name, None)


def _add_base(tower: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let loading find the base weights where they are: nothing is missing, so a strict load stays strict."""
    assert isinstance(tower, TextTower)
    for name, value in _base_weights(tower).items():
        state.setdefault(prefix + name, value)
