"""Limits per minute, places, shared calls, pauses and the cache: the parts of a judge without a server."""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import math
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api import ConfigError
from areal_x.reward.judge.cache import CachedReply, ReplyCache
from areal_x.reward.judge.faults import Fault, status_fault_kind
from areal_x.reward.judge.gate import ConcurrencyGate
from areal_x.reward.judge.rate_limit import RateLimiter, TokenBucket
from areal_x.reward.judge.single_flight import SingleFlight
from areal_x.reward.retries import backoff_seconds, retry_after_seconds


@given(st.integers(1, 5000), st.lists(st.floats(0, 20), min_size=1, max_size=300))
def test_no_minute_sees_more_requests_than_the_limit(per_minute: int, gaps: list[float]) -> None:
    now = 0.0
    bucket = TokenBucket(per_minute, lambda: now)
    taken: list[float] = []
    for gap in itertools.islice(itertools.cycle(gaps), 600):
        now += gap / per_minute
        if bucket.seconds_until(1.0) == 0.0:
            bucket.take(1.0)
            taken.append(now)
    for start in taken:
        assert sum(start <= moment < start + 60.0 - 1e-6 for moment in taken) <= per_minute


@given(st.integers(60, 100_000), st.lists(st.floats(0.001, 1.5), min_size=1, max_size=200))
def test_no_minute_sees_more_tokens_than_the_limit_and_the_last_request(per_minute: int, shares: list[float]) -> None:
    now = 0.0
    bucket = TokenBucket(per_minute, lambda: now, coarse=True)
    taken: list[tuple[float, float]] = []
    for share in shares:
        amount = share * bucket.capacity
        now += bucket.seconds_until(amount) + 1e-6
        assert bucket.seconds_until(amount) == 0.0
        bucket.take(amount)
        taken.append((now, amount))
    largest = max(amount for _, amount in taken)
    for start, _ in taken:
        used = sum(amount for moment, amount in taken if start <= moment < start + 60.0)
        assert used <= per_minute + max(0.0, largest - bucket.capacity) + 1.0


@pytest.mark.parametrize("per_minute", [1, 60, 600, 30_000])
def test_the_rate_is_nearly_the_limit(per_minute: int) -> None:
    now = 0.0
    bucket = TokenBucket(per_minute, lambda: now)
    count = 0
    while now < 600.0:
        now += bucket.seconds_until(1.0)
        bucket.take(1.0)
        count += 1
    assert 0.97 * 10 * per_minute <= count <= 10 * per_minute + 2


def test_a_bucket_takes_corrections_and_never_overflows() -> None:
    now = 0.0
    bucket = TokenBucket(6000, lambda: now, coarse=True)
    bucket.take(bucket.capacity)
    bucket.correct(-50.0)
    assert bucket.seconds_until(1.0) == pytest.approx(51.0 / bucket.per_second)
    bucket.correct(1e9)
    assert bucket.seconds_until(bucket.capacity) == 0.0
    now = 1e6
    bucket.take(bucket.capacity)
    assert bucket.seconds_until(1.0) > 0.0
    now = 5e5  # A clock that goes back gives nothing.
    assert bucket.seconds_until(1.0) > 0.0


async def test_turns_come_in_order_and_a_cancelled_one_is_given_back() -> None:
    limiter = RateLimiter(requests_per_minute=3000, tokens_per_minute=60_000)
    started = time.monotonic()
    await limiter.turn(5500.0)  # A debt of more than two seconds.
    order: list[int] = []

    async def one(number: int) -> None:
        await limiter.turn(1.0)
        order.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[4].cancel()
    await asyncio.wait(tasks)
    assert order == [1, 2, 3, 5, 6, 7, 8, 9]
    assert 0.1 < time.monotonic() - started < 30.0


async def test_a_turn_larger_than_the_bucket_does_not_wait_for_ever() -> None:
    limiter = RateLimiter(None, tokens_per_minute=60_000)
    async with asyncio.timeout(30.0):
        await limiter.turn(3500.0)
        await limiter.turn(10.0)


async def test_the_gate_holds_its_limit_in_order_and_survives_cancellation() -> None:
    gate = ConcurrencyGate(3, starts_per_tick=2)
    inside = most = 0
    order: list[int] = []

    async def one(number: int) -> None:
        nonlocal inside, most
        await gate.acquire()
        try:
            inside += 1
            most = max(most, inside)
            order.append(number)
            await asyncio.sleep(0.002)
        finally:
            inside -= 1
            gate.release()

    tasks = [asyncio.create_task(one(number)) for number in range(60)]
    await asyncio.sleep(0.004)
    cancelled = [task for task in tasks[20:40:3] if task.cancel()]
    await asyncio.wait(tasks, timeout=30.0)
    assert most == 3 and inside == 0 and order == sorted(order)
    assert all(task.cancelled() for task in cancelled) and len(order) == 60 - len(cancelled)
    for _ in range(3):
        await asyncio.wait_for(gate.acquire(), 30.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gate.acquire(), 0.02)


async def test_starts_of_a_crowd_are_spread() -> None:
    gate = ConcurrencyGate(math.inf, starts_per_tick=4)
    started: list[float] = []

    async def one() -> None:
        await gate.acquire()
        started.append(time.monotonic())

    await asyncio.gather(*[one() for _ in range(200)])
    assert started[-1] - started[0] >= 0.04


