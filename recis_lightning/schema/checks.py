"""What cannot be meant: every mistake of a schema, one line each."""

import re
from collections.abc import Iterator, Mapping

from recis_lightning.schema.check_columns import check_column
from recis_lightning.schema.check_features import check_features, check_sequence
from recis_lightning.schema.declarations import Feature, Table, Task
from recis_lightning.schema.flow import carries_floats, find_id_columns
from recis_lightning.schema.kinds import Constant, TruncatedNormal, Uniform
from recis_lightning.schema.names import did_you_mean
from recis_lightning.schema.optimizers import Adagrad
from recis_lightning.schema.optimizers import find_mistakes as find_optimizer_mistakes
from recis_lightning.schema.policies import find_mistakes as find_policy_mistakes
from recis_lightning.schema.reading import SECTIONS
from recis_lightning.schema.sections import Section
from recis_lightning.schema.towers import find_mistakes as find_tower_mistakes


def find_mistakes(sections: Mapping[str, Section]) -> Iterator[str]:
    columns, features, tables, towers, tasks, sequences = (
        [item for item in sections[name].declared.values() if item is not None] for name in SECTIONS
    )
    # Floats read as ids are reported where that is declared, not at every other reader of their column.
    id_columns = find_id_columns(features, tasks) - {column.name for column in columns if carries_floats(column)}
    looked_up, read = {feature.table for feature in features}, {feature.tower for feature in features}
    all_features_read = sections["features"].complete and len(features) == len(sections["features"].declared)
    for column in columns:
        yield from check_column(column, column.name in id_columns)
    yield from check_features(sections, id_columns)
    for feature in features:
        if (table := sections["tables"].declared.get(feature.table)) is not None:
            yield from _check_pooling(feature, table)
    for table in tables:
        if table.name not in looked_up and all_features_read:
            yield f"table '{table.name}' is looked up by no feature; name it in one, or drop it"
        yield from _check_table(table)
    for tower in towers:
        if tower.name not in read and all_features_read:
            yield f"tower '{tower.name}' is named by no feature; name it in one, or drop it"
        yield from find_tower_mistakes(tower)
    for task in tasks:
        yield from _check_task(task, sections["columns"], id_columns)
    taken: dict[str, str] = {}
    for sequence in sequences:
        yield from check_sequence(sequence, sections["columns"], taken)


def _check_table(table: Table) -> Iterator[str]:
    where = f"table '{table.name}'"
    if table.dim < 1:
        yield f"{where}: dim is {table.dim}, need at least 1"
    if re.search(r"[/\\]", table.name) or table.name in (".", ".."):
        yield f"{where}: a name is also a folder in checkpoints; leave out / and \\"
    yield from find_optimizer_mistakes(where, table.optimizer, table.dtype)
    yield from _check_training(where, table)
    initializer = table.initializer
    for option in ("std", "gain"):
        if (value := getattr(initializer, option, 0)) < 0:
            yield f"{where}: initializer {option} is {value}, need at least 0"
    if isinstance(initializer, Uniform | TruncatedNormal) and initializer.low >= initializer.high:
        yield f"{where}: initializer low {initializer.low} is not below high {initializer.high}"
    if table.expected_rows is not None and table.expected_rows < 1:
        yield f"{where}: expected_rows is {table.expected_rows}, need at least 1"
    yield from find_policy_mistakes(where, table.capacity, table.admission, table.eviction)


_HOLDS_INTEGERS = {"int8": 2**7, "int32": 2**31, "int64": 2**63}


def _check_training(where: str, table: Table) -> Iterator[str]:
    """Whether what is said of training goes with whether there is any, and with integers."""
    if not table.trainable:
        contradicting = {"optimizer": table.optimizer != Adagrad(), "grad_reduce": table.grad_reduce != "sum"}
        for option in (name for name, given in contradicting.items() if given):
            yield f"{where}: {option} is given, and trainable is false; drop one of them"
    limit = _HOLDS_INTEGERS.get(table.dtype)
    if limit is None:
        return
    if table.trainable:
        yield f"{where}: rows of {table.dtype} cannot be trained; write trainable: false, or take dtype: float32"
    initializer = table.initializer
    value = initializer.value if isinstance(initializer, Constant) else None
    if value is None or value != int(value) or not -limit <= value < limit:
        found = initializer.kind if value is None else value
        yield f"{where}: initializer is {found}, and rows are {table.dtype}; take a constant that they can hold"


def _check_pooling(feature: Feature, table: Table) -> Iterator[str]:
    if table.dtype in ("int32", "int64") and (feature.pooling in ("mean", "sqrtn") or feature.weights is not None):
        what = "weights" if feature.weights is not None else f"pooling '{feature.pooling}'"
        yield (
            f"feature '{feature.name}' has {what}, and table '{table.name}' holds {table.dtype}, which models get as "
            "they are; pool them by sum or tile, or not at all"
        )


def _check_task(task: Task, columns: Section, id_columns: frozenset[str]) -> Iterator[str]:
    where = f"task '{task.name}'"
    if task.weight < 0:
        yield f"{where}: weight is {task.weight}, need at least 0"
    for option in ("label", "where", "sample_weight"):
        name = getattr(task, option)
        if name is None:
            continue
        if columns.lacks(name):
            hint = did_you_mean(name, columns.declared)
            yield f"{where} takes its {option} from '{name}', which is not declared{hint}"
        column = columns.declared.get(name)
        holds_ids = column is not None and (column.hash or column.tokenizer or name in id_columns)
        if column is not None and (holds_ids or column.has_rows or column.layout == "vector"):
            yield f"{where} takes its {option} from '{name}', which holds ids or lists; need one number a row"
    if task.group is not None:
        yield from _check_group(where, task, columns)


def _check_group(where: str, task: Task, columns: Section) -> Iterator[str]:
    name = str(task.group)
    if columns.lacks(name):
        yield f"{where} is grouped by '{name}', which is not declared{did_you_mean(name, columns.declared)}"
    column = columns.declared.get(name)
    if column is not None and (carries_floats(column) or column.has_rows or column.layout == "vector"):
        yield f"{where} is grouped by '{name}', which holds numbers or lists; need one id a row"
    if task.loss != "bce":
        yield f"{where} is grouped by '{name}', and its loss is {task.loss}; groups are for gauc, of loss bce"
