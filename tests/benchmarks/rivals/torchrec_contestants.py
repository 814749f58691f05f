"""FBGEMM's TBE and torchrec's managed collision on a CPU: python torchrec_contestants.py CONTEST WIDTH.

Both keep one table of fixed size and update it by row-wise Adagrad: of our optimizers TBE has no other on CPUs but
Adagrad. `tbe` gets ids that were hashed to rows before the clock starts. `mch` maps raw ids to rows as it trains; ids
that it has not admitted yet share a row. `lookup` reads rows of `tbe`. Prints JSON, times in milliseconds.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch

warnings.filterwarnings("ignore")

from draws import (  # noqa: E402
    BATCH,
    FEATURES,
    LOOKUP_BATCH,
    LOOKUP_DIM,
    TIMED,
    WARM_UP,
    draw_ids,
    draw_labels,
    draw_lookups,
)
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode  # noqa: E402
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (  # noqa: E402
    ComputeDevice,
    EmbeddingLocation,
    OptimType,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn  # noqa: E402
from torchrec.modules.mc_modules import DistanceLFU_EvictionPolicy, MCHManagedCollisionModule  # noqa: E402
from torchrec.sparse.jagged_tensor import JaggedTensor  # noqa: E402

ROWS = 4_000_000


def make_tbe(width: int, pooling: PoolingMode = PoolingMode.SUM) -> SplitTableBatchedEmbeddingBagsCodegen:
    tbe = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, width, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=OptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=1e-3,
        eps=1e-8,
        pooling_mode=pooling,
    )
    tbe.init_embedding_weights_uniform(-0.05, 0.05)
    return tbe


def make_collisions() -> MCHManagedCollisionModule:
    return MCHManagedCollisionModule(
        zch_size=ROWS,
        device=torch.device("cpu"),
        eviction_policy=DistanceLFU_EvictionPolicy(),
        eviction_interval=10,
        input_hash_size=2**62,
    )


def steps(contestant: str, width: int, count: int) -> Iterator[Callable[[], None]]:
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Linear(FEATURES * width, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)
    )
    dense, tbe, collisions = torch.optim.AdamW(mlp.parameters()), make_tbe(width), make_collisions()
    offsets, lengths = torch.arange(BATCH * FEATURES + 1), torch.ones(BATCH * FEATURES, dtype=torch.int64)
    for (ids, _), label in zip(draw_ids(count), draw_labels(count), strict=True):
        raw = torch.from_numpy(np.ascontiguousarray(ids.T).reshape(-1))
        keys = raw & (2**62 - 1) if contestant == "mch" else raw.remainder(ROWS)

        def step(keys: Tensor = keys, label: np.ndarray = label) -> None:
            dense.zero_grad()
            rows = keys
            if contestant == "mch":
                rows = collisions({"ids": JaggedTensor(values=keys, lengths=lengths)})["ids"].values()
            logits = mlp(tbe(rows, offsets).view(BATCH, -1))
            nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(label)).backward()
            dense.step()

        yield step


def measure(contestant: str, width: int) -> float:
    """The mean time of a step: managed collision does most of its work in every tenth."""
    ready = list(steps(contestant, width, WARM_UP + TIMED))
    for step in ready[:WARM_UP]:
        step()
    times = [time.perf_counter()]
    for step in ready[WARM_UP:]:
        step()
        times.append(time.perf_counter())
    return 1000 * sum(end - begin for begin, end in pairwise(times)) / TIMED


def measure_lookup() -> float:
    """The median time to read the rows of a batch."""
    tbe, offsets, times = make_tbe(LOOKUP_DIM), torch.arange(LOOKUP_BATCH + 1), []
    for ids in draw_lookups():
        rows = torch.from_numpy(ids).remainder(ROWS)
        begin = time.perf_counter()
        with torch.no_grad():
            tbe(rows, offsets)
        times.append(1000 * (time.perf_counter() - begin))
    return float(np.median(times))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure_lookup() if sys.argv[1] == "lookup" else measure(sys.argv[1], int(sys.argv[2]))))
