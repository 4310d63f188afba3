"""Rewards of whole groups, several rewards as one, keys, and objects with a life cycle."""

from __future__ import annotations

import asyncio

import group_samples as samples
import numpy as np
import pytest

from areal_x.api import (
    AsyncRewardWrapper,
    ConfigError,
    DataError,
    ModelResponse,
    RewardOutcome,
    RewardResult,
    RewardSample,
    RewardSet,
    WeightedReward,
    score_response,
)
from areal_x.process_pool import ProcessPool


@pytest.fixture
async def pool():
    async with ProcessPool(2) as pool:
        yield pool


def group(*completions: str, **data) -> list[RewardSample]:
    return [RewardSample("p", text, [1], list(range(len(text))), data) for text in completions]


async def test_a_group_reward_gets_the_whole_group_by_name(pool):
    wrapper = AsyncRewardWrapper(samples.longest, pool=pool)
    assert wrapper.is_group
    outcomes = await wrapper.group_outcomes(group("a", "abc", "ab", answer="x"))
    assert [outcome.value for outcome in outcomes] == [0.0, 1.0, 0.0]
    seen = await AsyncRewardWrapper(samples.everything, pool=pool).group_outcomes(group("a", "bb", answer="x"))
    assert seen[0].metadata == {"seen": "answer,completion_ids,completions,prompt,prompt_ids,samples"}
    assert [outcome.parts for outcome in seen] == [{"ids": 1.0}, {"ids": 2.0}]
    assert await wrapper.group_outcomes([]) == []


async def test_an_async_group_reward_and_the_mark_in_yaml(pool):
    wrapper = AsyncRewardWrapper(samples.unmarked, group=True)
    assert [outcome.value for outcome in await wrapper.group_outcomes(group("a", "bb"))] == [1.0, 2.0]
    assert not AsyncRewardWrapper(samples.unmarked).is_group
    with pytest.raises(TypeError, match="whole groups"):
        await wrapper("p", "c")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "returned 1 results for a group of 2"),
        ([1.0, 2.0, 3.0], "returned 3 results for a group of 2"),
        (1.0, "returned a float for a group of 2"),
        (None, "returned a NoneType"),
        ("ab", "returned a str"),
    ],
)
async def test_a_wrong_count_is_an_error_that_says_so(pool, value, message):
    outcomes = await AsyncRewardWrapper(samples.returns, pool=pool).group_outcomes(group("a", "b", value=value))
    assert [outcome.status for outcome in outcomes] == ["error", "error"]
    assert message in outcomes[0].error and "return one for each" in outcomes[0].error


async def test_each_result_of_a_group_is_checked_by_itself(pool):
    value = [np.float32(0.5), None, float("nan"), {"reward": 2, "part": 1}, RewardResult(token_rewards=[1.0, 2.0])]
    outcomes = await AsyncRewardWrapper(samples.returns, pool=pool).group_outcomes(
        group("a", "b", "c", "d", "ee", value=value)
    )
    assert [outcome.status for outcome in outcomes] == ["ok", "not_applicable", "error", "ok", "ok"]
    assert [outcome.value for outcome in outcomes] == [0.5, None, None, 2.0, 3.0]
    array = await AsyncRewardWrapper(samples.array, pool=pool).group_outcomes(group("a", "b"))
    assert [outcome.value for outcome in array] == [0.0, 1.0]


async def test_a_failure_of_the_call_is_everybodys(pool):
    wrapper = AsyncRewardWrapper(samples.hangs, 0.2, pool=pool)
    outcomes = await wrapper.group_outcomes(group("a", "b"))
    assert [outcome.status for outcome in outcomes] == ["timeout", "timeout"]


async def test_a_column_called_samples_collides_with_group_rewards_only(pool):
    with pytest.raises(DataError, match="'samples'"):
        AsyncRewardWrapper(samples.longest).check_columns({"samples", "answer"})
    AsyncRewardWrapper(samples.exact).check_columns({"samples", "answer"})


