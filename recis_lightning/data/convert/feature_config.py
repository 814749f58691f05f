"""From the feature configuration of RecIS (fg.json, mc.json) to a schema, with a list of what a schema does not say.

    converted = convert_fg(json.loads(...), labels=["click"])
    Schema.from_dict(converted.settings)     # a feature for each of fg.json's, by the name RecIS gives it
    converted.notes                          # "feature 'price': trainable: false is left out; ..."

Keys are read as RecIS 1.1 reads them (its `recis.fg`): gen_key_type says what becomes of values (hash, boundary, idle,
multihash, mask), gen_val_type what of the ids (lookup, idle, multihash_lookup). Features of a sequence are named
<sequence>_<feature>. Where mc.json is given, features that none of its blocks names are left out, as RecIS does.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recis_lightning.errors import UserError
from recis_lightning.schema import TRANSFORMS, Schema

HASHES = {"farmhash": "farm", "murmur": "murmur"}
DTYPES = {"string": "string", "double": "float64", "integer": "int64"}
INITIALIZER = {"kind": "uniform", "low": -2e-5, "high": 2e-5}  # what RecIS's FG takes where none is chosen
LEFT_OUT = {
    "emb_device": "tables live where the strategy puts them",
    "admit_hook": "a schema declares no admission here",
    "filter_hook": "a schema declares no eviction here",
    "compress_strategy": "it goes with gen_key_type multihash",
    "mask_out": "it goes with gen_key_type mask",
}
# What these say is carried over, is said elsewhere in the file, or was done before the data were written.
UNDERSTOOD = {
    "feature_name",
    "feature_type",
    "value_type",
    "expression",
    "column_type",
    "shared_name",
    "embedding_dimension",
    "boundaries",
    "hash_bucket_size",
    "hash_type",
    "combiner",
    "gen_key_type",
    "gen_val_type",
    "from_feature",
    "value_dimension",
    "emb_type",
    "trainable",
    "need_prefix",
}


@dataclass
class Converted:
    """A schema's sections as YAML holds them, and a line for each thing that could not be carried over."""

    settings: dict[str, list[dict[str, Any]]]
    notes: list[str] = field(default_factory=list)


class FgError(UserError, ValueError):
    """The configuration can't be read; says which feature and key."""


@dataclass(frozen=True)
class _Entry:
    """One feature of fg.json, its name as RecIS makes it, and how long its sequence may be (0: it is none)."""

    name: str
    settings: Mapping[str, Any]
    length: int


def convert_fg(
    fg: Mapping[str, Any],
    mc: Mapping[str, Sequence[str]] | None = None,
    *,
    labels: Sequence[str] = (),
    already_hashed: bool = False,
) -> Converted:
    """Convert fg.json, of the features that ``mc`` names; ``labels`` become columns and tasks with loss bce.

    ``already_hashed`` is for files that hold hashes in the place of strings. FgError where a key is missing or has a
    value that RecIS does not know.
    """
    conversion = _Conversion(already_hashed)
    if not isinstance(fg.get("features"), list):
        raise FgError("fg.json holds no list of features; give the file that RecIS's build_fg takes")
    for entry in _entries(fg["features"], conversion.notes):
        if mc is None or _is_named(entry, mc):
            conversion.add(entry)
    if mc:
        conversion.notes.append(
            f"the blocks of mc.json ({', '.join(mc)}) are left out; a network takes features by name"
        )
    for label in labels:
        conversion.columns[label] = {"name": label, "dtype": "float64", "layout": "optional_list"}
    tasks = [{"name": label, "label": label, "loss": "bce"} for label in labels]
    conversion.notes.append("lists and doubles are what RecIS writes; correct layout and dtype where your files differ")
    conversion.notes.append("optimizers of tables are not part of fg.json; the schema's default is taken")
    settings = {
        "columns": list(conversion.columns.values()),
        "tables": list(conversion.tables.values()),
        "features": conversion.features,
        "tasks": tasks,
    }
    Schema.from_dict(settings)
    return Converted(settings, conversion.notes)


def _entries(features: Iterable[Mapping[str, Any]], notes: list[str]) -> Iterator[_Entry]:
    for feature in features:
        if "sequence_name" not in feature:
            yield _Entry(_key(feature, "feature_name", "a feature"), feature, 0)
            continue
        sequence = feature["sequence_name"]
        length = int(_key(feature, "sequence_length", f"sequence '{sequence}'"))
        notes.append(f"sequence '{sequence}': an entry holds one value here, where RecIS allows several and pools them")
        for part in _key(feature, "features", f"sequence '{sequence}'"):
            name = _key(part, "feature_name", f"a feature of sequence '{sequence}'")
            yield _Entry(f"{sequence}_{name}", part, length)


