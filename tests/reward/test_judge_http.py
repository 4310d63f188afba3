"""The judge against a real server that fails as told: every call and every request is accounted for."""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from http_faults import FaultServer, chat_reply
from judge_checks import KEY, answer_number, check_accounts, gather, make

from areal_x.api import AsyncRewardWrapper, ConfigError, DataError, RewardError, RewardTimeoutError
from areal_x.reward import get_reward_fn
from areal_x.reward.judge import (
    JudgeDeadlineError,
    JudgeError,
    JudgeReplyError,
    JudgeRequestError,
    JudgeUnavailableError,
    LLMJudge,
)

KINDS = {
    "429": "http_429", "429;Retry-After=0.02": "http_429", "500": "http_5xx", "503": "http_5xx", "408": "http_408",
    "409": "http_409", "reset": "reset", "cut": "truncated", "truncated": "truncated", "no_json": "truncated",
    "never": "timeout", "drip": "timeout",
}  # fmt: skip
"""Injected faults that may pass, and what the judge counts them as."""


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


async def test_every_injected_fault_is_seen_and_every_call_is_answered() -> None:
    script: list[str | None] = [fault for fault in KINDS for _ in range(4)]
    script = [fault for index, fault in enumerate(script) for fault in ([fault, None] if index % 3 else [fault])]
    async with FaultServer(answer_number, script) as server:
        judge = make(server, max_concurrent=16, max_attempts=12, timeout_seconds=4.0, deadline_seconds=100.0)
        results = await gather(judge, 120)
        await judge.close()
        found = check_accounts(judge)
        expected = Counter[str]()
        for fault, count in server.injected.items():
            expected[KINDS[fault]] += count
        observed = {name.removeprefix("fault/"): int(value) for name, value in found.items() if name[:6] == "fault/"}
        print(f"\ninjected {dict(server.injected)}\nexpected {dict(expected)}\nobserved {observed}")
        assert observed == dict(expected) and set(server.injected) == set(KINDS) and expected.total() == 48
        assert {kind: found[f"retry/{kind}"] for kind in expected} == expected
        assert [result.value for result in results] == [0.7] * 120
        assert found["requests"] == len(server.seen) == 120 + 48 and found["answered"] == 120
        assert server.num_at_once <= 16


async def test_accounts_hold_whatever_fails_or_leaves(tmp_path: Path) -> None:
    chance = random.Random(7)
    script = [chance.choice([None, None, None, *KINDS]) for _ in range(900)]
    async with FaultServer(answer_number, script) as server:
        judge = make(server, max_concurrent=12, max_attempts=3, timeout_seconds=1.0, cache=str(tmp_path / "cache"))
        tasks = [asyncio.create_task(judge(prompt="q", completions=f"{n % 170}")) for n in range(300)]
        for task in chance.sample(tasks, 60):
            await asyncio.sleep(0.005)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = Counter(type(result).__name__ for result in results)
        found = judge.metrics()
        caller, endpoint = judge._caller, judge._endpoint
        assert caller is not None and endpoint is not None
        await judge.close()
        print(f"\n{dict(kinds)}\n{found}")
        assert set(kinds) <= {"RewardResult", "JudgeUnavailableError", "JudgeDeadlineError", "CancelledError"}
        check_accounts(judge)
        assert found["answered"] == kinds["RewardResult"] and kinds["RewardResult"] > 150
        assert found["failed"] == kinds["JudgeUnavailableError"] + kinds["JudgeDeadlineError"] > 0
        assert 0 < found["cancelled"] <= kinds["CancelledError"]  # Some left before their question was made.
        assert endpoint.gate._free == caller._entry._free == 12
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("judge")]


