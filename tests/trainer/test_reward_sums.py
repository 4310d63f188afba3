"""Which samples reward models score, what they read, what the sums are, and whether all of it fits a GPU."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from areal_x.api.config import (
    AlgorithmConfig,
    DataConfig,
    ExperimentConfig,
    RewardConfig,
    RewardModelConfig,
    RewardPartConfig,
)
from areal_x.api.errors import ConfigError, EngineError
from areal_x.api.records import TURNS, Trajectory, TrajectoryGroup, VersionSpan
from areal_x.api.reward_records import RewardError, RewardOutcome
from areal_x.engine.reward_model.conversations import Conversation
from areal_x.engine.reward_model.scoring_batch import PartScores, ScoringBatch
from areal_x.engine.train.advantages import load_advantage
from areal_x.trainer.batch import build_batch, weighted_rewards
from areal_x.trainer.memory_budget import check_reward_model_budget, trainer_bytes
from areal_x.trainer.reward_models import LoopModel, RewardModels
from areal_x.trainer.reward_sums import prompt_of, samples_to_score, sum_outcomes
from areal_x.trainer.step_advantages import estimate_advantages
from areal_x.trainer.trainer_thread import TrainerThread

GIB = 2**30


def sample(outcome: RewardOutcome, completion: str = "five", **fields: Any) -> Trajectory:
    ids, mask = np.arange(3, dtype=np.int32), np.array([False, True, True])
    spans = [VersionSpan(1, 3, 0)]
    return Trajectory(
        ids, mask, np.zeros(3, np.float32), spans, outcome, prompt="two?", completion=completion, **fields
    )


def group_of(*trajectories: Trajectory, item: dict[str, Any] | None = None) -> TrajectoryGroup:
    rewards = np.zeros(len(trajectories), np.float32)
    return TrajectoryGroup(4, list(trajectories), rewards, {"prompt": "2?"} if item is None else item)


def test_only_samples_with_a_rule_reward_are_scored_and_shared_outcomes_once() -> None:
    shared = RewardOutcome("ok", 1.0)
    failed, absent = RewardOutcome("error", error="x"), RewardOutcome("not_applicable")
    group = group_of(
        sample(shared, "a"), sample(shared, "b"), sample(failed), sample(absent), sample(RewardOutcome("ok", 0.0))
    )
    first, second = samples_to_score([group])
    assert first.last.completion == "b" and len(first.trajectories) == 2 and second.rule.value == 0.0
    final = RewardOutcome("ok", 9.0)
    first.set_outcome(final)
    assert group.trajectories[0].outcome is group.trajectories[1].outcome is final


def test_the_prompt_is_the_item_s_own() -> None:
    messages = [{"role": "user", "content": "2?"}]
    (plain,) = samples_to_score([group_of(sample(RewardOutcome("ok", 1.0)))])
    assert prompt_of(plain, DataConfig()) == "2?"
    assert prompt_of(plain, DataConfig(system_prompt="add")) == [{"role": "system", "content": "add"}, *messages]
    (chat,) = samples_to_score([group_of(sample(RewardOutcome("ok", 1.0)), item={"q": messages})])
    assert prompt_of(chat, DataConfig(prompt_key="q", system_prompt="add")) == messages
    assert prompt_of(chat, DataConfig()) == "two?"


def test_the_sum_keeps_every_part() -> None:
    rule = RewardOutcome("ok", 1.0, parts={"form": 0.5}, values={"form": 0.5}, seconds=3.0, token_rewards=[0.0, 1.0])
    scores = {"a": RewardOutcome("ok", 2.0, step_rewards=[1.0, 2.0]), "b": RewardOutcome("ok", -1.0)}
    weights = {"a": 0.5, "b": 3.0}
    total = sum_outcomes(rule, scores, weights)
    assert total.value == 1.0 + 1.0 - 3.0 and total.seconds == 3.0
    assert total.parts == {"form": 0.5, "rule": 1.0, "a": 2.0, "b": -1.0}
    assert total.values == {"form": 0.5, "a": 2.0, "b": -1.0}
    assert total.token_rewards == [0.0, -1.0] and total.step_rewards == [1.0, 2.0]
    assert "rule" not in sum_outcomes(rule, scores, weights, has_rule=False).parts
    assert sum_outcomes(rule, scores, weights, key="b").value == -1.0
    assert sum_outcomes(rule, scores, weights, key="form").value == 1.0
    assert rule.value == 1.0 and rule.parts == {"form": 0.5}


def test_a_failed_score_fails_the_sum() -> None:
    rule = RewardOutcome("ok", 1.0)
    failed = sum_outcomes(rule, {"a": RewardOutcome("error", error="too long")}, {"a": 1.0})
    assert failed.status == "error" and failed.value is None and failed.error == "reward model 'a': too long"
    huge = sum_outcomes(rule, {"a": RewardOutcome("ok", 3e38)}, {"a": 10.0})
    assert huge.status == "error" and huge.error is not None and "no finite number" in huge.error


def test_scores_are_normalized_before_the_sum_like_rule_rewards() -> None:
    outcomes = [RewardOutcome("ok", 0.0, values={"r": r, "m": m}) for r, m in ((0.0, 5.0), (1.0, 3.0))]
    group = group_of(*map(sample, outcomes))
    reward = RewardConfig(rewards={"r": RewardPartConfig()}, aggregation="normalize_then_sum")
    rewards = weighted_rewards([group], reward, {"m": 2.0})
    advantages = estimate_advantages(load_advantage(AlgorithmConfig()), build_batch([group]), rewards)
    assert advantages == pytest.approx([-1.0 + 2.0, 1.0 - 2.0], rel=1e-3)


class StubRenderer:
    """Renders to as many tokens as the text has letters; ``bad`` cannot be rendered."""

    def render_all(self, conversations: list[tuple[Any, Any]]) -> list[Conversation | RewardError]:
        self.seen = conversations[-1][1] if conversations else None
        return [
            RewardError("cannot be rendered")
            if completion == "bad"
            else Conversation(np.zeros(len(str(completion)), np.int32), np.array([0, 1]))
            for _, completion in conversations
        ]


class StubScorers:
    """Scores a place by its conversation's length and its number; remembers what it was asked."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[str] = []
        self.seconds = seconds

    def fetch(self) -> None:
        self.calls.append("fetch")

    def release(self) -> None:
        self.calls.append("release")

    def score(self, batch: ScoringBatch) -> list[PartScores]:
        import time

        time.sleep(self.seconds)
        self.calls.append("score")
        values = np.repeat(batch.lengths, batch.num_scores) + batch.positions.astype(np.float32)
        halves = np.array_split(np.arange(len(values)), 2)
        return [PartScores(half, values[half].astype(np.float32), 0.25, 10) for half in halves]


