"""The pure parts of the trainer: batches, clocks, chosen samples, evaluation metrics, directories, warm start."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.config import AlgorithmConfig, ExperimentConfig, RewardConfig, RewardPartConfig
from areal_x.api.errors import ConfigError, DataError
from areal_x.api.records import FloatArray, TrainBatch, Trajectory, TrajectoryGroup, VersionSpan
from areal_x.api.reward_records import RewardOutcome
from areal_x.engine.train.advantages import load_advantage
from areal_x.trainer.batch import build_batch, weighted_rewards
from areal_x.trainer.evaluation_metrics import accuracy, evaluation_metrics
from areal_x.trainer.reward_metrics import reward_metrics
from areal_x.trainer.run_directory import create_run_directory
from areal_x.trainer.sample_records import choose_rows, sample_records
from areal_x.trainer.step_advantages import estimate_advantages
from areal_x.trainer.step_clock import BusyTotals, StepClock
from areal_x.trainer.trainer_thread import TrainerThread
from areal_x.trainer.warm_start import SupervisedExamples, tokenize_examples


def trajectory(length: int, prompt: int = 1, outcome: RewardOutcome | None = None, stop: Any = "stop") -> Trajectory:
    mask = np.arange(length) >= prompt
    logprobs = np.where(mask, -0.5, 0).astype(np.float32)
    span = VersionSpan(prompt, length, 1)
    return Trajectory(np.arange(length, dtype=np.int32), mask, logprobs, [span], outcome, stop_reason=stop)


def group(group_id: int, rewards: list[float], lengths: list[int]) -> TrajectoryGroup:
    return TrajectoryGroup(group_id, [trajectory(n) for n in lengths], np.array(rewards, dtype=np.float32))


def batch_and_advantages(
    groups: list[TrajectoryGroup], algorithm: AlgorithmConfig, reward: RewardConfig
) -> tuple[TrainBatch, FloatArray]:
    batch = build_batch(groups)
    return batch, estimate_advantages(load_advantage(algorithm), batch, weighted_rewards(groups, reward, {}))


def test_advantages_are_by_group_also_where_groups_differ_in_size() -> None:
    groups = [group(7, [0.0, 1.0], [3, 4]), group(3, [1.0, 1.0, 4.0], [2, 5, 3]), group(9, [5.0], [2])]
    batch, advantages = batch_and_advantages(groups, AlgorithmConfig(scale_by="none"), RewardConfig())
    assert advantages == pytest.approx([-0.5, 0.5, -1.0, -1.0, 2.0, 0.0])
    assert batch.lengths.tolist() == [3, 4, 2, 5, 3, 2]
    assert batch.group_ids.tolist() == [7, 7, 3, 3, 3, 9]
    assert batch.advantages.tolist() == np.repeat(advantages, batch.lengths).tolist()
    assert len(batch.input_ids) == len(batch.loss_mask) == len(batch.logprobs) == batch.lengths.sum()


def test_reward_metrics_show_parts_and_uniform_groups() -> None:
    parts = [{"format": 1.0, "accuracy": 0.0}, {"format": 0.0, "accuracy": 1.0}]
    scored = [trajectory(4, outcome=RewardOutcome("ok", value=0.5, parts=part), stop="length") for part in parts]
    groups = [TrajectoryGroup(1, scored, np.array([0.5, 0.5], np.float32)), group(2, [0.0, 1.0], [3, 3])]
    metrics = reward_metrics(groups)
    assert metrics["reward/mean"] == pytest.approx(0.5)
    assert metrics["reward/format"] == metrics["reward/accuracy"] == pytest.approx(0.5)
    assert metrics["rollout/uniform_groups"] == metrics["rollout/truncated_share"] == pytest.approx(0.5)
    assert metrics["rollout/completion_tokens"] == pytest.approx(2.5)


def test_rewards_can_be_normalized_before_they_are_summed() -> None:
    def scored(accuracy: float | None, length: float) -> RewardOutcome:
        values = {"length": length} if accuracy is None else {"accuracy": accuracy, "length": length}
        return RewardOutcome("ok", value=sum(values.values()), values=values)

    outcomes = [scored(1.0, 30.0), scored(0.0, 10.0), scored(None, 20.0)]
    rewards = np.array([outcome.value for outcome in outcomes], np.float32)
    groups = [TrajectoryGroup(5, [trajectory(3, outcome=outcome) for outcome in outcomes], rewards)]
    weights = {"accuracy": RewardPartConfig(weight=2.0), "length": RewardPartConfig(weight=0.5)}
    reward = RewardConfig(rewards=weights, aggregation="normalize_then_sum")
    _, advantages = batch_and_advantages(groups, AlgorithmConfig(), reward)
    spread = 10 / (200 / 3) ** 0.5
    assert advantages == pytest.approx([2 * 1 + 0.5 * spread, -2 - 0.5 * spread, 0.0], rel=1e-4)
    groups[0].rewards = np.array([np.nan, *rewards[1:]], np.float32)
    _, advantages = batch_and_advantages(groups, AlgorithmConfig(), reward)
    assert advantages == pytest.approx([0.0, -0.5, 0.5], rel=1e-4)


def test_metadata_and_processed_rewards_are_metrics() -> None:
    found = [{"tokens": 3, "verdict": "good", "reason": "x"}, {"tokens": 5.0, "verdict": "bad", "text": "y" * 99}]
    samples = [trajectory(4, outcome=RewardOutcome("ok", value=1.0, metadata=each, seconds=0.5)) for each in found]
    raw, processed = np.array([1.0, 1.0], np.float32), np.array([0.0, 3.0], np.float32)
    metrics = reward_metrics([TrajectoryGroup(1, samples, processed, raw_rewards=raw)])
    assert metrics["reward/tokens"] == 4.0 and metrics["perf/reward_seconds_max"] == 0.5
    assert metrics["reward/verdict/good"] == metrics["reward/verdict/bad"] == 0.5
    assert (metrics["reward/mean"], metrics["reward/processed_mean"]) == (1.0, 1.5)
    assert not [name for name in metrics if "reason" in name or "text" in name]


def test_masked_samples_move_neither_advantages_nor_metrics() -> None:
    nan = float("nan")
    with_masked = [group(1, [1.0, 0.0, 1.0, 0.0, nan, nan], [3] * 6), group(2, [1.0, 1.0, nan], [3] * 3)]
    without = [group(1, [1.0, 0.0, 1.0, 0.0], [3] * 4), group(2, [1.0, 1.0], [3] * 2)]
    _, advantages = batch_and_advantages(with_masked, AlgorithmConfig(), RewardConfig())
    _, expected = batch_and_advantages(without, AlgorithmConfig(), RewardConfig())
    assert advantages.tolist() == [*expected[:4], 0.0, 0.0, *expected[4:], 0.0]
    assert reward_metrics(with_masked) == reward_metrics(without)
    records = sample_records(with_masked, advantages, lambda ids: ["t"] * len(ids), step=1, version=1, count=3)
    assert (records[0]["reward"], records[1]["reward"]) == (1.0, 0.0)
    everything = sample_records(with_masked, advantages, lambda ids: ["t"] * len(ids), step=1, version=1, count=-1)
    assert sum(record["reward"] is None for record in everything) == 3


def test_a_step_is_measured_between_its_own_two_moments() -> None:
    clock = StepClock(BusyTotals(10.0, 4.0, 1.0))
    first = clock.finish_step(BusyTotals(12.0, 5.5, 2.0), num_samples=64, wait_seconds=0.25)
    assert first["perf/step_seconds"] == pytest.approx(2.0)
    assert first["perf/samples_per_second"] == pytest.approx(32.0)
    assert first["perf/fraction_of_bound"] == pytest.approx(0.75)
    # An evaluation in the middle of the step: 8 s, in which the engine was busy for 3.5 s.
    clock.exclude(BusyTotals(12.5, 5.75, 2.5), BusyTotals(20.5, 9.25, 2.5))
    second = clock.finish_step(BusyTotals(21.0, 9.5, 3.0), num_samples=64, wait_seconds=0.0)
    assert second["perf/step_seconds"] == pytest.approx(1.0)
    assert second["perf/generation_seconds"] == pytest.approx(0.5)
    assert second["perf/train_seconds"] == pytest.approx(1.0)
    assert second["perf/fraction_of_bound"] == pytest.approx(1.0)


@given(st.lists(st.floats(-1, 1), max_size=40), st.integers(-1, 45), st.integers(0, 5))
def test_chosen_rows_are_distinct_and_hold_the_best_and_the_worst(rewards: list[float], count: int, seed: int) -> None:
    rows = choose_rows(rewards, count, seed)
    assert len(rows) == len(set(rows)) == (len(rewards) if count < 0 else min(count, len(rewards)))
    if count >= 2 and rewards:
        assert max(rewards) in [rewards[row] for row in rows]
        assert min(rewards) in [rewards[row] for row in rows]
    assert rows == choose_rows(rewards, count, seed)


def test_failed_scores_are_counted_and_are_no_wrong_answers() -> None:
    outcomes = [
        RewardOutcome("ok", value=1.0),
        RewardOutcome("ok", value=0.4),
        RewardOutcome("timeout"),
        None,
    ]
    samples = [trajectory(3, outcome=outcome) for outcome in outcomes]
    for number, sample in enumerate(samples):
        sample.episode_id = f"1-{number}"
    groups = [TrajectoryGroup(1, samples, np.zeros(4, np.float32))]
    metrics = evaluation_metrics(groups, "held_out", num_asked=6)
    assert metrics["eval/held_out/reward"] == pytest.approx(0.7)
    assert "eval/held_out/accuracy" not in metrics, "a reward with partial credit is no accuracy"
    assert metrics["eval/held_out/num_samples"] == 2
    assert metrics["eval/held_out/num_unscored"] == 4
    assert evaluation_metrics([], "held_out", 3) == {"eval/held_out/num_samples": 0, "eval/held_out/num_unscored": 3}


def test_the_part_accuracy_decides_before_the_reward() -> None:
    outcome = RewardOutcome("ok", value=0.8, parts={"accuracy": 1.0, "format": 0.0})
    metrics = evaluation_metrics([TrajectoryGroup(1, [trajectory(3, outcome=outcome)], np.ones(1))], "d", 1)
    assert metrics["eval/d/accuracy"] == 1.0
    assert metrics["eval/d/reward"] == pytest.approx(0.8)
    assert metrics["eval/d/format"] == 0.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 0.0], 0.5), ([0.7 + 0.2 + 0.1, 0.0], 0.5), ([0.5, 0.0], None), ([3.0, 0.0], None), ([-1.0, 1.0], None)],
)
def test_a_reward_that_is_one_or_zero_is_an_accuracy(values: list[float], expected: float | None) -> None:
    found = accuracy([RewardOutcome("ok", value=value) for value in values])
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_fixed_names_of_an_evaluation_are_not_a_part_s() -> None:
    outcome = RewardOutcome("ok", value=0.25, parts={"reward": 9.0, "strict": 0.25, "num_samples": 7.0})
    metrics = evaluation_metrics([TrajectoryGroup(1, [trajectory(3, outcome=outcome)], np.ones(1))], "d", 1)
    assert (metrics["eval/d/reward"], metrics["eval/d/strict"], metrics["eval/d/num_samples"]) == (0.25, 0.25, 1)


def test_a_part_named_like_a_statistic_is_logged_apart() -> None:
    outcome = RewardOutcome("ok", value=0.5, parts={"mean": 7.0}, metadata={"std": 3.0})
    metrics = reward_metrics([TrajectoryGroup(1, [trajectory(3, outcome=outcome)] * 2, np.array([0.5, 0.5]))])
    assert (metrics["reward/mean"], metrics["reward/std"]) == (0.5, 0.0)
    assert (metrics["reward/part/mean"], metrics["reward/part/std"]) == (7.0, 3.0)


def test_an_earlier_run_is_kept_unless_overwrite_is_asked_for(tmp_path: Path) -> None:
    config = ExperimentConfig(name="mine", runs_dir=str(tmp_path))
    assert [create_run_directory(config).name for _ in range(3)] == ["mine", "mine-2", "mine-3"]
    (tmp_path / "mine" / "config.yaml").write_text("name: mine\n")
    (tmp_path / "mine" / "metrics.jsonl").write_text("{}\n")
    config.overwrite = True
    assert list(create_run_directory(config).iterdir()) == []


def test_overwrite_never_removes_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis holds no run \(no config.yaml\); choose another name"):
        create_run_directory(ExperimentConfig(name="thesis", runs_dir=str(tmp_path), overwrite=True))
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


class Letters:
    """A tokenizer of single characters."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(sign) for sign in text]