async def test_a_key_is_sent_and_a_verdict_comes_through_the_wrapper() -> None:
    async with FaultServer(answer_number) as server:
        judge = make(server, rubric="Be right.", price_per_million={"prompt": 2.0, "completion": 10.0})
        wrapper = AsyncRewardWrapper(judge, timeout_seconds=0.001)
        await wrapper.start()
        outcome = await wrapper.outcome("2+2?", "4", [1], [2], answer="4")
        assert (outcome.status, outcome.value, outcome.parts) == ("ok", 0.7, {"score": 7.0})
        await wrapper.close()
        (seen,) = server.seen
        assert seen.path == "/v1/chat/completions" and seen.headers["Authorization"] == f"Bearer {KEY}"
        assert "Be right." in seen.body["messages"][0]["content"] and "4" in seen.body["messages"][1]["content"]
        found = wrapper.metrics()
        assert found["cost"] == pytest.approx((100 * 2 + 5 * 10) / 1e6) and found["prompt_tokens"] == 100


@pytest.mark.parametrize(
    ("header", "seconds"), [("Retry-After=0.3", 0.3), ("retry-after-ms=200", 0.2), ("Retry-After=date+2", 0.9)]
)
async def test_the_server_s_wish_to_wait_is_honoured(header: str, seconds: float) -> None:
    async with FaultServer(answer_number, [f"429;{header}"]) as server:
        judge = make(server)
        assert (await judge(prompt="q", completions="a")).value == 0.7
        assert server.seen[1].at - server.seen[0].at >= seconds
        await judge.close()


async def test_a_wait_beyond_the_deadline_ends_the_call_at_once() -> None:
    async with FaultServer(answer_number, ["429;Retry-After=100"]) as server:
        judge = make(server)
        with pytest.raises(JudgeDeadlineError, match=r"deadline_seconds=60 .*asks to wait 100 s"):
            await asyncio.wait_for(judge(prompt="q", completions="a"), 30.0)
        await judge.close()
        assert len(server.seen) == 1 and check_accounts(judge)["failed"] == 1


@pytest.mark.parametrize("fault", ["never", "drip"])
async def test_the_deadline_holds_and_is_a_timeout(fault: str) -> None:
    async with FaultServer(answer_number, dict.fromkeys(range(99), fault)) as server:
        judge = make(server, timeout_seconds=2.0, deadline_seconds=3.8)
        outcome = await AsyncRewardWrapper(judge).outcome("q", "a")
        assert outcome.status == "timeout" and "deadline_seconds=3.8" in str(outcome.error)
        assert outcome.seconds < 30.0
        await judge.close()
        assert check_accounts(judge)["fault/timeout"] == len(server.seen) == 2


async def test_waiting_for_a_place_is_not_work_but_is_bounded() -> None:
    async with FaultServer(answer_number, delay_seconds=0.2) as server:
        judge = make(server, max_concurrent=1, deadline_seconds=3.0, timeout_seconds=3.0)
        results = await gather(judge, 18)
        assert [result.value for result in results] == [0.7] * 18
        await judge.close()
        impatient = make(server, max_concurrent=1, max_wait_seconds=0.15)
        errors = [result for result in await gather(impatient, 6) if isinstance(result, Exception)]
        assert errors and all(isinstance(error, JudgeDeadlineError) for error in errors)
        assert "max_wait_seconds=0.15" in str(errors[0])
        await impatient.close()
        assert check_accounts(impatient)["failed"] == len(errors)


async def test_attempts_are_bounded() -> None:
    async with FaultServer(answer_number, dict.fromkeys(range(99), "500")) as server:
        judge = make(server, max_attempts=3)
        with pytest.raises(JudgeUnavailableError, match=r"'stub' at .* no reply in 3 attempts \(3 x http_5xx"):
            await judge(prompt="q", completions="a")
        await judge.close()
        assert len(server.seen) == 3 and check_accounts(judge)["retry/http_5xx"] == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("400", "'stub' at http.*check the model"),
        ("401|Incorrect API key provided: " + KEY, r"'stub'.*\*\*\*.*check the key in JUDGE_KEY"),
        ("403", "what the key in JUDGE_KEY may use"),
        ("404|The model `stub` does not exist", "does not exist; check model and base_url"),
        ("422", "422"),
    ],
)
async def test_what_cannot_pass_is_not_tried_again_and_names_the_fix(fault: str, words: str) -> None:
    async with FaultServer(answer_number, dict.fromkeys(range(9), fault)) as server:
        judge = make(server)
        with pytest.raises(JudgeRequestError, match=words):
            await judge(prompt="q", completions="a")
        await judge.close()
        assert len(server.seen) == 1 and check_accounts(judge)["failed"] == 1


