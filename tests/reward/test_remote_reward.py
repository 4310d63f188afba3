"""Remote rewards against real HTTP servers: shapes, faults at known counts, several servers, bounds."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from faulty_server import FakeResolver, faulty, free_port, serving, started

from areal_x.api.errors import ConfigError, DataError
from areal_x.api.reward_api import AsyncRewardWrapper
from areal_x.api.reward_records import RewardError, RewardSample, RewardTimeoutError
from areal_x.reward import get_reward_fn
from areal_x.reward.remote import RemoteReward, RemoteRewardError

FAULT_OF = {
    "429": "http_429", "500": "http_5xx", "503": "http_5xx", "reset": "reset", "never": "timeout", "drip": "timeout",
    "truncated": "bad_json", "ok": "replies",
}  # fmt: skip


def observed(metrics: dict[str, float]) -> dict[str, int]:
    """How the attempts ended, by the names of the metrics."""
    faults = {name.removeprefix("fault/"): int(value) for name, value in metrics.items() if name.startswith("fault/")}
    return {name: count for name, count in (faults | {"replies": int(metrics["replies"])}).items() if count}


def in_those_names(injected: Counter[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, count in injected.items():
        counts[FAULT_OF[name]] += count
    return dict(counts)


def assert_accounted(metrics: dict[str, float]) -> None:
    ended = sum(metrics[name] for name in ("succeeded", "failed", "timed_out", "cancelled"))
    assert metrics["calls"] == ended and metrics["in_progress"] == 0
    faults = sum(value for name, value in metrics.items() if name.startswith("fault/"))
    assert metrics["attempts"] == metrics["replies"] + faults + metrics["cancelled_attempts"]


async def test_slime_shape() -> None:
    async with faulty() as server, started(server.url) as reward:
        result = await reward(prompt="1+1?", completions="two \ud800\0", answer=np.int64(2))
        assert result == {"reward": 6.0, "label": 2}
        assert server.requests == [{"prompt": "1+1?", "response": "two \ud800\0", "label": 2}]


async def test_openrlhf_shape() -> None:
    async with faulty() as server, started(server.url, shape="openrlhf", label_key=None) as reward:
        assert await reward(prompt="ab", completions="c") == {"reward": 3.0, "score": 1.0, "length": 3.0, "tag": "x"}
        assert server.requests == [{"query": ["abc"], "prompts": ["ab"], "labels": [None]}]


async def test_a_whole_group_goes_in_one_request() -> None:
    async with faulty() as server:
        fn = get_reward_fn("remote_rm", urls=server.url, shape="openrlhf", batch=True)
        wrapper = AsyncRewardWrapper(fn)
        assert wrapper.is_group
        await wrapper.start()
        samples = [RewardSample("p", text, [1], [2], {"answer": "7", "other": 1}) for text in ("", "a", "bb")]
        pending = [await wrapper.outcome("p", s.completion, s.prompt_ids, s.completion_ids, **s.data) for s in samples]
        outcomes = await wrapper.finish_group(pending)
        assert [o.value for o in outcomes] == [1.0, 2.0, 3.0]
        assert [o.parts["length"] for o in outcomes] == [1.0, 2.0, 3.0]
        assert server.requests == [{"query": ["p", "pa", "pbb"], "prompts": ["p"] * 3, "labels": ["7"] * 3}]
        await wrapper.close()


async def test_through_the_wrapper_with_key_start_metrics_and_close() -> None:
    async with faulty() as server:
        fn = get_reward_fn("remote_rm", urls=[server.url])
        wrapper = AsyncRewardWrapper(fn, reward_key="reward")
        wrapper.check_columns(["question", "answer"], "question")
        with pytest.raises(DataError, match="label_key='answer' is no column of the data, which has: gold"):
            wrapper.check_columns(["gold"])
        await wrapper.start()
        outcome = await wrapper.outcome("p", "abc", [1], [2, 3], answer="7", other="not sent")
        assert (outcome.status, outcome.value, outcome.metadata) == ("ok", 3.0, {"label": "7"})
        assert wrapper.metrics()["succeeded"] == 1
        outcome = await wrapper.with_key("label").outcome("p", "abc", answer=4)
        assert outcome.value == 4.0
        await wrapper.close()
        with pytest.raises(RewardError, match="await its start"):
            await fn(prompt="p", completions="c", answer="7")


@pytest.mark.parametrize(
    ("fault", "attempts"),
    [("429", 3), ("500", 3), ("503", 3), ("reset", 3), ("truncated", 3), ("drip", 2), ("never", 2)],
)
async def test_faults_that_may_pass_are_tried_again(fault: str, attempts: int) -> None:
    async with faulty([fault] * (attempts - 1) + ["ok"]) as server, started(server.url, timeout_seconds=3.0) as reward:
        assert (await reward(prompt="p", completions="abc", answer=1))["reward"] == 3.0
        assert observed(reward.metrics()) == in_those_names(server.injected)
        assert len(server.requests) == attempts
        assert_accounted(reward.metrics())


@pytest.mark.parametrize("status", ["400", "401", "403", "404", "408", "413", "422"])
async def test_other_statuses_of_the_client_are_never_tried_again(status: str) -> None:
    async with faulty([status]) as server, started([server.url, server.url + "/2"]) as reward:
        with pytest.raises(RemoteRewardError, match=f"HTTP {status} no"):
            await reward(prompt="p", completions="abc", answer=1)
        assert len(server.requests) == 1
        assert observed(reward.metrics()) == {"http_4xx": 1}


async def test_retry_after_is_waited_for_in_full() -> None:
    async with faulty(["429:0.6", "ok"]) as server, started(server.url) as reward:
        began = time.monotonic()
        await reward(prompt="p", completions="abc", answer=1)
        assert 0.6 <= time.monotonic() - began < 30.0


async def test_a_retry_after_that_no_clock_holds_is_left_aside() -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"})

    async with serving(handle) as port, started(f"http://127.0.0.1:{port}", max_attempts=2) as reward:
        with pytest.raises(RemoteRewardError, match=r"max_attempts=2.*HTTP 429"):
            await reward(prompt="p", completions="abc", answer=1)
        assert observed(reward.metrics()) == {"http_429": 2}
        assert_accounted(reward.metrics())


async def test_an_exception_that_nobody_foresaw_is_accounted_for() -> None:
    class Broken(FakeResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
            raise KeyError(host)

    async with started("http://rewards.example.com", resolver=Broken()) as reward:
        with pytest.raises(KeyError):
            await reward(prompt="p", completions="abc", answer=1)
        assert observed(reward.metrics()) == {"unexpected": 1}
        assert reward.metrics()["cancelled_attempts"] == 0 and reward.metrics()["failed"] == 1
        assert_accounted(reward.metrics())


async def test_a_retry_after_beyond_the_deadline_fails_at_once_and_says_so() -> None:
    async with faulty(["429:3600"]) as server, started(server.url) as reward:
        began = time.monotonic()
        with pytest.raises(RemoteRewardError, match=r"no reward within deadline_seconds=60; .*HTTP 429"):
            await reward(prompt="p", completions="abc", answer=1)
        assert time.monotonic() - began < 30.0
        assert len(server.requests) == 1


async def test_attempts_are_bounded() -> None:
    async with faulty(["500"]) as server, started(server.url, max_attempts=4, cooldown_seconds=0.02) as reward:
        with pytest.raises(RemoteRewardError, match=r"no reward within max_attempts=4; http://127.*HTTP 500 no"):
            await reward(prompt="p", completions="abc", answer=1)
        assert len(server.requests) == 4
        assert observed(reward.metrics()) == {"http_5xx": 4}


@pytest.mark.parametrize("fault", ["never", "drip"])
async def test_a_reply_that_never_ends_is_bounded_by_the_deadline(fault: str) -> None:
    async with faulty([fault]) as server, started(server.url, timeout_seconds=0.2, deadline_seconds=0.5) as reward:
        wrapper = AsyncRewardWrapper(reward, timeout_seconds=0.01)
        began = time.monotonic()
        outcome = await wrapper.outcome("p", "abc", answer=1)
        assert outcome.status == "timeout" and "deadline_seconds=0.5" in str(outcome.error)
        assert 0.4 < time.monotonic() - began < 30.0
        assert_accounted(reward.metrics())


REPLIES: list[tuple[str, bytes, str]] = [
    ("slime", b"0.25", "0.25"),
    ("slime", b" 3 ", "3"),
    ("slime", b"null", "None"),
    ("slime", b'{"a": {"b": [1]}}', "{'a': {'b': [1]}}"),
    ("slime", b"NaN", "holds NaN"),
    ("slime", b'{"reward": -Infinity}', "holds -Infinity"),
    ("slime", b'{"reward": 1e999}', "holds 1e999"),
    ("slime", b"true", "boolean"),
    ("slime", b'"0.5"', "string"),
    ("slime", b"[0.5]", "list"),
    ("slime", b"[" * 100_000, "nested too deep"),
    ("slime", b"9" * 5000, "cannot be read"),
    ("slime", b'{"a": ' * 300 + b"1" + b"}" * 300, "nested too deep"),
    ("slime", b'{"reward": 1, "a": ' + b"[" * 900 + b"]" * 900 + b"}", "nested too deep"),
    ("slime", b'{"a": ' * 50 + b"1" + b"}" * 50, "{'a': " * 50 + "1"),
    ("slime", b'{"reward": 1' + b"0" * 400 + b"}", "no float holds"),
    ("slime", b"-1" + b"0" * 400, "no float holds"),
    ("slime", b'{"reward": 0, "reward": 1}', "a key stands twice"),
    ("slime", b'{"reward": 0, "a": [{"b": 1, "b": 1}]}', "a key stands twice"),
    ("openrlhf", b'{"rewards": [0], "rewards": [1]}', "a key stands twice"),
    ("slime", b"<html>welcome</html>", "not JSON"),
    ("slime", b"", "not JSON"),
    ("slime", b"\xff\xfe0", "not JSON"),
    ("slime", b'{"reward": 1' + b" " * 3000, "larger than max_response_bytes=2000"),
    ("openrlhf", b'{"rewards": [[0.5]]}', "{'reward': 0.5, 'score': 0.5}"),
    ("openrlhf", b'{"rewards": 0.5, "scores": [1]}', "{'reward': 0.5, 'score': 1}"),
    ("openrlhf", b'{"rewards": [null]}', "None"),
    ("openrlhf", b'{"rewards": [1], "extra_logs": {"score": 2}}', "{'reward': 1, 'score': 1, 'extra_logs/score': 2}"),
    ("openrlhf", b'{"rewards": []}', "0 rewards for 1 completions"),
    ("openrlhf", b'{"rewards": [1, 2]}', "2 rewards for 1 completions"),
    ("openrlhf", b'{"rewards": ["1"]}', "'rewards' of the reply holds a string"),
    ("openrlhf", b'{"rewards": [true]}', "holds a boolean"),
    ("openrlhf", b'{"reward": 1}', "expected an object with 'rewards'"),
    ("openrlhf", b"1", "the reply is a number"),
    ("openrlhf", b'{"rewards": [1], "scores": [1, 2]}', "2 scores for 1"),
    ("openrlhf", b'{"rewards": [1], "extra_logs": [1]}', "'extra_logs' of the reply is a list"),
    ("openrlhf", b'{"rewards": [1], "extra_logs": {"a": [1, 2]}}', "2 values of extra_logs.a"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "body", "expected"), REPLIES, ids=[repr(body[:30]) for _, body, _ in REPLIES])
async def test_replies_are_taken_strictly(shape: str, body: bytes, expected: str) -> None:
    requests = 0

    async def handle(_: web.Request) -> web.Response:
        nonlocal requests
        requests += 1
        return web.Response(body=body)

    async with serving(handle) as port:
        options: dict[str, Any] = {"shape": shape, "max_response_bytes": 2000 if b"   " in body else 1 << 20}
        async with started(f"http://127.0.0.1:{port}", label_key=None, max_attempts=2, **options) as reward:
            try:
                shown = str(await reward(prompt="p", completions="c"))
            except RemoteRewardError as error:
                shown = str(error)
                assert expected not in ("None", "3")
            assert expected in shown
            assert requests == (2 if expected == "not JSON" else 1)
            assert_accounted(reward.metrics())


async def test_endless_and_compressed_replies_are_refused() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if request.path == "/gzip":
            response.headers["Content-Encoding"] = "gzip"
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)

    async with serving(endless) as port:
        for path, expected in (("/", "larger than max_response_bytes=1048576"), ("/gzip", "compressed")):
            async with started(f"http://127.0.0.1:{port}{path}", timeout_seconds=30.0) as reward:
                with pytest.raises(RemoteRewardError, match=expected):
                    await reward(prompt="p", completions="c", answer=1)


async def test_a_label_that_json_cannot_carry_is_an_error_of_the_data() -> None:
    async with faulty() as server, started(server.url) as reward:
        deep: list[Any] = []
        for _ in range(5000):
            deep = [deep]
        for label in (float("nan"), object(), deep):
            with pytest.raises(DataError, match="label column cannot be written"):
                await reward(prompt="p", completions="c", answer=label)
        assert server.requests == []


async def test_concurrency_is_bounded_and_the_wait_for_a_slot_does_not_count() -> None:
    options = {"max_concurrent": 3, "timeout_seconds": 3.0, "deadline_seconds": 3.0}
    async with faulty(delay=0.1) as server, started(server.url, **options) as reward:
        results = await asyncio.gather(*(reward(prompt="p", completions="abc", answer=1) for _ in range(108)))
        assert len(results) == 108 and server.most_in_flight == 3


async def test_a_cancelled_call_leaves_nothing_behind() -> None:
    async with faulty(["never"]) as server, started(server.url, max_concurrent=1, timeout_seconds=60.0) as reward:
        tasks = [asyncio.create_task(reward(prompt="p", completions="abc", answer=1)) for _ in range(2)]
        async with asyncio.timeout(30.0):
            while not server.requests:
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        metrics = reward.metrics()
        assert (metrics["cancelled"], metrics["cancelled_attempts"], metrics["attempts"]) == (2, 1, 1)
        assert_accounted(metrics)
        server.script = ["ok"]
        assert await reward(prompt="p", completions="abc", answer=1)


FAULTS = ("429", "429:0.05", "500", "reset", "never", "drip", "truncated")


async def test_every_call_is_accounted_for_with_all_faults(capsys: pytest.CaptureFixture[str]) -> None:
    """Each fault strikes 6 of 600 calls, each at its first attempt."""
    plan = {f"{number:04}": FAULTS[number % len(FAULTS)] for number in range(6 * len(FAULTS))}
    struck: set[str] = set()

    def script(payload: dict[str, Any]) -> str:
        name = payload["prompt"]
        if name in plan and name not in struck:
            struck.add(name)
            return plan[name]
        return "ok"

    async with faulty(script) as server, started(server.url, max_concurrent=64, timeout_seconds=6.0) as reward:
        calls = (reward(prompt=f"{number:04}", completions="x" * (number % 7), answer=number) for number in range(600))
        results = await asyncio.gather(*calls)
        assert [(r["reward"], r["label"]) for r in results] == [(float(n % 7), n) for n in range(600)]
        injected, seen = in_those_names(server.injected), observed(reward.metrics())
        assert_accounted(reward.metrics())
    with capsys.disabled():
        print(f"\ninjected {dict(sorted(injected.items()))}\nobserved {dict(sorted(seen.items()))}")
    assert injected == seen
    assert {name: count for name, count in injected.items() if name != "replies"} == {
        "http_429": 12, "http_5xx": 6, "reset": 6, "timeout": 12, "bad_json": 6,
    }  # fmt: skip


async def test_two_thousand_concurrent_calls_with_one_percent_faults() -> None:
    """1 % of the requests fail, over three servers; every call gets its own reward, and all attempts are counted."""
    number = 0

    def script(_: dict[str, Any]) -> str:
        nonlocal number
        number += 1
        return ("429", "reset", "never")[number // 100 % 3] if number % 100 == 0 else "ok"

    async with faulty(script) as a, faulty(script) as b, faulty(script) as c:
        urls = [a.url, b.url, c.url]
        async with started(urls, max_concurrent=2000, timeout_seconds=15.0, deadline_seconds=100.0) as reward:
            calls = (reward(prompt="p", completions="x" * (i % 50), answer=i) for i in range(2000))
            results = await asyncio.gather(*calls)
            metrics = reward.metrics()
    assert [r["label"] for r in results] == list(range(2000))
    assert (metrics["calls"], metrics["succeeded"]) == (2000, 2000)
    assert observed(metrics) == in_those_names(a.injected + b.injected + c.injected)
    assert_accounted(metrics)
    assert sum(count for name, count in observed(metrics).items() if name != "replies") == number // 100 >= 20


async def test_the_server_with_the_least_in_flight_is_asked() -> None:
    async with faulty(delay=0.02) as fast, faulty(delay=1.0) as slow, started([fast.url, slow.url]) as reward:
        gate = asyncio.Semaphore(8)

        async def one() -> None:
            async with gate:
                await reward(prompt="p", completions="c", answer=1)

        await asyncio.gather(*(one() for _ in range(100)))
        assert len(fast.requests) > 3 * len(slow.requests) > 0
        assert abs(fast.most_in_flight - slow.most_in_flight) <= 2


class ServerProcess:
    """The same server in a process of its own, which can be killed and started again on its port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/score"
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("faulty_server.py")), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline()) == {"port": self.port}

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def two_processes() -> Iterator[list[ServerProcess]]:
    servers = [ServerProcess(), ServerProcess()]
    yield servers
    for server in servers:
        if server.process.poll() is None:
            server.kill()


