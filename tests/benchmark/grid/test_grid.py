from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mtbi.benchmark.grid import grid as grids
from mtbi.benchmark.grid.grid import Grid, Job
from mtbi.errors import UserError

SMALL = """
recipe: demo
seeds: [1, 2]
evaluate: {test: "{data}/test/shards"}
fields: [train.steps=3]
arms:
  whole: {label: everything, fields: []}
  plain: {label: no text, like: whole, fields: [interleave.share=0]}
  one: {label: one task, like: plain, fields: ["plan.tasks=[repeat]"]}
less_speech: {arms: [one], minutes: [0.5], seeds: [2]}
compare: {arm: whole, with: [plain]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "grid.yaml").write_text(SMALL)
    return tmp_path / "grid.yaml"


def test_jobs_are_whole_seeds_first(path: Path) -> None:
    names = [job.name for job in grids.jobs(grids.load(str(path)))]
    assert names == [
        "whole/seed-1", "plain/seed-1", "one/seed-1", "whole/seed-2", "plain/seed-2", "one/seed-2", "one/seed-2-0.5-minutes",
    ]  # fmt: skip


def test_an_arm_of_one_seed_has_that_seed_on_less_speech_too(path: Path) -> None:
    path.write_text(
        SMALL.replace("like: plain, fields", "like: plain, seeds: [1], fields").replace("seeds: [2]}", "seeds: [1, 2]}")
    )
    names = [job.name for job in grids.jobs(grids.load(str(path)))]
    assert names == ["whole/seed-1", "plain/seed-1", "one/seed-1", "whole/seed-2", "plain/seed-2", "one/seed-1-0.5-minutes"]


def test_an_arm_has_the_fields_of_the_one_it_is_like(path: Path) -> None:
    grid = grids.load(str(path))
    recipe = grids.job_recipe(grid, Job("one", 2, 0.5), Path("out"))
    assert (recipe.interleave.share, recipe.plan.tasks, recipe.train.steps, recipe.seed) == (0, ["repeat"], 3, 2)
    assert recipe.plan.hours == pytest.approx(0.5 / 60)
    assert recipe.run_dir == "out/runs/one/seed-2-0.5-minutes"
    train, evaluate = grids.commands(grid, Job("one", 2), Path("out"), processes=1)
    assert "interleave.share=0" in train
    assert "test=out/data/test/shards" in evaluate


def test_the_shipped_grid_differs_between_arms_in_what_it_says() -> None:
    grid = grids.load("digits")
    base = grids.job_recipe(grid, Job("mtbi", 1), Path("out"))
    for name in grid.arms:
        recipe = grids.job_recipe(grid, Job(name, 1), Path("out"))
        assert recipe.train.steps == (1200 if name.endswith("_long") else 500 if name.endswith("_500") else base.train.steps)
        assert recipe.plan.utterances_per_row * recipe.plan.rows_per_step == 64, "every arm hears as much in a step"
    assert len(grid.seeds) >= 3


def test_only_the_data_that_the_chosen_runs_name_is_made() -> None:
    shipped = grids.load("digits")
    chosen = [job for job in grids.jobs(shipped) if job.arm == "gold_sft"]
    assert grids.data_sets(shipped, chosen) == {"train", "train_gold", "test_known", "test_unseen"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [1, 2]", "sedes: [1, 2]", "unknown key 'sedes'; did you mean 'seeds'"),
        ("recipe: demo\n", "", "a grid needs `recipe`"),
        ("like: whole", "like: hole", "no arm is called 'hole'"),
        ("fields: []", "fields: [], like: one", "in a circle"),
        ("interleave.share=0", "interleave.shares=0", "did you mean interleave.share"),
        ("arm: whole", "arm: all", "no arm is called 'all'"),
        ("seeds: [1, 2]", "seeds: [1, 2]\nworld: letters", "'letters' is unknown"),
    ],
)
def test_wrong_grids_are_explained(path: Path, old: str, new: str, message: str) -> None:
    path.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        grids.load(str(path))
    with pytest.raises(UserError, match="shipped grid"):
        grids.load("letters")


def test_a_run_that_fails_is_named_the_others_go_on_and_nothing_is_done_twice(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, out = grids.load(str(path)), tmp_path / "out"

    def stand_in(grid: Grid, job: Job, out: Path, processes: int) -> list[list[str]]:
        """Commands that take no minutes: `plain` fails in training, the others write a report."""
        folder = out / "runs" / job.name / "evaluation" / "step-00000003"
        train = f"import sys; print('trained'); sys.exit({3 if job.arm == 'plain' else 0})"
        evaluate = f"import pathlib; p = pathlib.Path({str(folder)!r}); p.mkdir(parents=True); (p / 'report.json').touch()"
        return [[sys.executable, "-c", train], [sys.executable, "-c", evaluate]]

    monkeypatch.setattr(grids, "commands", stand_in)
    chosen = [Job("plain", 1), Job("whole", 1)]
    [failure] = grids.run(grid, out, parallel=2, processes=1, only=chosen)
    assert failure.startswith("plain/seed-1: ended with status 3, see")
    assert grids.report_folder(grid, Job("whole", 1), out) is not None
    assert grids.report_folder(grid, Job("plain", 1), out) is None
    grids.run(grid, out, parallel=1, processes=1, only=chosen)
    assert (out / "runs/whole/seed-1/log.txt").read_text().count("trained\n") == 1
    assert (out / "runs/plain/seed-1/log.txt").read_text().count("trained\n") == 2