async def test_a_redirect_is_not_followed_and_the_key_stays() -> None:
    async with FaultServer(answer_number) as other:
        target = other.url.replace("127.0.0.1", "localhost")
        for status in (301, 302, 307, 308):
            async with FaultServer(answer_number, [f"{status};Location={target}/v1/chat/completions?x=1"]) as server:
                judge = make(server)
                with pytest.raises(JudgeRequestError, match=f"{status}.* to http://localhost; set base_url"):
                    await judge(prompt="q", completions="a")
                await judge.close()
        assert other.seen == []


async def test_nobody_there() -> None:
    async with FaultServer(answer_number) as gone:
        url = f"{gone.url}/v1"
    judge = make(url, max_attempts=2)
    with pytest.raises(JudgeUnavailableError, match="2 x connect"):
        await judge(prompt="q", completions="a")
    await judge.close()
    unknown = make("http://judge.invalid/v1", max_attempts=2, timeout_seconds=20.0)
    with pytest.raises(JudgeUnavailableError, match="2 x dns"):
        await unknown(prompt="q", completions="a")
    await unknown.close()
    assert check_accounts(unknown)["fault/dns"] == 2


@pytest.mark.parametrize("text", ["Score: 11", "no idea", "", None, "On a scale of 0 to 10."])
async def test_a_reply_without_a_verdict_is_an_error_and_no_number(text: str | None) -> None:
    async with FaultServer(lambda body: chat_reply(text)) as server:
        judge = make(server)
        outcome = await AsyncRewardWrapper(judge).outcome("q", "a")
        assert (outcome.status, outcome.value) == ("error", None) and "JudgeReplyError" in str(outcome.error)
        await judge.close()
        found = check_accounts(judge)
        assert (len(server.seen), found["failed"], found["replies"]) == (1, 1, 1)


async def test_empty_choices_and_cut_replies_are_errors() -> None:
    async with FaultServer(lambda body: chat_reply("Score: 1", finish_reason="length"), ["empty"]) as server:
        judge = make(server)
        results = await gather(judge, 2)
        assert all(isinstance(result, JudgeReplyError) for result in results)
        assert {"no choices" in str(result) for result in results} == {True, False}
        await judge.close()


async def test_json_that_is_not_declared_as_such_is_read() -> None:
    async with FaultServer(answer_number, ["as_text"]) as server:
        judge = make(server)
        assert (await judge(prompt="q", completions="a")).value == 0.7 and len(server.seen) == 1
        await judge.close()


async def test_the_key_is_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    """Not in representations, errors and what hangs on them, logs, metrics, nor the cache's files."""
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    script = [
        f"500|{KEY}",
        f"401|bad key {KEY}",
        "reset",
        f"429;Retry-After=0.01|{KEY}",
        f"302;Location=http://h/?k={KEY}",
    ]
    texts: list[str] = []
    async with FaultServer(answer_number, script) as server:
        judge = make(server, cache=str(tmp_path / "cache.sqlite"), max_concurrent=1)
        wrapper = AsyncRewardWrapper(judge)
        for number in range(4):
            texts.append(repr(await wrapper.outcome("q", f"a{number}")))
            try:
                await judge(prompt="q", completions=f"b{number}")
            except JudgeError as error:
                texts += traceback.format_exception(error)
                link: BaseException | None = error
                while link is not None:
                    texts += [repr(link), repr(vars(link)), *map(str, getattr(link, "__notes__", ()))]
                    assert not hasattr(link, "request")
                    link = link.__cause__ or link.__context__
        texts += [repr(judge), str(vars(judge)), repr(judge.metrics()), repr(judge._endpoint), repr(wrapper)]
        await judge.close()
    assert Counter(seen.headers["Authorization"] for seen in server.seen) == {f"Bearer {KEY}": len(server.seen)}
    assert server.injected.total() == len(script)
    texts += [record.getMessage() + str(record.exc_text) for record in caplog.records]
    files = [file.read_bytes() for file in tmp_path.iterdir()]
    assert files and not [data for data in files if KEY.encode() in data]
    assert not [text for text in texts if KEY in text]


