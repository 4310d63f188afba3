"""Evaluations that cannot work are refused before anything starts; a set takes from the run what it does not say."""

from __future__ import annotations

import pytest

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError
from areal_x.api.evaluation_checks import filled_set, majorities_at, passes_at
from areal_x.launch.checked import checked_config
from areal_x.launch.compose import ConfigSource


def checked(*changes: str) -> ExperimentConfig:
    return checked_config("train", ConfigSource.named("quickstart"), list(changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["evaluation.updates=wait"], "evaluation.updates=wait"),
        (["evaluation.pass_at=[1,4]"], "evaluation.pass_at=4: is more than the samples of a prompt"),
        (["evaluation.majority_at=[0]"], "evaluation.majority_at=0"),
        (["evaluation.group_size=4", "evaluation.pass_at=[4]"], "evaluation.sampling.temperature above 0"),
        (["evaluation.sets={a/b: {path: arithmetic}}"], "must hold no /"),
        (["evaluation.sets.a.limit=3"], "evaluation.sets.a.path is not set"),
        (["evaluation.sets.a.path=missing.jsonl"], "evaluation.sets.a.path=missing.jsonl: no such file"),
        (["evaluation.sets.a={path: arithmetic, group_size: 0}"], "evaluation.sets.a.group_size=0"),
        (["evaluation.sets.a={path: arithmetic, reward_fn: gsm9k}"], "evaluation.sets.a.reward_fn='gsm9k'"),
        (["evaluation.sets.a={path: arithmetic, reward_fn: mine.py:f}"], "no such file: mine.py"),
        (["evaluation.sets.a.path=arithmetic", "data.eval_path=arithmetic"], "evaluation.sets is set, too"),
        (
            [
                "evaluation.sets.a={path: arithmetic, group_size: 2}",
                "evaluation.group_size=8",
                "evaluation.pass_at=[8]",
            ],
            "evaluation.sets.a.group_size=2",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(*changes)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_set_takes_what_it_does_not_say() -> None:
    config = checked(
        "evaluation.group_size=4",
        "evaluation.sampling.temperature=0.5",
        "reward.eval_reward_key=accuracy",
        "evaluation.sets.same={path: arithmetic, kwargs: {num_digits: 1}}",
        "evaluation.sets.own={path: arithmetic, limit: 3, group_size: 1, sampling: {top_p: 0.5}, reward_key: x}",
    )
    same, own = (filled_set(config, given) for given in config.evaluation.sets.values())
    assert (same.limit, same.group_size, same.prompt_key, same.reward_key) == (512, 4, "prompt", "accuracy")
    assert same.sampling == config.evaluation.sampling and same.kwargs["num_digits"] == 1 and same.kwargs["reverse"]
    assert (own.limit, own.group_size, own.reward_key) == (3, 1, "x")
    assert own.sampling is not None and (own.sampling.top_p, own.sampling.temperature) == (0.5, 1.0)
    assert (passes_at(config, 4), majorities_at(config, 4)) == ([1, 4], [4])
    assert (passes_at(config, 1), majorities_at(config, 1), majorities_at(config, 2)) == ([1], [], [])
