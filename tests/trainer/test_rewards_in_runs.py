"""Rewards of every kind in a whole run: several with weights, of groups, asynchronous, processed; and in evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trainer_runs import TINY, FinishedRun, run_command, values

from areal_x.api.config import RewardConfig, RewardPartConfig
from areal_x.api.errors import ConfigError
from areal_x.reward.configured import reward_function

REWARDS = '''
from areal_x.api import RewardResult, group_reward


@group_reward
def shortest(samples, answer):
    best = min(len(sample.completion) for sample in samples)
    return [RewardResult(float(len(sample.completion) == best), metadata={"kind": "plain"}) for sample in samples]


class Judge:
    """Counts what a judge would."""

    def __init__(self):
        self.calls = 0

    async def start(self):
        self.calls = 1000

    async def __call__(self, completions, answer):
        self.calls += 1
        return {"reward": 0.5, "length": len(completions)}

    def metrics(self):
        return {"calls": float(self.calls)}


judge = Judge()


def double(samples):
    raw = [sample.reward for sample in samples]
    return raw, [2 * reward for reward in raw]
'''
CONFIG = """
defaults: [quickstart, _self_]
name: several
reward:
  rewards:
    accuracy: {weight: 1.0}
    short: {fn: "mine.py:shortest", weight: 0.25}
    style: {fn: "mine.py:judge", weight: 2.0}
  post_process: mine.py:double
  clip: [-9, 9]
  eval_reward_key: short
"""


def write_files(folder: Path) -> None:
    (folder / "mine.py").write_text(REWARDS)
    (folder / "several.yaml").write_text(CONFIG)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("several")
    write_files(folder)
    finished = run_command(folder, "train", "several.yaml", *TINY)
    assert finished.status == 0, finished.stderr
    return finished


def trained(run: FinishedRun) -> list[dict[str, Any]]:
    return [row for row in run.rows() if "reward/mean" in row]


def test_each_reward_is_logged_and_the_sum_is_processed(run: FinishedRun) -> None:
    assert len(trained(run)) == 3
    for row in trained(run):
        total = row["reward/accuracy"] + 0.25 * row["reward/short"] + 2.0 * row["reward/style"]
        assert row["reward/mean"] == pytest.approx(total, rel=1e-5)
        assert row["reward/processed_mean"] == pytest.approx(2 * total, rel=1e-5)
        assert row["reward/style"] == 0.5 and row["reward/style/length"] > 0
        assert row["reward/short/kind/plain"] == 1.0
        assert row.get("outcome/failure_rate", 0.0) == 0.0


def test_the_totals_of_a_reward_s_own_are_logged(run: FinishedRun) -> None:
    totals = values(run.rows(), "scoring/style/calls")
    assert totals == sorted(totals) and totals[0] >= 1000 + 32


def test_evaluation_scores_groups_and_has_its_own_key(run: FinishedRun) -> None:
    last = [row for row in run.rows() if "eval/arithmetic/reward" in row][-1]
    assert last["eval/arithmetic/reward"] == last["eval/arithmetic/short"] == 1.0
    assert last["eval/arithmetic/num_unscored"] == 0


def test_a_trained_policy_is_evaluated_with_the_same_rewards(run: FinishedRun, tmp_path: Path) -> None:
    write_files(tmp_path)
    changes = [*TINY, f"model.path={run.directory / 'policy'}"]
    evaluated = run_command(tmp_path, "eval", "several.yaml", *changes)
    assert evaluated.status == 0, evaluated.stderr
    table = dict(line.split() for line in evaluated.stdout.splitlines() if line.startswith("  "))
    assert "accuracy" in table and table["short"] == "1.0000"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["reward.post_process=mine.py:halve"], "mine.py has no 'halve'"),
        (["reward.rewards.short.kwargs.answer=3", "reward.rewards.x.fn=formt"], "did you mean 'format'?"),
        (["workflow.path=areal_x.workflow.multi_turn:MultiTurnWorkflow"], "scores whole groups"),
    ],
)
def test_what_cannot_run_is_said_before_the_run(tmp_path: Path, changes: list[str], expected: str) -> None:
    write_files(tmp_path)
    refused = run_command(tmp_path, "train", "several.yaml", *TINY, *changes)
    assert refused.status == 2 and expected in refused.stderr, refused.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_each_reward_is_normalized_before_the_sum_over_whole_batches(tmp_path: Path) -> None:
    write_files(tmp_path)
    text = CONFIG.replace("  post_process: mine.py:double\n  clip: [-9, 9]\n", "  aggregation: normalize_then_sum\n")
    (tmp_path / "several.yaml").write_text(text)
    changes = ["algorithm.baseline=leave_one_out", "algorithm.scale_by=batch_std", "reward.score_truncated=false"]
    finished = run_command(tmp_path, "train", "several.yaml", *TINY, *changes)
    assert finished.status == 0, finished.stderr
    assert len(trained(finished)) == 3
    assert all(row["rollout/truncated_share"] == 0 for row in trained(finished))


def test_reward_group_reaches_the_functions_of_other_libraries(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "def rank(args, samples):\n    return [float(i) for i, _ in enumerate(samples)]\n"
    )
    name = f"slime:{tmp_path / 'theirs.py'}:rank"
    assert reward_function("", RewardConfig(fn=name, group=True), None).is_group_reward
    assert reward_function("rank", RewardPartConfig(fn=name, group=True), None).is_group_reward


def test_a_run_whose_rewards_all_fail_stops_with_the_first_failure(run: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def broken(completions):\n    raise ValueError('on purpose')\n")
    for command in ("eval", "train"):
        changes = [*TINY, f"model.path={run.directory / 'policy'}", "reward.fn=mine.py:broken", f"name={command}"]
        finished = run_command(tmp_path, command, "--config-name", "quickstart", *changes)
        assert finished.status == 1
        assert "no held-out sample of arithmetic could be scored" in finished.stderr and "on purpose" in finished.stderr


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (RewardPartConfig(fn="nosuch_reward"), r"reward\.rewards\.style\.fn='nosuch_reward' is unknown"),
        (RewardPartConfig(fn="length", kwargs={"max_tokens": 3}), r"reward\.rewards\.style\.kwargs\.max_tokens"),
    ],
)
def test_errors_name_the_key_that_was_written(part: RewardPartConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reward_function("style", part, None)