def _key(settings: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in settings:
        raise FgError(f"{where} has no '{key}', it has: {', '.join(settings)}")
    return settings[key]


def _is_named(entry: _Entry, mc: Mapping[str, Sequence[str]]) -> bool:
    """Whether a block names the feature: by its name, or a block of its sequence by the last part of it."""
    full, part = entry.name.lower(), str(entry.settings["feature_name"]).lower()
    sequence = full.removesuffix(part).rstrip("_")
    for block, names in mc.items():
        listed = {name.lower() for name in names}
        is_of_sequence = entry.length > 0 and block.lower().split("__")[0] == sequence
        if full in listed or (is_of_sequence and part in listed):
            return True
    return False


class _Conversion:
    """The sections under construction."""

    def __init__(self, already_hashed: bool) -> None:
        self.already_hashed = already_hashed
        self.columns: dict[str, dict[str, Any]] = {}
        self.tables: dict[str, dict[str, Any]] = {}
        self.features: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def note(self, entry: _Entry, what: str) -> None:
        self.notes.append(f"feature '{entry.name}': {what}")

    def add(self, entry: _Entry) -> None:
        """Carry one feature over, or note why not."""
        where = f"feature '{entry.name}'"
        kind, use = (_key(entry.settings, key, where) for key in ("gen_key_type", "gen_val_type"))
        adders = {
            ("hash", "lookup"): self._add_ids,
            ("ev_hash", "lookup"): self._add_ids,
            ("ev_hash_mod", "lookup"): self._add_ids,
            ("idle", "lookup"): self._add_ids,
            ("boundary", "lookup"): self._add_buckets,
            ("multihash", "multihash_lookup"): self._add_multi_hash,
            ("idle", "idle"): self._add_dense,
            ("mask", "idle"): self._leave_out,
        }
        if (kind, use) not in adders:
            raise FgError(f"{where} has gen_key_type '{kind}' and gen_val_type '{use}', which RecIS does not know")
        adders[kind, use](entry)
        self._note_keys(entry)

    def _note_keys(self, entry: _Entry) -> None:
        for key, value in entry.settings.items():
            if key in LEFT_OUT and not (key == "compress_strategy" and entry.settings["gen_key_type"] == "multihash"):
                self.note(entry, f"{key} {value!r} is left out; {LEFT_OUT[key]}")
            elif key not in UNDERSTOOD and key not in LEFT_OUT:
                self.note(entry, f"{key} {value!r} is left out; it is no key of RecIS's feature generator")
        if entry.settings.get("trainable") is False:
            self.note(entry, "trainable: false is left out; rows of every table are trained")
        if entry.settings.get("need_prefix"):
            self.note(entry, "need_prefix is left out; strings are hashed as they are in the files")

    def _column(self, entry: _Entry, dtype: str, layout: str, **options: Any) -> str:
        name = str(entry.settings.get("from_feature", entry.name))
        self.columns.setdefault(name, {"name": name, "dtype": dtype, "layout": layout, **options})
        return name

    def _dtype(self, entry: _Entry) -> str:
        value_type = str(_key(entry.settings, "value_type", f"feature '{entry.name}'")).lower()
        if value_type not in DTYPES:
            raise FgError(f"feature '{entry.name}' has value_type '{value_type}', need one of {', '.join(DTYPES)}")
        return DTYPES[value_type]

    def _id_column(self, entry: _Entry) -> str | None:
        """The column of a feature's ids; None, and a note, where numbers would have to be ids."""
        dtype, kind = self._dtype(entry), entry.settings["gen_key_type"]
        if dtype == "float64":
            self.note(entry, "left out: doubles are looked up as they are; bucketize them")
            return None
        if dtype == "string" and kind == "idle" and not self.already_hashed:
            self.note(entry, "left out: strings are looked up without a hash, which RecIS refuses too")
            return None
        if dtype != "string" or self.already_hashed:
            return self._column(entry, "int64", "list")
        hash_type = "farmhash" if kind.startswith("ev_hash") else entry.settings.get("hash_type", "farmhash")
        if hash_type not in HASHES:
            raise FgError(f"feature '{entry.name}' has hash_type '{hash_type}', need one of {', '.join(HASHES)}")
        if kind.startswith("ev_hash"):
            self.note(entry, "ev_hash drops the highest bit of a hash, and all 64 are kept here: ids are others")
        elif not entry.settings.get("hash_bucket_size"):
            self.note(entry, "all 64 bits of hashes are kept, as without hash_in_io; with it RecIS drops the highest")
        return self._column(entry, "string", "list", hash=HASHES[hash_type])

    def _add_ids(self, entry: _Entry) -> None:
        column = self._id_column(entry)
        if column is not None:
            self._feature(entry, entry.name, column, self._modulo(entry))

    def _modulo(self, entry: _Entry) -> list[dict[str, Any]]:
        bucket = int(entry.settings.get("hash_bucket_size", 0))
        if not bucket or entry.settings["gen_key_type"] in ("idle", "ev_hash"):
            return []
        return [{"kind": "modulo", "divisor": bucket}]

    def _add_buckets(self, entry: _Entry) -> None:
        text = _key(entry.settings, "boundaries", f"feature '{entry.name}'")
        boundaries = [float(number) for number in (text.split(",") if isinstance(text, str) else text)]
        rising = sorted(set(boundaries))
        if rising != boundaries:
            self.note(entry, "its boundaries do not rise; they are sorted here, each kept once, so that ids are others")
        layout, default = ("list", {}) if entry.length else ("optional_list", {"default": 0.0})
        column = self._column(entry, "float64", layout, **default)
        self._feature(entry, entry.name, column, [{"kind": "bucketize", "boundaries": rising}])

    def _add_multi_hash(self, entry: _Entry) -> None:
        parts = str(_key(entry.settings, "compress_strategy", f"feature '{entry.name}'")).split(":")
        if "multi_hash" not in TRANSFORMS or parts[0] != "yx" or len(parts) != 4:
            self.note(entry, f"left out: multi-hash '{':'.join(parts)}' has no transform in this version's schemas")
            return
        buckets, column = [int(bucket) for bucket in parts[1].split(",")], self._id_column(entry)
        if column is None:
            return
        for index in range(len(buckets)):
            shared = self._shared_name(entry)
            table = shared if parts[3] == "1" else f"{shared}-yx{index + 1}"
            hashing = {"kind": "multi_hash", "buckets": buckets, "index": index}
            self._feature(entry, f"{entry.name}_yx_{index}", column, [*self._modulo(entry), hashing], table)
        self.note(entry, f"its {len(buckets)} embeddings are features of their own; {parts[2]} them in the network")

    def _add_dense(self, entry: _Entry) -> None:
        dim = int(entry.settings.get("value_dimension", 1))
        is_vector = dim > 1 and "vector" in TRANSFORMS
        if self._dtype(entry) == "string" or entry.settings.get("feature_type") != "raw_feature" or entry.length:
            self.note(entry, "left out: ids and sequences of numbers go to a network through a table only")
        elif dim > 1 and not is_vector:
            self.note(entry, f"left out: vectors ({dim} numbers a row) have no transform in this version's schemas")
        else:
            layout = {"layout": "list"} if is_vector else {"layout": "optional_list", "default": 0.0}
            column = self._column(entry, self._dtype(entry), **layout)
            transforms = [{"kind": "vector", "dim": dim, "fill": 0.0}] if is_vector else []
            self._append(entry.name, column, transforms)

    def _leave_out(self, entry: _Entry) -> None:
        self.note(entry, "left out: masks are made in the network, of the sequence's lengths")

    def _shared_name(self, entry: _Entry) -> str:
        return str(entry.settings.get("shared_name", entry.settings["feature_name"]))

    def _feature(
        self, entry: _Entry, name: str, column: str, transforms: list[dict[str, Any]], table: str | None = None
    ) -> None:
        """Declare an embedded feature and its table."""
        table = table or self._shared_name(entry)
        self._table(entry, table)
        combiner = entry.settings.get("combiner", "mean")
        if combiner not in ("sum", "mean"):
            self.note(entry, f"combiner '{combiner}' is left out, the mean is taken")
            combiner = "mean"
        if entry.length and "truncate" in TRANSFORMS:
            transforms = [{"kind": "truncate", "length": entry.length, "keep": "first"}, *transforms]
        elif entry.length:
            self.note(entry, f"sequence_length {entry.length} is left out; cut the rows where the files are written")
        self._append(name, column, transforms, table=table, pooling="none" if entry.length else combiner)

    def _append(self, name: str, column: str, transforms: list[dict[str, Any]], **options: Any) -> None:
        feature: dict[str, Any] = {"name": name} | ({} if column == name else {"column": column}) | options
        self.features.append(feature | ({"transforms": transforms} if transforms else {}))

    def _table(self, entry: _Entry, name: str) -> None:
        dim = int(_key(entry.settings, "embedding_dimension", f"feature '{entry.name}'"))
        table = self.tables.setdefault(name, {"name": name, "dim": dim, "initializer": INITIALIZER})
        if table["dim"] != dim:
            raise FgError(
                f"feature '{entry.name}' has embedding_dimension {dim}, its shared_name '{name}' has {table['dim']} in "
                "another feature; give one, or two names"
            )
        kept = entry.settings.get("emb_type", "float")
        if kept != "float":
            self.note(entry, f"emb_type '{kept}' is left out; the table is float32")