def models_with(scorers: StubScorers, **changes: Any) -> tuple[RewardModels, StubRenderer]:
    config = ExperimentConfig(name="x", reward_model=RewardModelConfig(path="m", **changes))
    renderer: Any = StubRenderer()
    loaded = LoopModel("model", "reward_model", config.reward_model, None, renderer, scorers)  # type: ignore[arg-type]
    return RewardModels(config, [loaded], TrainerThread(), lambda *_: None), renderer


async def test_scores_come_back_to_their_samples_and_failures_stay_with_theirs() -> None:
    scorers = StubScorers()
    models, _ = models_with(scorers, weight=0.1, step_separator=".", aggregation="sum")
    group = group_of(*(sample(RewardOutcome("ok", 1.0), text) for text in ("abc", "bad", "abcdef")))
    await models.prefetch()
    outcomes = await models.score([group])
    assert [outcome.status for outcome in outcomes] == ["ok", "error", "ok"]
    finals = [trajectory.outcome for trajectory in group.trajectories]
    assert [final.value for final in finals if final is not None] == pytest.approx([1.7, None, 2.3])
    assert finals[0] is not None and finals[0].step_rewards == [3.0, 4.0]
    metrics = models.take_metrics()
    assert metrics["perf/reward_model_tokens"] == 20 and metrics["perf/reward_model_load_seconds"] == 0.25
    assert models.take_metrics() == {} and scorers.calls == ["fetch", "score"]


async def test_weights_leave_also_when_there_is_nothing_to_score() -> None:
    scorers = StubScorers()
    models, _ = models_with(scorers)
    assert await models.score([group_of(sample(RewardOutcome("error", error="x")))]) == []
    (outcome,) = await models.score([group_of(sample(RewardOutcome("ok", 1.0), "bad"))])
    assert outcome.status == "error" and scorers.calls == ["release", "release"]


async def test_turns_are_read_as_messages_where_there_is_a_template() -> None:
    turns = [{"role": "assistant", "content": "4"}]
    for chat_template, expected in ((True, turns), (False, "five")):
        models, renderer = models_with(StubScorers(), chat_template=chat_template)
        await models.score([group_of(sample(RewardOutcome("ok", 1.0), metadata={TURNS: turns}))])
        assert renderer.seen == expected


async def test_a_workflow_without_texts_is_told_so() -> None:
    models, _ = models_with(StubScorers())
    silent = sample(RewardOutcome("ok", 1.0), "")
    silent.prompt = ""
    (outcome,) = await models.score([group_of(silent)])
    assert outcome.error is not None and "pass prompt=... and completion=... to its Trajectory" in outcome.error


async def test_a_model_that_hangs_ends_the_run() -> None:
    models, _ = models_with(StubScorers(seconds=0.6), timeout_seconds=0.1)
    with pytest.raises(EngineError, match=r"reward_model: scoring 1 samples took longer than .*timeout_seconds=0\.1"):
        await asyncio.wait_for(models.score([group_of(sample(RewardOutcome("ok", 1.0)))]), 60)


def test_a_reward_model_must_fit_beside_the_policy() -> None:
    policy = trainer_bytes(10**9, 50_000, 1024)

    def check(size: float, device: float, **changes: Any) -> None:
        model = RewardModelConfig(path="m", **changes)
        check_reward_model_budget({"reward_model": model}, {"reward_model": int(size * GIB)}, policy, int(device * GIB))

    check(10, 24)
    with pytest.raises(ConfigError, match=r"reward_model\.path: its weights take 14\.0 GiB.*keeps 11\.2 GiB.*24\.0"):
        check(14, 24)
    with pytest.raises(ConfigError, match=r"reward_model\.offload=false: a training step needs .*use offload=true"):
        check(10, 24, offload=False)
    check(2, 24, offload=False)
