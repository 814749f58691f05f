"""Two kills, one of them at least in a save; `make chaos` does twenty, of processes that start as a user's do."""

from pathlib import Path

from tests.chaos.fits import Fit, fork, make_data, write_recipe
from tests.chaos.kills import compare, kill_often, let_end

STEPS = 40


def test_a_fit_that_is_killed_at_any_moment_ends_as_one_that_nobody_disturbed(tmp_path: Path) -> None:
    make_data(tmp_path / "data", STEPS)
    calm, wild = (write_recipe(tmp_path / name, tmp_path / "data") for name in ("calm", "wild"))
    let_end(Fit(calm, fork))
    kills = kill_often(lambda: Fit(wild, fork), STEPS, kills=2, saves=1, seed=0)
    assert any(kill.torn for kill in kills)
    assert compare(calm.parent, wild.parent) == []
