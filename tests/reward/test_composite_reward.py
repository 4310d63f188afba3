"""A weighted sum of rewards, and the shape of a completion."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest

from areal_x.api import group_reward
from areal_x.api.errors import ConfigError
from areal_x.api.reward_api import AsyncRewardWrapper, RewardError, RewardResult, close_default_pool
from areal_x.reward import get_reward_fn

HERE = f"{__file__}:"


def equal(completions: str, answer: str, bonus: float = 0.0) -> float:
    return float(completions == answer) + bonus


def only_of_questions(completions: str, prompt: str) -> float | None:
    return 1.0 if "?" in prompt else None


def a_dict(completions: str) -> dict[str, Any]:
    return {"score": 0.5, "reward": 0.25, "style": 2.0, "note": "ok"}


def with_metadata(completions: str, **columns: Any) -> RewardResult:
    return RewardResult(1.0, parts={"inner": 3.0}, metadata={"note": sorted(columns)})


def of_tokens(completions: str) -> RewardResult:
    return RewardResult(token_rewards=[1.0, 2.0])


def wrong(completions: str) -> Any:
    return {"": True, "nan": float("nan"), "text": "1", "list": [1.0]}[completions]


async def judge(completions: str) -> float:
    return 1.0


class Judge:
    async def __call__(self, completions: str) -> float:
        return 1.0


@group_reward
def ranking(completions: list[str], bonus: float = 0.0) -> list[float]:
    return [bonus for _ in completions]


def test_parts_are_weighed_and_logged() -> None:
    reward = get_reward_fn("composite", dataset="openai/gsm8k", parts={"format": {"weight": 0.2}, "accuracy": 0.8})
    reward = pickle.loads(pickle.dumps(reward))
    right = reward(completions="so\n#### 72", answer="#### 72", prompt="How many?")
    assert right == RewardResult(1.0, {"format": 1.0, "accuracy": 1.0}, metadata=right.metadata)
    assert right.metadata["answer"] == "72"
    assert reward(completions="so\n#### 71", answer="#### 72", prompt="").value == pytest.approx(0.2)
    assert reward(completions="so 72", answer="#### 72", prompt="").parts == {"format": 0.0, "accuracy": 1.0}


def test_only_the_arguments_of_the_parts_are_asked_for() -> None:
    reward = get_reward_fn("composite", parts={"size": {"fn": f"{HERE}equal", "bonus": 1.0}, "format": 0.2})
    parameters = inspect.signature(reward).parameters
    assert set(parameters) == {"completions", "answer", "prompt"}
    assert parameters["answer"].default is inspect.Parameter.empty
    assert reward(completions="a", answer="a", prompt="", prompt_ids=[1]).value == 2.0


def test_a_part_that_does_not_apply_is_left_out() -> None:
    parts = {"asks": {"fn": f"{HERE}only_of_questions", "weight": 2.0}, "same": {"fn": f"{HERE}equal", "weight": 0.5}}
    reward = get_reward_fn("composite", parts=parts)
    assert reward(completions="a", answer="a", prompt="b?") == RewardResult(2.5, {"asks": 1.0, "same": 1.0})
    assert reward(completions="a", answer="a", prompt="b") == RewardResult(0.5, {"same": 1.0})
    alone = get_reward_fn("composite", parts={"asks": {"fn": f"{HERE}only_of_questions"}})
    assert alone(completions="a", prompt="b") is None


def test_dicts_and_results_are_parts_with_parts_of_their_own() -> None:
    parts = {
        "plain": {"fn": f"{HERE}a_dict"},
        "keyed": {"fn": f"{HERE}a_dict", "reward_key": "score", "weight": 10},
        "rich": {"fn": f"{HERE}with_metadata", "weight": 0},
    }
    result = get_reward_fn("composite", parts=parts)(completions="x", prompt="p", level=3)
    assert result.value == pytest.approx(0.25 + 5.0)
    assert result.parts == {
        "plain": 0.25,
        "plain/score": 0.5,
        "plain/style": 2.0,
        "keyed": 0.5,
        "keyed/reward": 0.25,
        "keyed/score": 0.5,
        "keyed/style": 2.0,
        "rich": 1.0,
        "rich/inner": 3.0,
    }
    assert result.metadata == {"note": "ok", "keyed/note": "ok", "rich/note": ["level", "prompt"]}


@pytest.mark.parametrize("completion", ["", "nan", "text", "list"])
def test_what_is_no_reward_names_the_part(completion: str) -> None:
    reward = get_reward_fn("composite", parts={"odd": {"fn": f"{HERE}wrong"}})
    with pytest.raises(RewardError, match=r"reward\.kwargs\.parts\.odd of reward 'composite': "):
        reward(completions=completion)


def test_rewards_of_tokens_and_dicts_without_the_key_are_refused() -> None:
    with pytest.raises(RewardError, match=r"parts\.tokens .*rewards of tokens or steps"):
        get_reward_fn("composite", parts={"tokens": {"fn": f"{HERE}of_tokens"}})(completions="x")
    keyed = get_reward_fn("composite", parts={"d": {"fn": f"{HERE}a_dict", "reward_key": "scores"}})
    with pytest.raises(RewardError, match=r"parts\.d .*without 'scores'"):
        keyed(completions="x")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "needs parts"),
        ("format", "needs parts"),
        ({"accuracy": 1.0}, r"reward\.kwargs\.parts\.accuracy: no reward: set reward\.fn, or data\.name"),
        ({"formatt": 1.0}, "did you mean 'format'"),
        ({"format": "much"}, r"parts\.format\.weight='much' .*not a finite number"),
        ({"format": float("nan")}, "not a finite number"),
        ({"format": float("inf")}, "not a finite number"),
        ({"format": True}, "not a finite number"),
        ({"format": None}, "not a finite number"),
        ({"format": {"weight": 1, "patern": "x"}}, r"parts\.format: .*did you mean 'pattern'"),
        ({"format": {"fn": 3}}, r"parts\.format\.fn=3 is not the name"),
        ({"format": {"reward_key": 3}}, r"parts\.format\.reward_key=3"),
        ({"a": {"fn": f"{HERE}judge"}}, r"parts\.a is asynchronous; .*reward\.rewards"),
        ({"a": {"fn": f"{HERE}Judge"}}, r"parts\.a is asynchronous; .*reward\.rewards"),
        ({"a": {"fn": f"{HERE}ranking"}}, r"parts\.a is a reward of groups; .*reward\.rewards"),
        ({"a": {"fn": f"{HERE}ranking", "bonus": 1.0}}, r"parts\.a is a reward of groups; .*reward\.rewards"),
        ({"a": {"fn": "composite"}}, r"parts\.a: .*needs reward\.kwargs\.parts"),
    ],
)
def test_wrong_parts_are_refused(parts: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_reward_fn("composite", parts=parts)


def test_a_composite_is_a_part() -> None:
    inner = {"fn": "composite", "weight": 2.0, "parts": {"format": {"weight": 0.5, "tags": ["a"]}}}
    reward = get_reward_fn("composite", parts={"shape": inner, "format": 1.0})
    result = reward(completions="<a>x</a>\n#### 1")
    assert result.value == pytest.approx(2.0)
    assert result.parts == {"shape": 0.5, "shape/format": 1.0, "format": 1.0}


async def test_a_worker_scores_all_parts_in_one_call() -> None:
    parts = {"same": {"fn": f"{HERE}equal"}, "rich": {"fn": f"{HERE}with_metadata", "weight": 0.5}}
    wrapper = AsyncRewardWrapper(get_reward_fn("composite", parts=parts), timeout_seconds=30.0)
    outcome = await wrapper.outcome("p", "a", answer="a", level=1)
    await close_default_pool()
    assert (outcome.status, outcome.value) == ("ok", 1.5), outcome.error
    assert outcome.parts == {"same": 1.0, "rich": 1.0, "rich/inner": 3.0}


@pytest.mark.parametrize(
    ("options", "completion", "prompt", "value"),
    [
        ({}, "so\n#### 72", "", 1.0),
        ({}, "72", "", 0.0),
        ({}, "####", "", 0.0),
        ({}, "<think> #### 72", "", 0.0),
        ({}, "#### 72", "Think.\n<think>\n", 0.0),
        ({}, "a</think>#### 72", "Think.\n<think>\n", 1.0),
        ({"answer": "boxed"}, r"\boxed{72}", "", 1.0),
        ({"answer": "boxed"}, r"\boxed{72", "", 0.0),
        ({"tags": ["think", "answer"]}, "<think>a</think> <answer>b</answer>", "", 1.0),
        ({"tags": ["think", "answer"]}, "<answer>b</answer><think>a</think>", "", 0.0),
        ({"tags": ["think"]}, "<think>a</think><think>b</think>", "", 0.0),
        ({"tags": ["think"]}, "a</think>b", "<think>\n", 1.0),
        ({"tags": ["think"]}, "a</think>b", "", 0.0),
        ({"tags": ("think",)}, "", "", 0.0),
        ({"pattern": r"^A.*Z$"}, "A\nZ", "", 1.0),
        ({"pattern": r"^A.*Z$"}, "A\nZ.", "", 0.0),
        ({"pattern": "72", "answer": "marked"}, "72", "", 0.0),
        ({"tags": ["a"], "pattern": "x"}, "<a>y</a>", "", 0.0),
    ],
)
def test_format(options: dict[str, object], completion: str, prompt: str, value: float) -> None:
    reward = pickle.loads(pickle.dumps(get_reward_fn("format", **options)))
    assert reward(completions=completion, prompt=prompt) == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answer": "box"}, "answer='box' of reward 'format' is not one of: null, marked, boxed; did you mean 'boxed'"),
        ({"pattern": "("}, "regular expression"),
        ({"pattern": 3}, "regular expression"),
        ({"tags": "think"}, "is not a list of names"),
        ({"tags": ["<think>"]}, "is not a list of names"),
        ({"tags": [3]}, "is not a list of names"),
        ({"tags": ["a", "a"]}, "names a tag twice"),
    ],
)
def test_format_refuses_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_reward_fn("format", **options)


async def test_an_endless_pattern_of_the_user_ends_at_the_deadline() -> None:
    wrapper = AsyncRewardWrapper(get_reward_fn("format", pattern=r"^(a+)+$"), timeout_seconds=1.0)
    outcome = await wrapper.outcome("p", "a" * 5000 + "!")
    await close_default_pool()
    assert (outcome.status, outcome.value) == ("timeout", None)