async def test_token_rewards_add_up_to_the_value(pool):
    wrapper = AsyncRewardWrapper(samples.tokens, pool=pool)
    outcome = await wrapper.outcome("", "ab", [1], [1, 2], value=None)
    assert (outcome.value, outcome.token_rewards) == (0.5, [0.25, 0.25])
    assert (await wrapper.outcome("", "ab", [1], [1, 2], value=0.5)).value == 0.5
    disagreeing = await wrapper.outcome("", "ab", [1], [1, 2], value=0.75)
    assert disagreeing.status == "error" and "add up to 0.5" in disagreeing.error


async def test_another_key_takes_a_part(pool):
    wrapper = AsyncRewardWrapper(samples.with_parts, pool=pool)
    await wrapper.start()
    assert (await wrapper.outcome("", "c")).value == 1.0
    assert (await wrapper.with_key("strict").outcome("", "c")).value == 0.25
    assert "no part 'absent'; its parts: 'strict'" in (await wrapper.with_key("absent").outcome("", "c")).error


def members(pool, **weights):
    functions = {"exact": samples.exact, "longest": samples.longest, "length": samples.length, "none": samples.nothing}
    return [WeightedReward(name, AsyncRewardWrapper(functions[name], pool=pool), w) for name, w in weights.items()]


async def test_several_rewards_are_a_weighted_sum_with_parts(pool):
    rewards = RewardSet(members(pool, exact=2.0, length=0.5, none=100.0))
    outcome = await rewards.outcome("p", "abc", [1], [1, 2, 3], answer="abc")
    assert (outcome.status, outcome.value) == ("ok", 3.5)
    assert outcome.values == {"exact": 1.0, "length": 3.0}
    assert outcome.parts == {"exact": 1.0, "length": 3.0, "length/words": 1.0}
    assert (await rewards.with_key("length/words").outcome("p", "abc", answer="x")).value == 1.0
    wrong = await rewards.with_key("nope").outcome("p", "abc", answer="x")
    assert wrong.status == "error" and "there are: exact, length, length/words" in wrong.error
    assert (await RewardSet(members(pool, none=1.0)).outcome("p", "c")).status == "not_applicable"


async def test_groups_and_single_samples_mix(pool):
    rewards = RewardSet(members(pool, exact=1.0, longest=0.5))
    assert rewards.is_group
    pending = [await rewards.outcome("p", text, [1], [1], answer="ab") for text in ("ab", "abc", "a")]
    assert [outcome.status for outcome in pending] == ["pending"] * 3
    finished = await rewards.finish_group(pending)
    assert [outcome.value for outcome in finished] == [1.0, 0.5, 0.0]
    assert [outcome.values for outcome in finished][1] == {"exact": 0.0, "longest": 1.0}


async def test_a_failed_reward_fails_the_sum_and_is_named(pool):
    broken = WeightedReward("mine", AsyncRewardWrapper(samples.raises, pool=pool))
    outcome = await RewardSet([*members(pool, exact=1.0), broken]).outcome("p", "c", answer="c")
    assert (outcome.status, outcome.value) == ("error", None)
    assert outcome.error.startswith("reward 'mine': ") and "KeyError" in outcome.error


async def test_per_token_rewards_keep_their_tokens_in_a_sum(pool):
    tokens = WeightedReward("tokens", AsyncRewardWrapper(samples.tokens, pool=pool), 2.0)
    outcome = await RewardSet([tokens, *members(pool, length=1.0)]).outcome("p", "ab", [1], [1, 2], value=None)
    assert outcome.value == pytest.approx(3.0)
    assert outcome.token_rewards == pytest.approx([0.5, 2.5])


def test_a_set_names_what_is_wrong_with_it(pool):
    wrapper = AsyncRewardWrapper(samples.exact)
    with pytest.raises(ConfigError, match="two rewards are called 'a'"):
        RewardSet([WeightedReward("a", wrapper), WeightedReward("a", wrapper)])
    with pytest.raises(ConfigError, match=r"reward\.rewards\.a\.weight=nan"):
        RewardSet([WeightedReward("a", wrapper, float("nan"))])
    with pytest.raises(ConfigError, match="at least one"):
        RewardSet([])


