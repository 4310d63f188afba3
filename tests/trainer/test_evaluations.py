"""Evaluations while training goes on: what waits for what, several data sets, and the command on a checkpoint."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_runs import TINY, FinishedRun, run_command

from areal_x.api.config import DataConfig, EvaluationConfig, ExperimentConfig, RolloutConfig, TrainConfig
from areal_x.api.errors import ConfigError
from areal_x.trainer.evaluations import Evaluations
from areal_x.trainer.held_out import check_best_metric, load_held_out
from areal_x.trainer.model_places import ModelPlace, locate_model

SLOW = """
import asyncio, pathlib

def steps():
    return pathlib.Path("runs/quickstart/metrics.jsonl").read_text().count("reward/mean")

async def slow(completions, answer, **kwargs):
    with open("scored.txt", "a") as file:
        file.write(f"{answer}\\n")
    if FIRST <= steps() < UNTIL:
        for _ in range(3000):
            if steps() >= UNTIL:
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
    return {"reward": 0.0, "accuracy": 1.0, "half": 0.5}
"""
"""One evaluation, after step FIRST, lasts until training has done step UNTIL, and half a second more."""
SLOW_SET = (
    "path: arithmetic, limit: 3, group_size: 4, kwargs: {num_digits: 1}, reward_fn: slow.py:slow, reward_key: half"
)
QUICK_SET = "path: arithmetic, sampling: {temperature: 0.0, max_new_tokens: 2}"


def config_of(updates: str = "hold", max_staleness: int = 2) -> ExperimentConfig:
    evaluation = EvaluationConfig(every_steps=2, updates=updates)
    rollout = RolloutConfig(max_staleness=max_staleness)
    return ExperimentConfig(name="x", evaluation=evaluation, rollout=rollout, train=TrainConfig(total_steps=6))


class Measured:
    """An evaluation that ends in two parts when it is told to."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.sampled, self.scored = asyncio.Event(), asyncio.Event()

    async def evaluate(self, step: int, version: int, on_sampled: Callable[[], None] | None) -> None:
        self.begun.append((step, version))
        if on_sampled is not None:
            await self.sampled.wait()
            on_sampled()
            await self.scored.wait()


async def test_weights_wait_for_the_episodes_and_the_next_evaluation_for_the_end() -> None:
    measured = Measured()
    evaluations = Evaluations(config_of(), measured.evaluate)
    assert [step for step in range(1, 8) if evaluations.is_due(step)] == [2, 4], "the run itself does the last one"
    async with asyncio.TaskGroup() as group:
        await evaluations.weights_may_change()
        await evaluations.begin(2, 12, group)
        publication = group.create_task(evaluations.weights_may_change())
        following = group.create_task(evaluations.begin(4, 14, group))
        await asyncio.sleep(0.01)
        assert evaluations.hold_weights and not publication.done()
        measured.sampled.set()
        await publication
        assert not evaluations.hold_weights and not following.done() and measured.begun == [(2, 12)]
        measured.scored.set()
        await following
        await asyncio.sleep(0)
        assert measured.begun == [(2, 12), (4, 14)]


async def test_weights_pass_and_engines_that_take_turns_wait() -> None:
    measured = Measured()
    passing = Evaluations(config_of("pass"), measured.evaluate)
    between = Evaluations(config_of(max_staleness=0), measured.evaluate)
    async with asyncio.TaskGroup() as group:
        await passing.begin(2, 3, group)
        await passing.weights_may_change()
        assert not passing.hold_weights
        await between.begin(2, 3, group)
        assert between.between_steps and not between.hold_weights
        measured.sampled.set()
        measured.scored.set()


async def test_an_evaluation_that_fails_ends_the_run_and_holds_nothing_back() -> None:
    async def fail(step: int, version: int, on_sampled: Callable[[], None] | None) -> None:
        raise ValueError("no sample was scored")

    evaluations = Evaluations(config_of(), fail)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            await evaluations.begin(2, 3, group)
            await asyncio.sleep(10)
    assert str(caught.value.exceptions[0]) == "no sample was scored"
    assert not evaluations.hold_weights


def train(folder: Path, first: int, until: int, *changes: str) -> FinishedRun:
    (folder / "slow.py").write_text(SLOW.replace("FIRST", str(first)).replace("UNTIL", str(until)))
    sets = [f"evaluation.sets.{name}={{{of_set}}}" for name, of_set in (("slow", SLOW_SET), ("quick", QUICK_SET))]
    shared = ["evaluation.sampling.temperature=1.0", "reward.timeout_seconds=400"]
    finished = run_command(folder, "train", "--config-name", "quickstart", *TINY, *sets, *shared, *changes)
    assert finished.status == 0, finished.stderr
    return finished


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    changes = ["evaluation.every_steps=2", "train.total_steps=5", "checkpoint.best_metric=eval/slow/accuracy"]
    return train(tmp_path_factory.mktemp("hold"), 2, 4, *changes)


def evaluated(run: FinishedRun) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in run.rows() if "eval/version" in row}


def trained_before(run: FinishedRun, step: int) -> list[int]:
    """Steps after ``step`` that were reported before its evaluation."""
    rows = run.rows()
    place = next(i for i, row in enumerate(rows) if row["step"] == step and "eval/version" in row)
    return [row["step"] for row in rows[:place] if "reward/mean" in row and row["step"] > step]


