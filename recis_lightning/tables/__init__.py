"""Hash tables of embeddings: id index, row store, groups of tables."""

from recis_lightning.tables.group import TableGroup, build_groups
from recis_lightning.tables.pending import PendingGrad
from recis_lightning.tables.rows import TableFullError
from recis_lightning.tables.table import DynamicTable, TableSlice
from recis_lightning.tables.transfer import export_table, import_table
from triton_ops.index import virtual_shard

__all__ = [
    "DynamicTable",
    "PendingGrad",
    "TableFullError",
    "TableGroup",
    "TableSlice",
    "build_groups",
    "export_table",
    "import_table",
    "virtual_shard",
]