async def test_one_flight_for_all_and_no_waiter_kills_another_s() -> None:
    flights: SingleFlight[int] = SingleFlight()
    release = asyncio.Event()
    starts = 0

    async def work() -> int:
        nonlocal starts
        starts += 1
        await release.wait()
        return 7

    waiters = [asyncio.create_task(flights.run(b"k", work)) for _ in range(5)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    waiters[3].cancel()
    await asyncio.sleep(0)
    release.set()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [result for result in results if isinstance(result, int)] == [7, 7, 7] and starts == 1
    assert len(flights) == 0
    assert await flights.run(b"k", work) == 7 and starts == 2


async def test_the_last_waiter_takes_the_flight_with_it() -> None:
    flights: SingleFlight[int] = SingleFlight()
    ended: list[str] = []

    async def work() -> int:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return 1

    waiters = [asyncio.create_task(flights.run(b"k", work)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    await flights.close()
    assert ended == ["cancelled"] and len(flights) == 0


async def test_a_failed_flight_fails_all_its_waiters_and_is_not_kept() -> None:
    flights: SingleFlight[int] = SingleFlight()

    async def fail() -> int:
        await asyncio.sleep(0)
        raise ValueError("no")

    results = await asyncio.gather(*[flights.run(b"k", fail) for _ in range(3)], return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 3 and not flights.has(b"k")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": email.utils.formatdate(1030, usegmt=True)}, 30.0),
        ({"retry-after": email.utils.formatdate(10, usegmt=True)}, 0.0),
        ({"retry-after-ms": "x", "retry-after": "3"}, 3.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": ""}, None),
        ({"retry-after": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 2030 07:28:00 +99999999999999999999"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, now=1000.0) == seconds


@given(st.integers(1, 5000), st.floats(0, 10), st.none() | st.floats(0, 1000), st.floats(0, 1))
def test_pauses_grow_are_bounded_and_never_undercut_the_server(
    num_faults: int, first: float, retry_after: float | None, chance: float
) -> None:
    pause = backoff_seconds(num_faults, first, retry_after, chance)
    assert pause >= 0.5 * min(first * 2.0 ** min(num_faults - 1, 30), 30.0) - 1e-9
    assert (retry_after or 0.0) <= pause <= max(30.0, (retry_after or 0.0) * 1.1 + 1e-9)


def test_which_faults_are_tried_again() -> None:
    kinds = {
        status: status_fault_kind(status, None) for status in (301, 400, 401, 403, 404, 408, 409, 422, 429, 500, 503)
    }
    retried = {status for status, kind in kinds.items() if Fault(kind, "").is_retried}
    assert retried == {408, 409, 429, 500, 503}
    assert not Fault(status_fault_kind(429, "insufficient_quota"), "").is_retried


async def test_the_cache_keeps_replies_for_the_next_run_and_two_share_a_file(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "judge.sqlite"
    first, second = ReplyCache(file), ReplyCache(file)
    replies = {bytes([n]): CachedReply(f"reply {n} é\ud800", n, 2 * n) for n in range(200)}
    assert await first.get(b"\0") is None
    for number, (key, reply) in enumerate(replies.items()):
        (first if number % 2 else second).put(key, reply)
        assert await (first if number % 2 else second).get(key) == reply
    await first.close()
    await second.close()
    third = ReplyCache(file)
    assert dict(zip(replies, await asyncio.gather(*map(third.get, replies)), strict=True)) == replies
    assert await third.get(b"other") is None and third.num_errors == 0
    await third.close()


async def test_a_cache_that_breaks_is_told_once_and_the_judge_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ReplyCache(tmp_path / "judge.sqlite")
    cache._connection.execute("DROP TABLE replies")
    assert await cache.get(b"a") is None
    cache.put(b"a", CachedReply("x", 1, 1))
    assert await cache.get(b"b") is None
    await cache.close()
    assert cache.num_errors >= 2 and len(caplog.records) == 1


@pytest.mark.parametrize("row", ["", "[", "7", '["a", 1]', "[1, 1, 1]", None, b"x", 3])
async def test_a_broken_row_counts_as_not_found(row: object, tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "judge.sqlite")
    cache._connection.execute("INSERT INTO replies VALUES (?, ?)", (b"a", row))
    async with asyncio.timeout(30.0):
        assert await cache.get(b"a") is None
        cache.put(b"a", CachedReply("new", 1, 2))
        await cache.close()
    assert cache.num_errors == 1
    again = ReplyCache(tmp_path / "judge.sqlite")
    assert await again.get(b"a") == CachedReply("new", 1, 2)
    await again.close()


async def test_thousands_of_look_ups_and_writes_at_once_are_all_served(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "judge.sqlite")

    async def one(number: int) -> bool:
        key = number.to_bytes(4)
        missing = await cache.get(key)
        cache.put(key, CachedReply(str(number), number, 1))
        found = await cache.get(key)
        return missing is None and found == CachedReply(str(number), number, 1)

    async with asyncio.timeout(60.0):
        assert all(await asyncio.gather(*map(one, range(3000))))
        await cache.close()
    with sqlite3.connect(tmp_path / "judge.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM replies").fetchone() == (3000,)


def test_the_client_is_imported_only_once_a_judge_starts() -> None:
    code = (
        "import sys; from areal_x.reward import get_reward_fn; get_reward_fn('judge', model='m', parser='number'); "
        "print({'openai', 'aiohttp', 'httpx2', 'torch', 'transformers', 'regex'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_files_that_are_no_caches_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all, and long enough to have a header " * 10)
    with sqlite3.connect(tmp_path / "other") as connection:
        connection.execute("CREATE TABLE a (b)")
    (tmp_path / "folder").mkdir()
    for name in ("text", "other", "folder"):
        with pytest.raises(ConfigError, match=name):
            ReplyCache(tmp_path / name)