async def steady_calls(reward: RemoteReward, wanted: Callable[[int], bool]) -> AsyncIterator[int]:
    """How many rewards came, one after another, of calls in 16 lanes that go on as long as they are wanted."""

    async def call() -> Any:
        return await reward(prompt="p", completions="abc", answer=1)

    count = 0
    pending = {asyncio.create_task(call()) for _ in range(16)}
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            assert task.result()["reward"] == 3.0
            count += 1
            yield count
            if wanted(count):
                pending.add(asyncio.create_task(call()))


async def test_a_killed_server_is_left_out_and_taken_back(two_processes: list[ServerProcess]) -> None:
    """No call fails while one of two servers is dead, and the one that comes back is used again."""
    first, second = two_processes
    async with started([first.url, second.url], cooldown_seconds=0.2, timeout_seconds=20.0) as reward:
        async for count in steady_calls(reward, lambda count: count < 400):
            if count == 100:
                assert reward.metrics()["server_0/attempts"] > 20
                first.kill()
        metrics = reward.metrics()
        assert metrics["succeeded"] == metrics["calls"] >= 400
        assert 0 < metrics["fault/connect"] + metrics["fault/reset"] < 50
        assert metrics["servers_in_service"] == 1

        refused, attempts = metrics["fault/connect"], metrics["server_0/attempts"]
        first.start()
        until = time.monotonic() + 60
        async for _ in steady_calls(reward, lambda _: is_still_out(reward) and time.monotonic() < until):
            pass
        async for _ in steady_calls(reward, lambda count: count < 100):
            pass
        metrics = reward.metrics()
        assert metrics["servers_in_service"] == 2 and metrics["server_0/attempts"] > attempts + 20
        assert metrics["fault/connect"] == refused and metrics["failed"] == 0
        assert_accounted(metrics)