def test_training_goes_on_while_one_version_is_measured(held: FinishedRun) -> None:
    rows = evaluated(held)
    assert sorted(rows) == [0, 2, 4, 5]
    for step, row in rows.items():
        assert row["eval/version"] == row["eval/slow/oldest_version"] == row["eval/slow/newest_version"] == step
        assert row["eval/slow/one_version_share"] == row["eval/quick/one_version_share"] == 1.0
    # The bound of 2 admits three steps after version 2; the third is reported when the next one begins.
    assert trained_before(held, 2) == [3, 4]
    lags = {name for row in held.rows() for name in row if name.startswith("staleness/lag/")}
    assert lags <= {f"staleness/lag/{lag}" for lag in range(3)}


def test_each_set_has_its_own_items_samples_and_key(held: FinishedRun) -> None:
    for row in evaluated(held).values():
        assert row["eval/slow/num_samples"] + row["eval/slow/num_unscored"] == 3 * 4
        assert (row["eval/slow/reward"], row["eval/slow/accuracy"], row["eval/slow/pass@4"]) == (0.5, 1.0, 1.0)
        assert row["eval/quick/num_samples"] == 16 and row["eval/quick/completion_tokens"] <= 2
        assert "eval/quick/pass@4" not in row and "eval/slow/majority@4" not in row
    assert held.stdout.count("majority@4 of slow cannot be told: its reward does not say which answer it found") == 1
    scored = Counter((held.folder / "scored.txt").read_text().split())
    assert sum(scored.values()) == 4 * 3 * 4
    assert all(count % (4 * 4) == 0 for count in scored.values()), "each item is sampled four times in each evaluation"


def test_new_weights_may_go_live_meanwhile(tmp_path: Path) -> None:
    changes = ["evaluation.updates=pass", "evaluation.every_steps=5", "train.total_steps=10", "observe.report=true"]
    run = train(tmp_path, 5, 9, *changes)
    row = evaluated(run)[5]
    assert trained_before(run, 5)[:4] == [6, 7, 8, 9]
    assert 5 == row["eval/version"] <= row["eval/slow/oldest_version"] <= row["eval/slow/newest_version"]
    assert (run.directory / "report.html").is_file()


def test_a_checkpoint_is_evaluated(held: FinishedRun, tmp_path: Path) -> None:
    assert json.loads((held.directory / "checkpoints" / "metrics.json").read_text())["4"] == 1.0
    changes = ["evaluation.group_size=3", "evaluation.sampling.temperature=1.0", "evaluation.pass_at=[1,2,3]"]
    path = held.directory / "checkpoints" / "step_000005"
    run = run_command(tmp_path, "eval", "--config-name", "quickstart", *TINY, *changes, f"model.path={path}")
    assert run.status == 0, run.stderr
    assert "(step 5, version 5)" in run.stdout and "arithmetic: 16 prompts x 3 samples" in run.stdout
    table = [line.split()[0] for line in run.stdout.splitlines() if line.startswith("  ")]
    assert table[:6] == ["accuracy", "reward", "pass@1", "pass@2", "pass@3", "majority@3"]
    (row,) = run.rows()
    assert (row["step"], row["eval/version"], row["eval/arithmetic/num_samples"]) == (5, 5, 48)
    samples = run.rows("trajectories.jsonl")
    assert len(samples) == 16 and {sample["dataset"] for sample in samples} == {"arithmetic"}


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def checkpoint(folder: Path, step: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"step": step, "facts": {"version": step + 1}}))
    return folder


def test_what_a_run_is_measured_by(tmp_path: Path) -> None:
    run = tmp_path / "run"
    alone = model(tmp_path / "alone")
    assert locate_model(str(alone)) == ModelPlace(alone)
    assert locate_model("organisation/name") is None and locate_model(str(tmp_path)) is None
    old, new = checkpoint(run / "checkpoints" / "step_000004", 4), checkpoint(run / "checkpoints" / "step_000008", 8)
    (run / "checkpoints" / "step_000012.partial").mkdir()
    assert locate_model(str(old)) == ModelPlace(old, True, 4, 5)
    assert locate_model(str(run)) == locate_model(str(run / "checkpoints")) == ModelPlace(new, True, 8, 9)
    # Of one step, what is exported already; of a run that finished, its policy.
    exported = model(run / "exports" / "step_000008")
    assert locate_model(str(run)) == ModelPlace(exported, False, 8, 9)
    policy = model(run / "policy")
    (run / "metrics.jsonl").write_text('{"step": 8}\n{"step": 9}\n{"step": 8}\n')
    assert locate_model(str(run)) == ModelPlace(exported, False, 8, 9), "it did not finish"
    (run / "run.json").write_text('{"status": "finished"}')
    assert locate_model(str(run)) == ModelPlace(policy, False, 9)
    assert str(locate_model(str(run / "exports"))) == f"{exported} (step 8, version 9)"
    (tmp_path / "empty" / "exports").mkdir(parents=True)
    with pytest.raises(ConfigError, match="neither a policy nor exports or checkpoints"):
        locate_model(str(tmp_path / "empty"))


def test_the_best_must_be_of_the_data_set_that_is_measured() -> None:
    config = ExperimentConfig(data=DataConfig(path="arithmetic"))
    config.checkpoint.best_metric = "eval/arithmetic/accuracy"
    check_best_metric(config, load_held_out(config))
    config.checkpoint.best_metric = "eval/gsm8k/accuracy"
    with pytest.raises(ConfigError, match="never measured; name one such as eval/arithmetic/accuracy"):
        check_best_metric(config, load_held_out(config))