def tokenize(items: list[dict[str, Any]], **options: Any) -> SupervisedExamples:
    settings: dict[str, Any] = {"completion_key": "completion", "max_length": 100, "seed": 1} | options
    encode = lambda item: np.array([ord(sign) for sign in item["prompt"]], dtype=np.int32)  # noqa: E731
    return tokenize_examples(items, tokenizer=Letters(), encode_prompt=encode, **settings)


def test_a_completion_ends_with_eos_and_can_be_its_last_lines() -> None:
    examples = tokenize([{"prompt": "ab", "completion": "x\ny\nz"}], last_lines=2)
    assert examples.completions[0].tolist() == [ord("y"), ord("\n"), ord("z"), 0]
    batch = next(examples.batches(3))
    assert batch.loss_mask.tolist() == [False, False, True, True, True, True] * 3
    assert batch.lengths.tolist() == [6, 6, 6]


def test_each_epoch_holds_each_example_once() -> None:
    examples = tokenize([{"prompt": "p", "completion": chr(97 + i)} for i in range(5)])
    batches = examples.batches(3)
    drawn = [int(ids) for _ in range(5) for ids in next(batches).input_ids[1::3]]
    for epoch in range(3):
        assert sorted(drawn[5 * epoch : 5 * epoch + 5]) == [97, 98, 99, 100, 101]


