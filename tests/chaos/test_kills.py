"""Two kills, one of them at least in a save; `make chaos` does twenty, of processes that start as a user's do."""

from pathlib import Path

import pytest

from tests.chaos.fits import Fit, fork, launch_again, make_data, write_recipe
from tests.chaos.kills import compare, kill_often, let_end

STEPS = 40


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit that nobody disturbed; its data lie beside it."""
    folder = tmp_path_factory.mktemp("chaos")
    make_data(folder / "data", STEPS)
    recipe = write_recipe(folder / "calm", folder / "data")
    let_end(Fit(recipe, fork))
    return recipe.parent


def test_a_fit_that_is_killed_at_any_moment_ends_as_one_that_nobody_disturbed(calm: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, calm.parent / "data")
    kills = kill_often(lambda: Fit(recipe, fork), STEPS, kills=2, saves=1, seed=0)
    assert any(kill.torn for kill in kills)
    assert compare(calm, tmp_path) == []


def test_torchrun_starts_ranks_again_and_they_go_on(calm: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("full"):
        pytest.skip("torchrun starts four processes that import everything: --full")
    kill = {"class_path": "tests.chaos.fits.KillOnce", "init_args": {"batch": 23}}
    fit = Fit(write_recipe(tmp_path, calm.parent / "data", kill), launch_again)
    let_end(fit)
    assert "killed, perhaps for want of memory" in fit.errors()
    assert compare(calm, tmp_path) == []
