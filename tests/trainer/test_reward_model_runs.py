"""Whole runs with reward models in the loop: the reward rises, parts add up, failures are counted, ranks agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from reward_models_made import make_known_model
from trainer_runs import TINY, FinishedRun, run_command, values

SMALL = [*TINY, "reward_model.chat_template=false"]
HOOKS = """
def not_every_fourth(group):
    return group.group_id % 4 != 0 or "fourth"


def two_kinds(group):
    return bool(group.rewards.std() > 0)


def shifted(samples):
    return [sample.reward for sample in samples], [sample.reward - 5 * sample.parts["seven"] for sample in samples]
"""


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_known_model(tmp_path_factory.mktemp("models") / "seven")


def trained(run: FinishedRun, name: str) -> list[float]:
    return values(run.rows(), name)


def test_the_reward_of_a_reward_model_rises(tmp_path: Path, seven: Path) -> None:
    changes = [f"reward_model.path={seven}", "reward.fn=none", "train.total_steps=25", "train.learning_rate=1e-2"]
    changes += ["rollout.group_size=8", "train.batch_size=64", "rollout.sampling.max_new_tokens=2"]
    finished = run_command(tmp_path, "train", "--config-name", "quickstart", *SMALL, *changes)
    assert finished.status == 0, finished.stderr
    rewards = trained(finished, "reward/mean")
    assert sum(rewards[:3]) / 3 < 0.3 and sum(rewards[-3:]) / 3 > 0.7, rewards
    assert trained(finished, "reward/model") == pytest.approx(rewards, abs=1e-5)
    assert not trained(finished, "reward/rule")
    assert all(0 < seconds < 100 for seconds in trained(finished, "perf/reward_model_seconds"))
    assert len(trained(finished, "perf/reward_model_load_seconds")) == 25
    first, last = (trained(finished, "eval/arithmetic/reward")[place] for place in (0, -1))
    assert last > first


def test_several_models_and_a_rule_add_up_and_hooks_replace_groups(tmp_path: Path, seven: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    make_known_model(tmp_path / "low", "01234")
    models = [f"reward_models.seven={{path: {seven}, weight: 2.0, chat_template: false}}"]
    models += ["reward_models.low={path: low, weight: -0.5, chat_template: false, offload: false}"]
    hooks = ["rollout.early_filter=hooks.py:not_every_fourth", "rollout.filter=hooks.py:two_kinds"]
    hooks += ["reward.post_process=hooks.py:shifted", "reward.eval_reward_key=low", "rollout.max_redraws=3"]
    finished = run_command(tmp_path, "train", "--config-name", "quickstart", *TINY, *models, *hooks)
    assert finished.status == 0, finished.stderr
    rows = [row for row in finished.rows() if "reward/mean" in row]
    assert len(rows) == 3
    for row in rows:
        total = row["reward/rule"] + 2 * row["reward/seven"] - 0.5 * row["reward/low"]
        assert row["reward/mean"] == pytest.approx(total, abs=1e-5)
        processed = row.get("reward/processed_mean", row["reward/mean"])  # Left out where it is the same.
        assert processed == pytest.approx(total - 5 * row["reward/seven"], abs=1e-5)
        assert row["perf/reward_model_seconds"] == pytest.approx(
            row["perf/reward_model_seconds/seven"] + row["perf/reward_model_seconds/low"]
        )
    last = rows[-1]
    assert last["episodes/rejected/fourth"] >= 12 and last["episodes/rejected/filter"] > 0
    missing = trained(finished, "rollout/missing_groups")
    assert last["episodes/trained"] == 96 - 4 * sum(missing)
    # Redraws are of early and late rejections alike.
    assert sum(trained(finished, "rollout/redraws")) >= 6 and 0 < sum(missing) < 24
    held_out = [row for row in finished.rows() if "eval/arithmetic/low" in row][-1]
    assert held_out["eval/arithmetic/reward"] == held_out["eval/arithmetic/low"]
    samples = [row for row in finished.rows("trajectories.jsonl") if row["parts"]]
    assert samples and all({"rule", "seven", "low"} <= set(row["parts"]) for row in samples)
    ends = {row["completion"].endswith("7"): row["parts"]["seven"] for row in samples if row["completion"]}
    assert all(score == pytest.approx(float(is_good), abs=1e-3) for is_good, score in ends.items())


def test_scores_that_fail_are_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    make_known_model(tmp_path / "poisoned", poison="3")
    changes = ["reward_model.path=poisoned", "reward.on_failure=drop", "reward.max_failure_rate=0.9"]
    finished = run_command(tmp_path, "train", "--config-name", "quickstart", *SMALL, *changes)
    assert finished.status == 0, finished.stderr
    last = [row for row in finished.rows() if "reward/mean" in row][-1]
    assert last["episodes/failed/reward_error"] > 0 and last["episodes/scores/error"] > 0
    assert last["episodes/trained"] + last["episodes/failed"] + last["episodes/rejected"] <= last["episodes/submitted"]
    assert "the reward model gave nan, which is no score" in finished.stdout


def test_scores_that_all_fail_stop_the_run_with_the_reason(tmp_path: Path, seven: Path) -> None:
    changes = [f"reward_model.path={seven}", "reward_model.max_length=3"]
    finished = run_command(tmp_path, "train", "--config-name", "quickstart", *SMALL, *changes)
    assert finished.status == 1
    assert "no held-out sample of arithmetic could be scored" in finished.stderr and "it takes 3" in finished.stderr


def test_two_ranks_score_every_sample(tmp_path: Path, seven: Path) -> None:
    changes = [f"reward_model.path={seven}", "train.num_ranks=2", "train.total_steps=1", "evaluation.limit=4"]
    changes += ["observe.trajectories_per_step=-1"]
    finished = run_command(tmp_path, "train", "--config-name", "quickstart", *SMALL, *changes)
    assert finished.status == 0, finished.stderr
    samples = finished.rows("trajectories.jsonl")
    assert len(samples) == 32
    for sample in samples:
        if sample["completion"]:
            expected = float(sample["completion"].endswith("7"))
            assert sample["parts"]["model"] == pytest.approx(expected, abs=1e-3)


def test_what_cannot_score_is_said_before_any_process_starts(tmp_path: Path, seven: Path) -> None:
    changes = [f"reward_model.path={seven}", "reward_model.weight=0.5"]
    refused = run_command(tmp_path, "train", "--config-name", "quickstart", *TINY, *changes)
    assert refused.status == 2 and "set reward_model.chat_template=false" in refused.stderr, refused.stderr
    assert "starting" not in refused.stdout
    assert not list((tmp_path / "runs").iterdir())