def is_still_out(reward: RemoteReward) -> bool:
    return reward.metrics()["servers_in_service"] < 2


async def test_all_servers_down_is_an_error_with_what_each_said_last(two_processes: list[ServerProcess]) -> None:
    urls = [server.url for server in two_processes]
    async with started(urls, timeout_seconds=3.0, deadline_seconds=4.0, cooldown_seconds=0.3) as reward:
        assert await reward(prompt="p", completions="abc", answer=1)
        for server in two_processes:
            server.kill()
        wrapper = AsyncRewardWrapper(reward)
        outcomes = await asyncio.gather(*(wrapper.outcome("p", "abc", answer=1) for _ in range(50)))
        assert {outcome.status for outcome in outcomes} == {"error"}
        for server in two_processes:
            assert all(f"http://127.0.0.1:{server.port} (out of service" in str(o.error) for o in outcomes)
        assert "cannot connect" in str(outcomes[0].error)
        assert_accounted(reward.metrics())


async def test_no_such_name_is_an_error_that_names_it() -> None:
    async with started("http://no-such-host.invalid/score", max_attempts=1) as reward:
        with pytest.raises(RemoteRewardError, match=r"no-such-host\.invalid:80.*cannot connect"):
            await reward(prompt="p", completions="abc", answer=1)


