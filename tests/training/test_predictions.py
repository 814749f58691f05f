from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from pyarrow import orc

from recis_lightning.data.datamodule import OrcDataModule
from recis_lightning.models import DeepFM
from recis_lightning.schema import Schema
from recis_lightning.training import PredictionWriter, RecModule
from tests.training.helpers import ListLoader, make_batch, make_module, make_trainer

SCHEMA = Schema.from_dict(
    {
        "columns": [
            {"name": "user", "dtype": "int64"},
            {"name": "city", "dtype": "string", "hash": "farm"},
            {"name": "click", "dtype": "float32"},
        ],
        "tables": [{"name": "{user,city}", "dim": 4, "initializer": {"kind": "uniform"}}],
        "features": [{"name": "{user,city}", "table": "{user,city}"}],
        "tasks": [{"name": "ctr", "label": "click"}, {"name": "value", "label": "click", "loss": "mse"}],
    }
)
ROWS = 50


@pytest.fixture
def log(tmp_path):
    users, cities = list(range(ROWS)), [f"city {n % 7}" if n % 5 else None for n in range(ROWS)]
    orc.write_table(pa.table({"user": users, "city": cities, "key": [f"k{n}" for n in users]}), tmp_path / "new.orc")
    return tmp_path / "new.orc"


def make_model():
    torch.manual_seed(0)
    return RecModule(SCHEMA, network=partial(DeepFM, hidden=[4]))


def read(path):
    return pq.read_table(path) if path.suffix == ".parquet" else orc.read_table(path)


@pytest.mark.parametrize("form", ["parquet", "orc"])
def test_scores_are_written_beside_the_kept_columns(log, tmp_path, form):
    module, data = make_model(), OrcDataModule(SCHEMA, predict=log, batch_size=16, keep=["key", "city"])
    writer = PredictionWriter(tmp_path / "out", form)
    make_trainer(tmp_path, writer).predict(module, data, return_predictions=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"part-00000.{form}"]
    found = read(tmp_path / "out" / f"part-00000.{form}")
    assert found.column_names == ["key", "city", "ctr", "value"]
    assert found.select(["key", "city"]).to_pydict() == orc.read_table(log, columns=["key", "city"]).to_pydict()
    expected = make_trainer(tmp_path).predict(module, data)
    for task in ("ctr", "value"):
        assert found[task].to_pylist() == torch.cat([scores[task] for scores in expected]).tolist()
    assert writer.rows == ROWS


def test_rows_are_written_in_groups_of_many_batches(log, tmp_path, monkeypatch):
    monkeypatch.setattr("recis_lightning.training.predictions.ROWS", 20)
    data = OrcDataModule(SCHEMA, predict=log, batch_size=8)
    make_trainer(tmp_path, PredictionWriter(tmp_path / "out", "parquet")).predict(make_model(), data)
    file = pq.ParquetFile(tmp_path / "out" / "part-00000.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(3)] == [24, 24, 2]
    assert file.schema_arrow.names == ["ctr", "value"]  # nothing is kept that was not asked for


def test_predictions_are_not_mixed_with_older_ones(log, tmp_path):
    data = OrcDataModule(SCHEMA, predict=log, batch_size=16)
    make_trainer(tmp_path, PredictionWriter(tmp_path / "out")).predict(make_model(), data)
    with pytest.raises(FileExistsError, match="holds predictions already"):
        make_trainer(tmp_path, PredictionWriter(tmp_path / "out")).predict(make_model(), data)


def test_an_error_on_the_way_leaves_no_file(log, tmp_path, monkeypatch):
    monkeypatch.setattr("recis_lightning.training.predictions.ROWS", 1)
    module, data = make_model(), OrcDataModule(SCHEMA, predict=log, batch_size=16)
    step, calls = module.predict_step, iter(range(9))
    module.predict_step = lambda batch, batch_idx=0: step(batch, batch_idx) if next(calls) < 2 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        make_trainer(tmp_path, PredictionWriter(tmp_path / "out")).predict(module, data)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_task_cannot_have_the_name_of_a_kept_column(log, tmp_path):
    table = orc.read_table(log)
    orc.write_table(table.append_column("ctr", table["user"]), log)
    data = OrcDataModule(SCHEMA, predict=log, batch_size=16, keep=["ctr"])
    with pytest.raises(MisconfigurationException, match="task 'ctr' and a kept column"):
        make_trainer(tmp_path, PredictionWriter(tmp_path / "out")).predict(make_model(), data)


def test_scores_go_to_the_directory_of_the_run_where_no_folder_is_given(tmp_path):
    batches = [make_batch(8), make_batch(0), make_batch(5, seed=3)]
    returned = make_trainer(tmp_path, PredictionWriter()).predict(make_module(), ListLoader(*batches))
    written = orc.read_table(tmp_path / "predictions" / "part-00000.orc")
    assert written["ctr"].to_pylist() == torch.cat([scores["ctr"] for scores in returned]).tolist()


def test_a_trial_run_leaves_nothing_behind(log, tmp_path):
    data = OrcDataModule(SCHEMA, predict=log, batch_size=16)
    make_trainer(tmp_path, PredictionWriter(), fast_dev_run=True).predict(make_model(), data)
    assert [path.name for path in tmp_path.iterdir()] == ["new.orc"]


def test_an_unknown_format_is_refused():
    with pytest.raises(MisconfigurationException, match="format is 'csv'"):
        PredictionWriter("out", "csv")
