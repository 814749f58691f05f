"""What a schema declares: columns, sequences, features, tables and tasks."""

from dataclasses import dataclass
from typing import Literal

from recis_lightning.schema.kinds import Constant, Initializer
from recis_lightning.schema.optimizers import Adagrad, SparseOptimizer
from recis_lightning.schema.policies import Admission, Always, Eviction
from recis_lightning.schema.transforms import HashKind, Transform

Dtype = Literal[
    "int8", "int16", "int32", "int64", "float32", "float64", "bool", "string", "timestamp", "decimal", "binary"
]
Layout = Literal["scalar", "list", "optional_list", "nested_list", "vector"]
TimeUnit = Literal["ns", "us", "ms", "s", "minutes", "hours", "days"]
Pooling = Literal["sum", "mean", "sqrtn", "tile", "none"]
TableDtype = Literal["float32", "float64", "bfloat16", "float16", "int8", "int32", "int64"]
Loss = Literal["bce", "mse"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the files, as it is stored there."""

    name: str
    """Its name, or a pattern: `c{1..26}` declares 26 columns."""
    dtype: Dtype
    """The type of its values in the file, checked before training. Batches carry ids as int64, all else as float32."""
    source: str | None = None
    """Where the files have it, where that is not a column of its name: `tags.key`, `tags.value` are the ids and weights
    of id:weight pairs (lists of two-field structs, maps, or strings "7:0.5"), `user.age` is a field of a struct."""
    layout: Layout = "scalar"
    """`list` for list columns; `optional_list` for lists of length 0 or 1, where the empty list is a missing value;
    `nested_list` for lists of lists; `vector` for lists that are all of length `dim`, float32 [B, dim] in a batch."""
    dim: int | None = None
    """How many numbers a vector has."""
    levels: int = 2
    """How deep nested lists are."""
    split: str | None = None
    """Read a string as the list of what stands between these separators: "a|b" is [a, b], "" is []."""
    unit: TimeUnit | None = None
    """What timestamps and dates are counted in, as whole numbers since 1970; needed for dtype timestamp."""
    hash: HashKind | None = None
    """How strings become signed 64-bit ids while reading: farm (FarmHash Fingerprint64), murmur
    (MurmurHash64A, seed 0) or xxh64 (XXH64, seed 0)."""
    parse: Literal["int64", "float32"] | None = None
    """Read strings as numbers; a string that is none is an error that names file and row."""
    tokenizer: str | None = None
    """Read strings as lists of token ids, by a tokenizer.json; a missing or empty string is an empty list."""
    max_length: int | None = None
    """Cut lists to so many entries while reading, nested ones whole; of a tokenizer's ids special ones count."""
    keep: Literal["first", "last"] = "first"
    """Which entries `max_length` keeps."""
    default: float | int | tuple[float, ...] | None = None
    """Stands for a missing value; for an empty vector, one number or `dim` of them. Without one a missing id is no id,
    and a missing dense value, vector or label is an error."""
    dropout: float = 0.0
    """Of ids: in training, the share of rows that go without theirs. What else is known of such a row learns to stand
    in for it, as it must where an id was never trained on. 0.1 to 0.3 suits ids with a text beside them."""

    @property
    def has_rows(self) -> bool:
        """Whether a row may hold any number of values."""
        return self.layout in ("list", "nested_list") or self.dtype == "binary" or self.tokenizer is not None


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One input of the model: a column, its transforms, and for ids the table to look up and how to pool."""

    name: str
    """Its name, or a pattern that runs in step with `column` and `table`."""
    column: str | None = None
    """The column it reads; its own name where none is given."""
    inputs: tuple[str, ...] = ()
    """In the place of a column: the features and columns that its first transform takes, features before columns."""
    table: str | None = None
    """The table its ids are looked up in; none for a dense feature."""
    tower: str | None = None
    """The tower that its token ids go through, in place of a table."""
    pooling: Pooling = "sum"
    """How the embeddings of a row's ids become one: sum, mean, sqrtn (sum / sqrt(count)), tile (those of its first ids
    side by side); none keeps the sequence."""
    tile_length: int | None = None
    """Of pooling tile: of how many ids; zeros stand behind fewer, and no more are looked up."""
    weights: str | None = None
    """A list column of float weights, one for each id; `inputs` for those that come with its inputs."""
    transforms: tuple[Transform, ...] = ()
    """Applied in order: log1p, {kind: clip, low: 0, high: 9}, {kind: modulo, divisor: 1000}, {kind: bucketize, ...}."""
    internal: bool = False
    """Only an input of other features; the model does not get it."""

    @property
    def is_dense(self) -> bool:
        """Whether it is numbers for the model: looked up in no table, and for no tower."""
        return self.table is None and self.tower is None and not self.internal

    @property
    def column_weights(self) -> str | None:
        """The column of its weights, where they come from one."""
        return None if self.inputs else self.weights


@dataclass(frozen=True, kw_only=True)
class SequenceGroup:
    """List columns that belong together, entry by entry: the items, categories and times of a history."""

    name: str
    columns: tuple[str, ...]
    """Equally long in every row; weights are among them. All are cut before any feature reads them."""
    length: int
    """How many entries of a row are kept."""
    keep: Literal["last", "first"] = "last"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Vectors that a table begins with, by id: `{path: vectors.parquet, id: id, vector: vector}`."""

    path: str
    """A safetensors, Parquet or ORC file, or a folder of them; `${NAME}` stands for an environment variable."""
    id: str = "id"
    """The column of ids, integers."""
    vector: str = "vector"
    """The column of vectors: lists of as many numbers as the table's dim."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One hash table of embeddings."""

    name: str
    """Its name, or a pattern."""
    dim: int
    """Width of a row."""
    dtype: TableDtype = "float32"
    """What rows are kept in. Models get float32 of bfloat16, float16 and int8, int64 of int32; updates of bfloat16 and
    float16 are rounded stochastically. Integers are for tables that are loaded and not trained."""
    initializer: Initializer = Constant()
    """The first value of a row, a function of (seed, table, id) alone."""
    optimizer: SparseOptimizer = Adagrad()
    """How touched rows are updated."""
    trainable: bool = True
    """Whether rows are updated. Where not, new ids get rows all the same as `admission` says: read_only for none."""
    grad_reduce: Literal["sum", "mean"] = "sum"
    """The gradient of an id that occurs several times in a batch: of its occurrences the sum, or the mean."""
    capacity: int | None = None
    """How many ids it may hold. At its capacity an eviction that keeps to it makes room; without one, a new id is an
    error."""
    expected_rows: int | None = None
    """How many ids it is expected to hold: for `recis plan`; training takes no notice."""
    admission: Admission = Always()
    """Which ids get a row when training looks them up: always, counter, probability, bloom, read_only."""
    eviction: tuple[Eviction, ...] = ()
    """Which ids it forgets, one policy or several: age, ttl, lru, lfu, l2_norm, score."""
    pretrained: Pretrained | None = None
    """The vectors that it begins with, where no checkpoint is loaded; other ids get the initializer's values."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing the model predicts and is judged by."""

    name: str
    label: str
    """The column of its label."""
    loss: Loss = "bce"
    """bce (binary cross-entropy on logits) or mse."""
    weight: float = 1.0
    """What its loss counts in the sum over tasks."""
    where: str | None = None
    """A column; only its non-zero rows count, as conversions count on clicked rows."""
    sample_weight: str | None = None
    """A column of weights, one a row."""
    group: str | None = None
    """A column of ids, of users or queries say: validation and test also measure gauc, the AUC within their rows."""
