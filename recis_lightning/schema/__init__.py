"""What a model reads and what it keeps: columns, features, tables and tasks, declared once, in Python or YAML.

    columns:
      - {name: label, dtype: float32}
      - {name: "c{1..26}", dtype: int64}                 # a pattern declares c1, c2, ... c26
    tables:
      - {name: "c{1..26}", dim: 16, initializer: {kind: normal, std: 0.01}, optimizer: {kind: adagrad, lr: 0.05}}
    features:
      - {name: "c{1..26}", table: "c{1..26}", pooling: sum}
    tasks:
      - {name: ctr, label: label}

`Schema.from_dict` reads such a mapping and reports every mistake in it in one `SchemaError`.
"""

from recis_lightning.schema.declarations import (
    Column,
    Dtype,
    Feature,
    Layout,
    Loss,
    Pooling,
    Pretrained,
    SequenceGroup,
    Table,
    Task,
)
from recis_lightning.schema.fits import (
    FIT_FORMAT,
    FITTED,
    find_changed_hashes,
    find_changed_transforms,
    find_unfitted,
    version_of,
)
from recis_lightning.schema.flow import Value
from recis_lightning.schema.kinds import (
    INITIALIZERS,
    Constant,
    Initializer,
    KaimingNormal,
    KaimingUniform,
    Normal,
    TruncatedNormal,
    Uniform,
    XavierNormal,
    XavierUniform,
)
from recis_lightning.schema.names import SchemaError, did_you_mean, expand
from recis_lightning.schema.optimizers import (
    OPTIMIZERS,
    Adagrad,
    Adam,
    AdamW,
    Ftrl,
    RowwiseAdagrad,
    Sgd,
    SparseOptimizer,
)
from recis_lightning.schema.schedules import Schedule
from recis_lightning.schema.schema import Schema
from recis_lightning.schema.transforms import (
    TRANSFORMS,
    Bucketize,
    Clip,
    Cross,
    Custom,
    Hash,
    HashKind,
    Log1p,
    Lookup,
    MinMax,
    Modulo,
    MultiHash,
    Overlap,
    Quantile,
    Reduce,
    TimeGap,
    Transform,
    Truncate,
    Vector,
    Vocabulary,
    ZScore,
    is_fitted,
)

__all__ = [
    "Adagrad",
    "Adam",
    "AdamW",
    "Bucketize",
    "Clip",
    "Column",
    "Constant",
    "Cross",
    "Custom",
    "Dtype",
    "FITTED",
    "FIT_FORMAT",
    "Feature",
    "Ftrl",
    "Hash",
    "HashKind",
    "INITIALIZERS",
    "Initializer",
    "KaimingNormal",
    "KaimingUniform",
    "Layout",
    "Log1p",
    "Lookup",
    "Loss",
    "MinMax",
    "Modulo",
    "MultiHash",
    "Normal",
    "OPTIMIZERS",
    "Overlap",
    "Pooling",
    "Pretrained",
    "Quantile",
    "Reduce",
    "RowwiseAdagrad",
    "Schedule",
    "Schema",
    "SchemaError",
    "SequenceGroup",
    "Sgd",
    "SparseOptimizer",
    "TRANSFORMS",
    "Table",
    "Task",
    "TimeGap",
    "Transform",
    "Truncate",
    "TruncatedNormal",
    "Uniform",
    "Value",
    "Vector",
    "Vocabulary",
    "XavierNormal",
    "XavierUniform",
    "ZScore",
    "did_you_mean",
    "expand",
    "find_changed_hashes",
    "find_changed_transforms",
    "find_unfitted",
    "is_fitted",
    "version_of",
]