@pytest.mark.parametrize("options", [{"max_attempts": 1}, {"deadline_seconds": 1.0}, {"deadline_seconds": 1.5}])
async def test_no_reply_in_time_is_a_timeout_at_every_limit(options: dict[str, Any]) -> None:
    async with faulty(["never"]) as server, started(server.url, **({"timeout_seconds": 1.0} | options)) as reward:
        with pytest.raises(RewardTimeoutError, match=r"http://127\.0\.0\.1:\d+.*: no complete reply within"):
            await reward(prompt="p", completions="abc", answer=1)
        assert reward.metrics()["timed_out"] == 1


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"shape": "verl"}, "shape='verl' is unknown"),
    ({"batch": True}, "batch=true needs shape=openrlhf"),
    ({"urls": []}, "at least one URL"),
    ({"urls": ["http://a/x", "http://A:80/x"]}, "none twice"),
    ({"urls": "ftp://a"}, "not an http:// or https:// URL"),
    ({"timeout_seconds": 0}, "timeout_seconds must be a number above 0, got 0"),
    ({"max_attempts": "3"}, "max_attempts must be a number above 0, got '3'"),
    ({"deadline_seconds": 1.0}, "deadline_seconds=1 is for all attempts"),
    ({"max_redirects": -1}, "max_redirects must be 0 or more"),
    ({"label_key": "prompt"}, "label_key='prompt' is an argument of rewards"),
    ({"headers_env": {"Authorization": "AREAL_X_NO_SUCH_VARIABLE"}}, "AREAL_X_NO_SUCH_VARIABLE is not set"),
    ({"headers_env": {"A b": "HOME"}}, "'A b' is not the name of an HTTP header"),
    ({"headers_env": {"A": "Bearer sk-123"}}, "headers_env.A must name an environment variable"),
    ({"headers_env": {"A": "mysecrettoken123"}}, "headers_env.A must name an environment variable in capitals"),
    ({"headers_env": {"A": "Bearer {mysecrettoken123}"}}, "headers_env.A must name an environment variable in capital"),
    ({"headers_env": {"A": 123456789}}, "headers_env.A must name an environment variable in capitals"),
    ({"urls": "user:pw-5ecret@host"}, "not an http:// or https:// URL"),
    ({"allowed_hosts": ["user:pw-5ecret@a"]}, "allowed_hosts holds names, host:port"),
    ({"allowed_hosts": ["pw-5ecret@a"]}, "allowed_hosts holds names, host:port"),
    ({"allowed_hosts": ["b"]}, "http://a:80 is not in allowed_hosts"),
    ({"allowed_hosts": ["http://a/"]}, "allowed_hosts holds names, host:port"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[message for _, message in BAD_OPTIONS])
