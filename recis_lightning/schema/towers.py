"""How a schema declares towers: models of their own that turn a row of a feature into one vector.

towers:
  - name: title
    dim: 32
    model: ${MODELS}/all-MiniLM-L6-v2
    train: lora
    lora: {rank: 4, targets: [query, value]}
    lr: 1e-4
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from recis_lightning.schema.schedules import Schedule
from recis_lightning.schema.schedules import find_mistakes as find_schedule_mistakes


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank matrices trained beside frozen linear layers: weight + alpha / rank * B A (Hu et al. 2021), by peft."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    """Names of layers, as they end: [query, value]. All linear layers where none are named."""


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A language model over rows of token ids: what features with `tower` get in place of an embedding."""

    name: str
    """Its name, or a pattern."""
    dim: int
    """Width of the vectors that the network gets."""
    model: str | dict
    """A folder with config.json and weights, a name on the Hugging Face hub, or a config for random first weights:
    {model_type: bert, hidden_size: 64, ...}. `${NAME}` in a path is an environment variable."""
    seed: int = 0
    """Of random first weights."""
    pooling: Literal["cls", "mean", "last"] = "mean"
    """What of a row's vectors is taken: the first, the mean, the last (for models that only look back)."""
    train: Literal["frozen", "lora", "full"] = "frozen"
    """What of the model is trained. The projection to `dim` always is."""
    lora: Lora = Lora()
    """Of train: lora."""
    lr: float | None = None
    """The model's own learning rate; that of the dense optimizer where none is given."""
    schedule: Schedule | None = None
    """The model's own schedule, in place of the run's."""
    empty: Literal["zeros", "learned"] = "zeros"
    """The vector of a row without text: zeros, or a trained one."""
    gradient_checkpointing: bool = False
    """Keep fewer activations, and compute them a second time for the gradients."""
    bf16: bool = False
    """Run the model under autocast to bfloat16."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model's weights are kept in; LoRA's are float32 always."""
    cache: str | None = None
    """A folder that keeps the vectors of a frozen model over epochs and runs."""
    cache_bytes: int = 1 << 30
    """How much it may hold."""
    block_tokens: int = 1024
    """About how many tokens go through the model at once."""


def find_mistakes(tower: Tower) -> Iterator[str]:
    """What cannot be meant, one line each."""
    where = f"tower '{tower.name}'"
    if re.search(r"[/\\.]", tower.name):
        yield f"{where}: a name is also a folder in checkpoints and part of weights' names; leave out / \\ and ."
    for option in ("dim", "cache_bytes", "block_tokens"):
        if getattr(tower, option) < 1:
            yield f"{where}: {option} is {getattr(tower, option)}, need at least 1"
    if isinstance(tower.model, dict) and "model_type" not in tower.model:
        yield f"{where}: model is a config without model_type; write {{model_type: bert, ...}}, or a path"
    if tower.lr is not None and tower.lr < 0:
        yield f"{where}: lr is {tower.lr}, need at least 0"
    if tower.train == "frozen" and (tower.lr is not None or tower.schedule is not None):
        yield f"{where}: lr and schedule are of the model, which is frozen; leave them out, or write train: lora"
    if tower.train != "frozen" and tower.cache is not None:
        yield f"{where}: a cache is for a frozen model, and train is {tower.train}; leave one of them out"
    if tower.train != "lora" and tower.lora != Lora():
        yield f"{where}: lora is given, and train is {tower.train}; write train: lora, or leave lora out"
    yield from _find_lora_mistakes(where, tower.lora)
    if tower.schedule is not None:
        yield from find_schedule_mistakes(where, tower.schedule)


def _find_lora_mistakes(where: str, lora: Lora) -> Iterator[str]:
    if lora.rank < 1:
        yield f"{where}: lora rank is {lora.rank}, need at least 1"
    if not 0 <= lora.dropout < 1:
        yield f"{where}: lora dropout is {lora.dropout}, need 0 <= dropout < 1"
