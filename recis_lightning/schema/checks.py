"""What cannot be meant: every mistake of a schema, one line each."""

import re
from collections.abc import Iterator, Mapping

from recis_lightning.schema.check_columns import check_column
from recis_lightning.schema.check_features import check_features, check_sequence
from recis_lightning.schema.declarations import Table, Task
from recis_lightning.schema.flow import carries_floats, find_id_columns
from recis_lightning.schema.kinds import TruncatedNormal, Uniform
from recis_lightning.schema.names import did_you_mean
from recis_lightning.schema.policies import find_mistakes as find_policy_mistakes
from recis_lightning.schema.reading import SECTIONS
from recis_lightning.schema.sections import Section
from recis_lightning.schema.towers import find_mistakes as find_tower_mistakes


def find_mistakes(sections: Mapping[str, Section]) -> Iterator[str]:
    columns, features, tables, towers, tasks, sequences = (
        [item for item in sections[name].declared.values() if item is not None] for name in SECTIONS
    )
    # Floats read as ids are reported where that is declared, not at every other reader of their column.
    id_columns = find_id_columns(features) - {column.name for column in columns if carries_floats(column)}
    looked_up, read = {feature.table for feature in features}, {feature.tower for feature in features}
    all_features_read = sections["features"].complete and len(features) == len(sections["features"].declared)
    for column in columns:
        yield from check_column(column, column.name in id_columns)
    yield from check_features(sections, id_columns)
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


_NOT_NEGATIVE = ("lr", "eps", "initial_accumulator_value", "weight_decay", "std")


def _check_table(table: Table) -> Iterator[str]:
    where = f"table '{table.name}'"
    if table.dim < 1:
        yield f"{where}: dim is {table.dim}, need at least 1"
    if re.search(r"[/\\]", table.name) or table.name in (".", ".."):
        yield f"{where}: a name is also a folder in checkpoints; leave out / and \\"
    for part in ("optimizer", "initializer"):
        declaration = getattr(table, part)
        for option in _NOT_NEGATIVE:
            if getattr(declaration, option, 0) < 0:
                yield f"{where}: {part} {option} is {getattr(declaration, option)}, need at least 0"
    betas = getattr(table.optimizer, "betas", ())
    if not all(0 <= beta < 1 for beta in betas):
        yield f"{where}: optimizer betas are {betas}, need 0 <= beta < 1"
    initializer = table.initializer
    if isinstance(initializer, Uniform | TruncatedNormal) and initializer.low >= initializer.high:
        yield f"{where}: initializer low {initializer.low} is not below high {initializer.high}"
    yield from find_policy_mistakes(where, table.capacity, table.admission, table.eviction)


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
