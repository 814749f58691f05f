from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import orc

from recis_lightning.ragged import Batch
from recis_lightning.training import RecModule
from recis_lightning.training.predictions import PredictionWriter
from tests.training.helpers import ListLoader, SmallNet, make_batch, make_module, make_schema, make_trainer


def test_scores_are_written_in_the_order_of_the_rows(tmp_path: Path) -> None:
    batches = [make_batch(8), make_batch(0), make_batch(5, seed=3)]
    module = make_module()
    returned = make_trainer(tmp_path, PredictionWriter()).predict(module, ListLoader(*batches))
    written = orc.read_table(tmp_path / "predictions" / "part-00000.orc")
    assert returned is not None
    expected = torch.cat([scores["ctr"] for scores in returned])  # type: ignore[call-overload]
    np.testing.assert_array_equal(written["ctr"].to_numpy(), expected.numpy())


def test_predictions_are_not_mixed_with_earlier_ones(tmp_path: Path) -> None:
    module = make_module()
    make_trainer(tmp_path, PredictionWriter()).predict(module, ListLoader(make_batch(8)))
    with pytest.raises(FileExistsError, match="holds ORC files already"):
        make_trainer(tmp_path, PredictionWriter()).predict(module, ListLoader(make_batch(8)))


def test_predictions_that_fail_midway_leave_nothing(tmp_path: Path) -> None:
    class Failing(RecModule):
        def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
            if batch_idx == 1:
                raise RuntimeError("as it happens")
            return super().predict_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="as it happens"):
        make_trainer(tmp_path, PredictionWriter()).predict(
            Failing(make_schema(), SmallNet), ListLoader(make_batch(8), make_batch(8))
        )
    assert list((tmp_path / "predictions").iterdir()) == []