async def test_an_object_is_started_once_and_closed():
    judge = samples.Judge()
    wrapper = AsyncRewardWrapper(judge)
    assert [outcome.value for outcome in await asyncio.gather(*(wrapper.outcome("p", "c") for _ in range(5)))] == [
        1.0
    ] * 5
    assert judge.events == ["start"]
    assert wrapper.metrics() == {"calls": 5.0}
    assert RewardSet([WeightedReward("judge", wrapper)]).metrics() == {"judge/calls": 5.0}
    await wrapper.close()
    await wrapper.close()
    assert judge.events == ["start", "close"]
    with pytest.raises(DataError, match="rubric"):
        wrapper.check_columns({"answer"})


async def test_an_object_may_own_its_deadline():
    wrapper = AsyncRewardWrapper(samples.Patient(), timeout_seconds=0.01)
    assert (await wrapper.outcome("p", "c", seconds=0.05, limit=60.0)).status == "ok"
    late = await wrapper.outcome("p", "c", seconds=60.0, limit=0.1)
    assert late.status == "timeout" and "took more than 0.1 s" in late.error


@pytest.mark.parametrize(
    ("stop_reason", "score_truncated", "status"),
    [
        ("stop", True, "ok"),
        ("length", True, "ok"),
        ("length", False, "not_applicable"),
        ("abort", True, "not_applicable"),
    ],
)
async def test_what_is_scored_depends_on_how_it_ended(pool, stop_reason, score_truncated, status):
    response = ModelResponse("r", np.array([1]), np.array([2]), np.zeros(1, np.float32), [], stop_reason)
    wrapper = AsyncRewardWrapper(samples.exact, pool=pool, score_truncated=score_truncated)
    outcome = await score_response(wrapper, response, prompt="p", completion="c", columns={"answer": "c"})
    assert outcome.status == status
    waiting: RewardOutcome = await score_response(
        AsyncRewardWrapper(samples.longest, pool=pool), response, prompt="p", completion="c", columns={}
    )
    if stop_reason != "abort":
        assert waiting.pending.sample.truncated == (stop_reason == "length")


async def test_a_reward_that_asks_is_told_what_was_cut_off(pool):
    response = ModelResponse("r", np.array([1]), np.array([2]), np.zeros(1, np.float32), [], "length")
    wrapper = AsyncRewardWrapper(samples.half_when_cut, pool=pool)
    for reward in (wrapper, RewardSet([WeightedReward("a", wrapper), *members(pool, exact=0.0)])):
        outcome = await score_response(reward, response, prompt="p", completion="c", columns={"answer": "c"})
        assert outcome.value == 0.5
    response.stop_reason = "stop"
    assert (await score_response(wrapper, response, prompt="p", completion="c", columns={})).value == 1.0
    wrapper.check_columns({"answer"})
    with pytest.raises(DataError, match="'truncated'"):
        wrapper.check_columns({"answer", "truncated"})


async def test_a_group_is_told_of_each_sample_that_was_cut_off(pool):
    wrapper = AsyncRewardWrapper(samples.cut_off, pool=pool)
    group_samples = group("a", "b", answer="x")
    group_samples[1].truncated = True
    assert [outcome.value for outcome in await wrapper.group_outcomes(group_samples)] == [0.0, 1.0]
    rewards = RewardSet([WeightedReward("cut", wrapper), WeightedReward("all", AsyncRewardWrapper(samples.everything))])
    pending = [await rewards.outcome("p", text, truncated=text == "b") for text in ("a", "b")]
    finished = await rewards.finish_group(pending)
    assert [outcome.values["cut"] for outcome in finished] == [0.0, 1.0]
    assert "truncated" not in finished[0].metadata["all/seen"]