async def test_what_the_environment_says_of_another_account_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "OPENAI_API_KEY": "key-of-openai", "OPENAI_ORG_ID": "our-org", "OPENAI_PROJECT_ID": "our-project",
        "OPENAI_ADMIN_KEY": "our-admin", "OPENAI_CUSTOM_HEADERS": "X-Team: our-team\nAuthorization: Bearer our-other",
    }  # fmt: skip
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    async with FaultServer(answer_number) as server:
        for api_key_env in ("JUDGE_KEY", None):
            judge = LLMJudge(model="stub", base_url=server.url, api_key_env=api_key_env, parser="number")
            assert (await judge(prompt="q", completions="a")).value == 0.7
            await judge.close()
        assert [seen.headers["Authorization"] for seen in server.seen] == [f"Bearer {KEY}", "Bearer none"]
        assert "our-" not in str([seen.headers for seen in server.seen])
        assert "key-of-openai" not in str([seen.headers for seen in server.seen])


async def test_a_key_that_is_missing_or_broken_is_told_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "  ", "two words", "line\nbreak", "schlüssel"):
        monkeypatch.setenv("JUDGE_KEY", value)
        with pytest.raises(ConfigError, match="JUDGE_KEY") as caught:
            await make("http://127.0.0.1:9/v1").start()
        assert not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "singel"}, "single"), ({"parser": "xml"}, "json, number"), ({"parser": "choice"}, "choices"),
        ({"parser": "regex"}, "pattern"), ({"parser": "regex", "pattern": "("}, "regular expression"),
        ({"parser": "regex", "pattern": "x"}, "no group"), ({"pattern": "(x)"}, "pattern goes with"),
        ({"choices": {"a": 1, "b": 0}}, "choices goes with"), ({"scale": [5, 1]}, "lower number first"),
        ({"prompt": "Judge {response}"}, r"does not hold \{completion\}"),
        ({"prompt": "{completion.x}"}, "plain names"),
        ({"prompt": "{completion} {completions}"}, "does not go with"), ({"rubric": 3}, "rubric"),
        ({"base_url": "127.0.0.1:8000"}, "base_url"), ({"base_url": "http://u:p@h/v1"}, "host h holds a user"),
        ({"api_key_env": "sk_live_123"}, "api_key_env is not the name"), ({"model": ""}, "model"),
        ({"max_concurrent": 0}, "max_concurrent"), ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"votes": 0}, "votes"), ({"min_votes": 2}, "min_votes"), ({"aggregate": "max"}, "majority"),
        ({"sampling": {"model": "x"}}, "sampling.model"), ({"sampling": 3}, "sampling"),
        ({"timeout_seconds": 0}, "timeout_seconds"), ({"deadline_seconds": float("inf")}, "deadline_seconds"),
        ({"price_per_million": {"input": 1}}, "prompt and completion"), ({"reference": "gold"}, "pairwise"),
        ({"mode": "pairwise", "parser": "number"}, "json, choice"), ({"mode": "ranking", "parser": "regex"}, "json"),
        ({"temprature": 0}, "temprature"), ({"votess": 3}, "votes"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        get_reward_fn("judge", **{"model": "stub", "base_url": "http://127.0.0.1:9/v1", "parser": "number", **options})
    assert "sk_live_123" not in str(caught.value) and "u:p" not in str(caught.value)


def test_columns_of_the_template_must_be_in_the_data() -> None:
    judge = make("http://127.0.0.1:9/v1", prompt="{prompt} {answer} {completion} {rubric}", system="{level} {format}")
    wrapper = AsyncRewardWrapper(judge)
    wrapper.check_columns(["question", "answer", "level"], "question")
    with pytest.raises(DataError, match="'level'"):
        wrapper.check_columns(["question", "answer"], "question")


async def test_too_many_connections_for_the_process_are_told() -> None:
    with pytest.raises(ConfigError, match="ulimit"):
        await make("http://127.0.0.1:9/v1", max_concurrent=100_000_000).start()


def test_errors_are_rewards_errors() -> None:
    assert issubclass(JudgeError, RewardError) and issubclass(JudgeDeadlineError, RewardTimeoutError)
