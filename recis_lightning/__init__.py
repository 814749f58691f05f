"""Recommendation models with unbounded hash-table embeddings, trained with PyTorch Lightning.

Importing this package makes `Trainer(strategy="recis_sharded")` known to Lightning, and does nothing else.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_REGISTRY = "lightning.pytorch.strategies"


def _sharded_strategy(**options: Any) -> Any:
    from recis_lightning.training.strategy import ShardedStrategy

    return ShardedStrategy(**options)


def _register(strategies: ModuleType) -> None:
    strategies.StrategyRegistry.register(
        "recis_sharded", _sharded_strategy, description="Hash-table embeddings, sharded over the ranks", override=True
    )


class _RegisterOnceImported(MetaPathFinder):
    """Registers the strategy when Lightning's registry is imported, by whomever.

    Lightning finds strategies in its registry only, and importing it takes seconds, which people who came for the
    schema or the data would wait for nothing.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _REGISTRY in sys.modules:
    _register(sys.modules[_REGISTRY])
else:
    sys.meta_path.insert(0, _RegisterOnceImported())