def test_supervised_data_that_cannot_be_used_is_named() -> None:
    with pytest.raises(DataError, match=r"item 1 has no text in column 'completion' .*it has prompt, answer"):
        tokenize([{"prompt": "a", "completion": "b"}, {"prompt": "a", "answer": "b"}])
    with pytest.raises(DataError, match=r"no supervised example fits into rollout\.max_length=3"):
        tokenize([{"prompt": "long prompt", "completion": "b"}], max_length=3)
    assert (
        len(tokenize([{"prompt": "p" * 9, "completion": "b"}, {"prompt": "p", "completion": "b"}], max_length=5)) == 1
    )


async def test_the_thread_gives_results_and_errors_and_counts_its_seconds() -> None:
    thread = TrainerThread()
    assert await thread.call(max, 2, 3) == 3
    with pytest.raises(ZeroDivisionError):
        await thread.call(lambda: 1 // 0)
    before = thread.busy_seconds(time.monotonic())
    begun, released = threading.Event(), threading.Event()

    def work() -> bool:
        begun.set()
        return released.wait(60)

    call = asyncio.create_task(thread.call(work))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert thread.busy_seconds(time.monotonic()) - before >= 0.04
    released.set()
    assert await call is True
    at_rest = thread.busy_seconds(time.monotonic())
    assert thread.busy_seconds(time.monotonic() + 5) == at_rest
    thread.close()


def test_a_call_that_outlives_the_loop_ends_the_thread_quietly() -> None:
    thread = TrainerThread()
    released = threading.Event()

    async def leave() -> None:
        task = asyncio.create_task(thread.call(released.wait, 10))
        await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(leave())
    released.set()
    thread._thread.join(timeout=60)
    assert not thread._thread.is_alive()