async def test_an_async_reward_cannot_change_the_data():
    tests = ["1", "2", "3"]
    wrapper = AsyncRewardWrapper(samples.takes_a_test)
    assert [(await wrapper.outcome("p", "c", tests=tests)).value for _ in range(3)] == [3.0, 3.0, 3.0]
    many = AsyncRewardWrapper(samples.takes_a_test_of_each)
    for _ in range(2):
        outcomes = await many.group_outcomes(group("a", "b", tests=tests))
        assert [outcome.value for outcome in outcomes] == [3.0, 3.0]
    assert tests == ["1", "2", "3"]


async def test_a_coroutine_that_outlives_or_cancels_itself_is_no_result():
    late = await AsyncRewardWrapper(samples.swallows_its_deadline, timeout_seconds=0.05).outcome("p", "c")
    assert late.status == "timeout"
    cancelled = await AsyncRewardWrapper(samples.cancels_itself).outcome("p", "c")
    assert cancelled.status == "error" and "CancelledError" in cancelled.error


def test_an_object_is_started_again_on_another_loop():
    judge = samples.Judge()
    wrapper = AsyncRewardWrapper(judge)

    async def score_and_close(close):
        copy = wrapper.with_key("reward")
        assert (await copy.outcome("p", "c")).value == (await wrapper.outcome("p", "c")).value == 1.0
        if close:
            await copy.close()
            await wrapper.close()

    asyncio.run(score_and_close(False))
    judge.events.clear()
    asyncio.run(score_and_close(True))
    assert judge.events == ["start", "close"]


def test_a_plain_object_cannot_keep_something_for_a_run():
    with pytest.raises(ConfigError, match="write 'async def __call__'"):
        AsyncRewardWrapper(samples.Counter())


async def test_what_float32_cannot_hold_is_no_reward(pool):
    wrapper = AsyncRewardWrapper(samples.returns_one, pool=pool)
    huge = await wrapper.outcome("", "", value={"reward": 0.0, "parsed": 10**400})
    assert (huge.status, huge.parts, huge.metadata) == ("ok", {}, {"parsed": 10**400})
    for value in (1e39, 10**400, {"reward": 1e300}):
        assert (await wrapper.outcome("", "", value=value)).status == "error"
    large = [WeightedReward(name, wrapper, 3.0) for name in ("a", "b")]
    outcome = await RewardSet(large).outcome("", "", value=1e38)
    assert outcome.status == "error" and "no finite number" in outcome.error


def test_a_column_called_self_is_refused():
    with pytest.raises(DataError, match="'self'"):
        AsyncRewardWrapper(samples.exact).check_columns({"self", "answer"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (RewardResult(1.0, None), "RewardResult.parts is a NoneType, expected a dict"),
        (RewardResult(1.0, metadata="ab"), "RewardResult.metadata is a str, expected a dict"),
        ({"reward": 1.0, "ratio": float("nan")}, "under 'ratio' nan, expected a finite number"),
    ],
)
async def test_what_stands_beside_the_reward_is_checked_too(pool, value, message):
    outcome = await AsyncRewardWrapper(samples.returns_one, pool=pool).outcome("", "", value=value)
    assert outcome.status == "error" and message in outcome.error


async def test_true_and_false_in_a_dict_are_parts(pool):
    value = {"reward": 0.5, "accuracy": True, "cut": np.bool_(False)}
    wrapper = AsyncRewardWrapper(samples.returns_one, pool=pool)
    assert (await wrapper.outcome("", "", value=value)).parts == {"accuracy": 1.0, "cut": 0.0}
    keyed = await AsyncRewardWrapper(samples.returns_one, pool=pool, reward_key="score").outcome(
        "", "", value={"reward": 1.0, "score": 0.25}
    )
    assert (keyed.value, keyed.parts) == (0.25, {"reward": 1.0, "score": 0.25})


def test_arguments_that_cannot_be_meant_are_refused():
    with pytest.raises(ConfigError, match=r"takes \*arguments"):
        AsyncRewardWrapper(samples.star)
    with pytest.raises(DataError, match="comes as 'completions'"):
        AsyncRewardWrapper(samples.singular).check_columns({"completion", "answer"})
