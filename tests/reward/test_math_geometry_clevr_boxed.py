"""geometry3k, clevr_count_70k, and the ``boxed_`` prefix."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from areal_x.api.errors import ConfigError
from areal_x.api.reward_api import AsyncRewardWrapper
from areal_x.process_pool import ProcessPool
from areal_x.reward import get_reward_fn
from areal_x.reward.boxed import AsyncBoxedReward, BoxedReward, boxed


@pytest.mark.parametrize(
    ("completion", "gold", "value"),
    [
        (r"[2\sqrt{221}]", r"2 \sqrt { 221 }", 1.0),
        ("[221]", r"2 \sqrt { 221 }", 0.0),
        (r"\boxed{\frac{3}{4}}", r"\frac{3}{4}", 1.0),
        ("[0.75]", r"\frac{3}{4}", 1.0),
        ("[4]", r"\frac{3}{4}", 0.0),
        ("[1] then [5]", "5", 1.0),
        (r"[1] then \boxed{5}", "5", 1.0),
        (r"\boxed{1} then [5]", "5", 1.0),
        (r"\boxed{5} then [unit]", "unit", 1.0),
        ("so it is 5.", "5", 1.0),
        (r"\boxed{5} in 2 steps", "5", 1.0),
        ("<think> [5]", "5", 0.0),
        ("nothing", "5", 0.0),
    ],
)
def test_geometry3k(completion: str, gold: str, value: float) -> None:
    assert get_reward_fn("geometry3k")(completions=completion, answer=gold).value == value


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (r"<think>a</think> \boxed{5}", 1.0),
        (r"<think>a</think> \boxed{4}", 0.1),
        (r"\boxed{5}", 0.9),
        ("[4]", 0.0),
    ],
)
def test_geometry3k_with_a_share_for_the_format(completion: str, value: float) -> None:
    result = get_reward_fn("geometry3k", format_weight=0.1)(completions=completion, answer="5")
    assert result.value == pytest.approx(value)
    assert set(result.parts) == {"accuracy", "format"}


@pytest.mark.parametrize(
    ("completion", "gold", "value"),
    [
        ("[3]", "3", 1.0),
        ("[3.0]", 3, 1.0),
        ("[ 3 ]", "3", 1.0),
        ("[1] or [3]", "[3]", 1.0),
        ("[3] or [1]", "3", 0.0),
        (r"\boxed{3}", "3", 1.0),
        (r"[1] so \boxed{[3]}", "3", 1.0),
        (r"\boxed{1} so [3]", "3", 1.0),
        ("3", "3", 0.0),
        ("<think>[3]", "3", 0.0),
        ("[3]</think>[4]", "4", 1.0),
    ],
)
def test_clevr(completion: str, gold: object, value: float) -> None:
    assert get_reward_fn("clevr_count_70k")(completions=completion, answer=gold).value == value


def test_clevr_needs_a_number() -> None:
    with pytest.raises(ValueError, match="is not a number"):
        get_reward_fn("clevr_count_70k")(completions="[3]", answer="three")


BOXED = [
    ("boxed_math", r"70 \boxed{72} 71", "72", 1.0),
    ("boxed_math", "72", "72", 0.0),
    ("boxed_deepscaler", r"\boxed{72}", "72", 1.0),
    ("boxed_dapo", r"\boxed{72} Answer: 71", "72", 1.0),
    ("boxed_gsm8k", r"\boxed{72} #### 71", "72", 1.0),
    ("boxed_f1", r"words \boxed{the cat}", "cat", 1.0),
    ("boxed_f1", "<think> \\boxed{cat}", "cat", 0.0),
    ("boxed_f1", "<think>a</think> \\boxed{cat}", "cat", 1.0),
    ("BOXED_F1", r"\boxed{dog} \boxed{cat}", "cat", 1.0),
]


@pytest.mark.parametrize(("name", "completion", "gold", "value"), BOXED)
def test_boxed_rewards_see_the_box_only(name: str, completion: str, gold: str, value: float) -> None:
    reward = get_reward_fn(name)
    assert reward(prompt="q", completions=completion, answer=gold).value == value
    again = pickle.loads(pickle.dumps(reward))
    assert again(prompt="q<think>\n", completions="</think>" + completion, answer=gold).value == value


def needs_completions(completions: str, prompt_ids: list[int]) -> float:
    return float(len(completions) + len(prompt_ids))


async def awaited(completions: str) -> float:
    return float(completions)


def no_completion(prompt: str) -> float:
    return 0.0


def of_groups(completions: list[str]) -> list[float]:
    return [0.0]


of_groups.is_group_reward = True  # type: ignore[attr-defined]


class WithLife:
    """A reward with resources."""

    def __call__(self, completions: str) -> float:
        return 1.0

    def metrics(self) -> dict[str, float]:
        return {"calls": 2.0}


async def test_boxed_wraps_any_reward_of_single_samples() -> None:
    plain, later = boxed(needs_completions), boxed(awaited)
    assert type(plain) is BoxedReward and type(later) is AsyncBoxedReward
    assert plain(completions=r"\boxed{ab}", prompt="p", prompt_ids=[1]) == 3.0
    async with ProcessPool(1) as pool:
        outcome = await AsyncRewardWrapper(plain, pool=pool).outcome("p", r"\boxed{ab}", [1, 2], [3])
        assert outcome.value == 4.0
    assert (await AsyncRewardWrapper(later).outcome("p", r"a \boxed{7}")).value == 7.0
    assert boxed(WithLife()).metrics() == {"calls": 2.0}
    assert not hasattr(boxed(WithLife()), "start")


@pytest.mark.parametrize(("inner", "message"), [(no_completion, "has none"), (of_groups, "scores whole groups")])
def test_boxed_says_what_it_cannot_wrap(inner: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        boxed(inner)


def test_boxed_options_go_to_the_inner_reward() -> None:
    assert get_reward_fn("boxed_math", answer_key="gold")(completions=r"\boxed{2}", gold="2").value == 1.0
    with pytest.raises(ConfigError, match="is unknown"):
        get_reward_fn("boxed_nothing")
    with pytest.raises(ConfigError, match="not an option"):
        get_reward_fn("boxed_f1", colour="red")
