"""Runs whose filter rejects groups and whose redraws are bounded: each step trains on what it has."""

from __future__ import annotations

from pathlib import Path

from trainer_runs import TINY, run_command, values

CODE = '''\
def alternating(completions, prompt, **data):
    """Half of the prompts have answers that are all alike."""
    if sum(map(ord, prompt)) % 2:
        return [1.0] * len(completions)
    return [float(index % 2) for index, _ in enumerate(completions)]


def later(group, first=0):
    return group.group_id >= first or "too_early"
'''
REWARD = ["reward.fn=own.py:alternating", "reward.group=true"]


def test_a_synchronous_step_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(CODE)
    changes = ["rollout.max_staleness=0", "rollout.max_redraws=2", "rollout.filter=own.py:later"]
    run = run_command(
        tmp_path, "train", "--config-name", "quickstart", *TINY, *REWARD, *changes, "rollout.filter_kwargs.first=12"
    )
    assert run.status == 0, run.stderr
    rows = [row for row in run.rows() if "rollout/redraws" in row]
    # Eight places and two redraws: ids 0 to 9, then 10 to 19 of which two are too early, then 20 to 27.
    assert [row["rollout/missing_groups"] for row in rows] == [8, 0, 0]
    assert [row["rollout/redraws"] for row in rows] == [2, 2, 0]
    assert [row["train/skipped_steps"] for row in rows] == [1, 0, 0]
    assert [row["version"] for row in rows] == [row["step"] - 1 + rows[0]["version"] for row in rows]
    assert rows[0]["rollout/rejected_share/too_early"] == 1 and "train/loss" not in rows[0]
    assert rows[1]["rollout/rejected_share"] == rows[1]["rollout/rejected_share/too_early"] == 2 / 10
    assert rows[-1]["episodes/rejected/too_early"] == 12 * 4 and rows[-1]["episodes/trained"] == 16 * 4
    assert "step 1: nothing to train; after 2 redraws the rest stays rejected (too_early 100%)" in run.stdout


def test_an_asynchronous_step_in_parts_trains_on_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(CODE)
    changes = ["rollout.filter=nonzero_variance", "rollout.max_redraws=0", "train.part_samples=8"]
    changes += ["train.total_steps=6", "rollout.filter_kwargs.key=reward"]
    run = run_command(tmp_path, "train", "--config-name", "quickstart", *TINY, *REWARD, *changes)
    assert run.status == 0, run.stderr
    missing, shares = (values(run.rows(), f"rollout/{name}") for name in ("missing_groups", "rejected_share"))
    assert len(missing) == 6 and 0 < sum(missing) < 6 * 8 and max(shares) > 0
    last = run.rows()[-2] if "rollout/redraws" not in run.rows()[-1] else run.rows()[-1]
    assert last["episodes/trained"] == 4 * (6 * 8 - sum(missing)) and last["rollout/redraws"] == 0
    assert last["episodes/rejected/same_reward"] >= 4 * sum(missing)
    assert "of 8 groups; after 0 redraws the rest stays rejected (same_reward" in run.stdout
    ended = sum(last[f"episodes/{end}"] for end in ("trained", "rejected", "failed", "cancelled"))
    assert last["episodes/submitted"] - ended <= 3 * 8 * 4, "more is in flight than the bound allows"