def test_bad_options_are_told_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as caught:
        RemoteReward(**({"urls": "http://a/x"} | options))
    shown = [secret for secret in ("sk-123", "mysecret", "123456789", "5ecret") if secret in str(caught.value)]
    assert not shown


async def test_the_example_server_gives_the_same_rewards_in_both_shapes() -> None:
    port = free_port()
    example = Path(__file__).parents[2] / "examples" / "remote_reward_server.py"
    process = subprocess.Popen([sys.executable, str(example), str(port)], stdout=subprocess.DEVNULL)
    url, texts = f"http://127.0.0.1:{port}", ["64", "65", "", "6400"]
    # Whoever asks before it listens is refused and asks again.
    options: dict[str, Any] = {"max_attempts": 1000, "deadline_seconds": 90.0, "timeout_seconds": 20.0}
    try:
        async with (
            started(f"{url}/slime", **options) as single,
            started(f"{url}/openrlhf", shape="openrlhf", batch=True, **options) as group,
        ):
            singles = [await single(prompt="12+34=", completions=text, answer="64") for text in texts]
            results = await group(prompt="12+34=", completions=texts, answer="64")
            assert [result["reward"] for result in results] == singles == [1.0, 0.5, 0.0, 0.5]
            assert [result["length"] for result in results] == [2.0, 2.0, 0.0, 4.0]
    finally:
        process.kill()
        process.wait()
