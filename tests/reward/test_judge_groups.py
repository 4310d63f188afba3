"""What a judge asks: groups, votes, structured output, and nothing twice."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from http_faults import FaultServer, chat_reply
from judge_checks import KEY, answer_number, check_accounts, gather, make

from areal_x.api import AsyncRewardWrapper, ConfigError, DataError, RewardSample
from areal_x.reward.judge import JudgeReplyError, JudgeRequestError


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


async def test_structured_output_is_asked_for_and_given_up_once_refused() -> None:
    def answer(body: Any) -> Any:
        return chat_reply('{"reason": "so", "score": 5}')

    async with FaultServer(answer) as server:
        judge = make(server, parser="json")
        result = await judge(prompt="q", completions="a")
        assert result.value == 0.5 and result.metadata == {"judge_reason": "so"}
        schema = server.seen[0].body["response_format"]["json_schema"]
        assert schema["strict"] and schema["schema"]["required"] == ["reason", "score"]
        await judge.close()
    async with FaultServer(answer, ["400|response_format is not supported"]) as server:
        judge = make(server, parser="json")
        for completion in ("a", "b", "c"):
            assert (await judge(prompt="q", completions=completion)).value == 0.5
        assert ["response_format" in seen.body for seen in server.seen] == [True, False, False, False]
        await judge.close()
        assert check_accounts(judge)["fault/format_refused"] == 1
    async with FaultServer(answer, ["400|too long", "400|too long"]) as server:
        judge = make(server, parser="json")
        with pytest.raises(JudgeRequestError, match="too long"):
            await judge(prompt="q", completions="a")
        assert (await judge(prompt="q", completions="b")).value == 0.5
        assert "response_format" in server.seen[2].body
        await judge.close()
        check_accounts(judge)


async def has_seen(server: FaultServer, number: int) -> None:
    async with asyncio.timeout(30.0):
        while len(server.seen) < number:
            await asyncio.sleep(0.005)


async def test_equal_questions_share_a_call_and_one_waiter_may_leave() -> None:
    release = asyncio.Event()
    async with FaultServer(answer_number, release=release) as server:
        judge = make(server)
        tasks = [asyncio.create_task(judge(prompt="q", completions="same")) for _ in range(6)]
        await has_seen(server, 1)
        tasks[0].cancel()
        release.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [result.value for result in results[1:]] == [0.7] * 5 and tasks[0].cancelled()
        found = check_accounts(judge)
        assert (len(server.seen), found["shared"], found["cancelled"], found["answered"]) == (1, 5, 1, 5)
        release.clear()
        lonely = asyncio.create_task(judge(prompt="q", completions="other"))
        await has_seen(server, 2)
        lonely.cancel()
        await asyncio.wait([lonely])
        await judge.close()
        assert check_accounts(judge)["requests_cancelled"] == 1


async def test_replies_are_kept_on_disk_by_all_that_matters(tmp_path: Path) -> None:
    cache = str(tmp_path / "judge.sqlite")
    async with FaultServer(answer_number) as server:
        for options, num_requests in (
            ({}, 2), ({}, 0), ({"rubric": "new"}, 2), ({"sampling": {"temperature": 1}}, 2), ({"scale": [0, 20]}, 2),
            ({"votes": 2, "sampling": {"temperature": 0.0, "max_tokens": 1024}}, 2), ({"normalize": False}, 0),
        ):  # fmt: skip
            before = len(server.seen)
            judge = make(server, cache=cache, **options)
            results = await gather(judge, 2)
            assert not [result for result in results if isinstance(result, Exception)]
            await judge.close()
            assert len(server.seen) - before == num_requests, options
            assert check_accounts(judge).get("cache_hits", 0) == 2 * options.get("votes", 1) - num_requests  # type: ignore[call-overload]


async def test_a_reply_without_a_verdict_is_not_kept(tmp_path: Path) -> None:
    texts = iter(["no idea", "Score: 3"])
    async with FaultServer(lambda body: chat_reply(next(texts))) as server:
        judge = make(server, cache=str(tmp_path / "c"))
        with pytest.raises(JudgeReplyError):
            await judge(prompt="q", completions="a")
        assert (await judge(prompt="q", completions="a")).value == 0.3
        await judge.close()
        assert len(server.seen) == 2


async def test_votes() -> None:
    texts = ["Score: 2", "Score: 2", "Score: 8", "what", "Score: 4"]
    for options, expected in (
        ({"votes": 3}, 0.4), ({"votes": 3, "aggregate": "majority"}, 0.2), ({"votes": 3, "aggregate": "median"}, 0.2),
        ({"votes": 5, "min_votes": 4}, 0.4), ({"votes": 5}, JudgeReplyError),
    ):  # fmt: skip
        replies = iter(texts)
        async with FaultServer(lambda body, replies=replies: chat_reply(next(replies))) as server:
            judge = make(server, max_concurrent=1, **options)  # type: ignore[arg-type]
            (result,) = await gather(judge, 1)
            await judge.close()
            assert len(server.seen) == options["votes"] and server.seen[0].body["temperature"] == 0.7
            if isinstance(expected, float):
                assert result.value == pytest.approx(expected) and "agreement" in result.parts
            else:
                assert isinstance(result, expected) and "4 of 5 votes came, 5 are needed" in str(result)


def longer_wins(body: Any) -> Any:
    """A judge that prefers the longer answer, and of equally long ones the first shown."""
    text = body["messages"][1]["content"]
    first, second = (text.split(f"<answer_{x}>\n")[1].split(f"\n</answer_{x}>")[0] for x in "AB")
    return chat_reply(json.dumps({"reason": "", "winner": "A" if len(first) >= len(second) else "B"}))


async def test_pairwise_counts_wins_in_both_orders() -> None:
    async with FaultServer(longer_wins) as server:
        judge = make(server, mode="pairwise", parser="json")
        assert judge.is_group_reward
        wrapper = AsyncRewardWrapper(judge)
        texts = ["four", "seven77", "1", "4444", "four"]
        outcomes = await wrapper.group_outcomes([RewardSample("q", text) for text in texts])
        assert [outcome.value for outcome in outcomes] == pytest.approx([0.5, 1.0, 0.0, 0.5, 0.5])
        assert outcomes[1].parts == {"order_agreement": 1.0} and outcomes[3].parts["order_agreement"] == 0.5
        (alone,) = await wrapper.group_outcomes([RewardSample("q", "alone")])
        assert alone.status == "not_applicable"
        await judge.close()
        # Five texts, ten pairs, of which one holds equal texts; pairs with a text that is there twice are asked once.
        assert len(server.seen) == len({json.dumps(seen.body) for seen in server.seen}) == 12
        check_accounts(judge)


async def test_pairwise_against_a_reference() -> None:
    async with FaultServer(longer_wins) as server:
        judge = make(server, mode="pairwise", parser="json", reference="gold")
        wrapper = AsyncRewardWrapper(judge)
        wrapper.check_columns(["prompt", "gold"], "prompt")
        with pytest.raises(DataError, match="gold"):
            wrapper.check_columns(["prompt"], "prompt")
        samples = [RewardSample("q", text, data={"gold": "golden"}) for text in ("a", "golden", "much longer")]
        assert [outcome.value for outcome in await wrapper.group_outcomes(samples)] == [0.0, 0.5, 1.0]
        assert len(server.seen) == 4
        (bad,) = await wrapper.group_outcomes([RewardSample("q", "a", data={"gold": None})])
        assert bad.status == "error" and "'gold' is no text" in str(bad.error)
        await judge.close()


def rank_by_length(body: Any) -> Any:
    text = body["messages"][1]["content"]
    shown = [part.split("\n</answer")[0].split(">\n", 1)[1] for part in text.split("<answer_")[1:]]
    best_first = sorted(range(len(shown)), key=lambda k: -len(shown[k]))
    return chat_reply(json.dumps({"ranking": [k + 1 for k in best_first]}))


async def test_ranking_shows_each_text_once_in_changing_orders() -> None:
    async with FaultServer(rank_by_length) as server:
        judge = make(server, mode="ranking", parser="json", votes=4)
        wrapper = AsyncRewardWrapper(judge)
        texts = ["aaa", "a", "aa", "aaaa", "aa", "aaaaa"]
        outcomes = await wrapper.group_outcomes([RewardSample("q", text) for text in texts])
        assert [outcome.value for outcome in outcomes] == [0.5, 0.0, 0.25, 0.75, 0.25, 1.0]
        assert len({seen.body["messages"][1]["content"] for seen in server.seen}) > 1 and len(server.seen) == 4
        same = await wrapper.group_outcomes([RewardSample("q", "b")] * 3)
        assert [outcome.value for outcome in same] == [0.5] * 3 and len(server.seen) == 4
        await judge.close()
    async with FaultServer(lambda body: chat_reply('{"ranking": [1, 1, 2]}')) as server:
        judge = make(server, mode="ranking", parser="json")
        outcomes = await AsyncRewardWrapper(judge).group_outcomes([RewardSample("q", text) for text in "abc"])
        assert [outcome.status for outcome in outcomes] == ["error"] * 3
        await judge.close()


async def test_limits_per_minute_are_shared_by_the_judges_of_a_model() -> None:
    async with FaultServer(answer_number) as server:
        limits = {"requests_per_minute": 1200, "tokens_per_minute": 2_000_000, "max_concurrent": 50}
        one, other = make(server, **limits), make(server, rubric="other", **limits)
        started = time.monotonic()
        results = await asyncio.gather(gather(one, 20), gather(other, 20))
        assert all(result.value == 0.7 for part in results for result in part)
        assert max(seen.at for seen in server.seen) - started > 0.7  # 20 at once, then 20 more at nearly 20 a second.
        with pytest.raises(ConfigError, match="different limits"):
            await make(server, requests_per_minute=10).start()
        await one.close()
        assert (await other(prompt="q", completions="still open")).value == 0.7
        await other.close()
        assert check_accounts(one)["wait_seconds"] + check_accounts(other)["wait_seconds"] > 1.0


async def test_a_closed_judge_opens_again_and_closing_ends_what_is_under_way() -> None:
    async with FaultServer(answer_number, {1: "never"}) as server:
        judge = make(server, timeout_seconds=30.0, deadline_seconds=60.0)
        assert (await judge(prompt="q", completions="a")).value == 0.7
        hanging = asyncio.create_task(judge(prompt="q", completions="b"))
        await has_seen(server, 2)
        await asyncio.wait_for(judge.close(), 20.0)
        await asyncio.wait([hanging], timeout=20.0)
        assert hanging.done()
        assert (await judge(prompt="q", completions="c")).value == 0.7
        await judge.close()
        check_accounts(judge)
