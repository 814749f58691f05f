"""Rows in blocks for tests, as a GPU has them; which ops read them is another matter."""

import pytest

from recis_lightning.tables import places

ON_ALL = ["reference", "cpu", "blocks"]


def choose_implementation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ops by references, by Numba, by references over rows that lie in blocks of 128, or by Triton over these."""
    if name in ("blocks", "triton"):
        monkeypatch.setattr(places, "BLOCK_ROWS", 128)
    if name == "blocks":
        monkeypatch.setattr(places, "lies_in_blocks", lambda device: True)
    if name == "triton":
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("TRITON_OPS", "reference" if name == "blocks" else name)
