"""Every way in which a function can misbehave ends as a typed result, and the pool goes on."""

from __future__ import annotations

import asyncio
import errno
import os

import pool_functions as functions
import pytest
from pool_checks import LOOPS, marked_processes, settles, wait_until

from areal_x.process_pool import PoolError, ProcessPool


async def outcome(pool, function, timeout=20.0, **kwargs):
    return await pool.call(await pool.register(function), kwargs, timeout)


async def still_works(pool):
    result = await outcome(pool, functions.double, x=21)
    assert (result.status, result.value) == ("ok", 42)


@pytest.mark.parametrize("name", ["spin", "spin_in_c", "stop_itself", "ignore_sigterm"])
def test_what_never_returns_is_killed_at_its_deadline(run_with_pool, name):
    async def test(pool):
        function = await pool.register(getattr(functions, name))
        await outcome(pool, functions.double, x=1)
        result = await pool.call(function, {}, 0.3)
        assert result.status == "timeout"
        assert "0.3 s" in result.error
        assert 0.3 <= result.seconds < 20.0
        await still_works(pool)
        assert pool.num_retried == 0

    run_with_pool(test)


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("segfault", {}, "SIGSEGV"),
        ("exit_now", {"code": 3}, "exit code 3"),
        ("close_descriptors", {}, "connection was closed"),
        ("close_descriptors_and_hang", {}, "connection"),
    ],
)
def test_what_kills_its_worker_is_retried_once_and_is_a_crash(run_with_pool, name, kwargs, reason):
    async def test(pool):
        result = await outcome(pool, getattr(functions, name), **kwargs)
        assert (result.status, result.attempts) == ("crash", 2)
        assert reason in result.error
        assert pool.num_retried == 1
        await still_works(pool)

    run_with_pool(test)


def test_a_crash_that_does_not_happen_again_gives_the_value(run_with_pool, tmp_path):
    async def test(pool):
        result = await outcome(pool, functions.crash_once, path=str(tmp_path / os.urandom(4).hex()))
        assert (result.status, result.value, result.attempts) == ("ok", 7.0, 2)

    run_with_pool(test)


def test_an_exception_is_not_retried(run_with_pool, tmp_path):
    path = tmp_path / os.urandom(4).hex()

    async def test(pool):
        result = await outcome(pool, functions.count_and_raise, path=str(path))
        assert (result.status, result.error_type, result.attempts) == ("error", "ValueError", 1)
        assert result.error == "ValueError: told you"
        assert "count_and_raise" in result.traceback
        assert path.read_text() == "x"

    run_with_pool(test)


@pytest.mark.parametrize(
    ("name", "error_type"),
    [
        ("allocate", "MemoryError"),
        ("leave_by_system_exit", "SystemExit"),
        ("lambda_value", "TypeError"),
        ("raise_bad_message", "BadMessage"),
    ],
)
def test_what_raises_or_returns_nonsense_is_an_error(run_with_pool, name, error_type):
    async def test(pool):
        await pool.register(functions.double)
        result = await outcome(pool, getattr(functions, name))
        assert (result.status, result.error_type) == ("error", error_type)
        await still_works(pool)
        assert pool.num_spawned == 2

    run_with_pool(test)


def test_printing_gigabytes_does_no_harm(run_with_pool):
    async def test(pool):
        result = await outcome(pool, functions.print_much, 60.0)
        assert (result.status, result.value) == ("ok", 1.0)
        assert 0 < len(result.output) <= 8192
        result = await outcome(pool, functions.print_and_raise)
        assert result.output == "a clue\n"

    run_with_pool(test)


def test_arguments_that_cannot_be_pickled_are_an_error(run_with_pool):
    async def test(pool):
        result = await outcome(pool, functions.echo, value=lambda: 1)
        assert result.status == "error"
        assert "argument" in result.error
        await still_works(pool)

    run_with_pool(test)


def test_descendants_in_other_sessions_die_with_the_worker(run_with_pool, tmp_path, marker):
    path = tmp_path / os.urandom(4).hex()

    async def test(pool):
        mark = os.environ["AREAL_X_TEST_MARKER"]
        result = await outcome(pool, functions.escape_and_hang, 3.0, path=str(path))
        assert result.status == "timeout"
        assert path.exists()
        await still_works(pool)
        assert await settles(pool, mark, 5)  # The helper, two guardians, two workers.

    run_with_pool(test)


def test_a_call_that_leaves_a_process_behind_costs_its_worker(run_with_pool):
    async def test(pool):
        mark = os.environ["AREAL_X_TEST_MARKER"]
        await pool.register(functions.double)
        result = await outcome(pool, functions.leave_a_child)
        assert (result.status, result.value) == ("ok", 1.0)
        await still_works(pool)
        async with asyncio.timeout(20.0):
            while pool.num_spawned < 3:
                await asyncio.sleep(0.01)
        assert await settles(pool, mark, 5)
        assert pool.num_spawned == 3

    run_with_pool(test)


def test_only_the_worker_answers_when_its_forked_child_returns_too(run_with_pool):
    async def test(pool):
        for _ in range(5):
            result = await outcome(pool, functions.child_returns)
            assert (result.status, result.value) == ("ok", 1.0)

    run_with_pool(test)


def test_a_fork_bomb_is_bounded_and_nothing_of_it_survives(run_with_pool):
    async def test(pool):
        mark = os.environ["AREAL_X_TEST_MARKER"]
        await still_works(pool)
        task = asyncio.create_task(outcome(pool, functions.fork_bomb, 3.0))
        peak = 0
        while not task.done():
            peak = max(peak, len(marked_processes(mark)))
            await asyncio.wait([task], timeout=0.05)
        assert (await task).status == "timeout"
        assert 8 < peak <= 64 + 5
        assert await settles(pool, mark, 5)
        await still_works(pool)

    run_with_pool(test)


def test_number_of_children_is_bounded_and_programs_may_be_run(run_with_pool):
    async def test(pool):
        assert (await outcome(pool, functions.count_forks, 60.0)).value <= 16
        assert (await outcome(pool, functions.run_a_program, 60.0)).value == "42\n"

    run_with_pool(test, process_limit=16)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_dead_helper_is_replaced_or_reported(loop, marker):
    async def main():
        async with ProcessPool(2) as pool:
            double = await pool.register(functions.double)
            assert (await pool.call(double, {"x": 1}, 20.0)).value == 2
            for _ in range(2):
                os.kill(pool.process_ids()[0], 9)
                result = await asyncio.wait_for(pool.call(double, {"x": 4}, 20.0), 60)
                assert result.value == 8
        assert wait_until(lambda: marked_processes(marker) == [], 20.0)

    LOOPS[loop](main())


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_no_descriptors_for_another_worker_breaks_the_pool_and_loses_no_call(loop, marker, monkeypatch):
    async def main():
        async with ProcessPool(1) as pool:
            nap = await pool.register(functions.nap)
            await pool.warm_up()
            calls = [pool.call(nap, {"seconds": 30.0}, 0.3) for _ in range(2)]

            def no_descriptors(*_):
                raise OSError(errno.EMFILE, "Too many open files")

            with monkeypatch.context() as patch:
                patch.setattr("areal_x.process_pool.worker_link.socket.socketpair", no_descriptors)
                first, second = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
            assert first.status == "timeout"
            assert isinstance(second, PoolError) and "cannot start a worker process" in str(second)
            with pytest.raises(PoolError, match="Too many open files"):
                await pool.call(nap, {"seconds": 0.0}, 20.0)
        assert wait_until(lambda: marked_processes(marker) == [], 20.0)

    LOOPS[loop](main())


def test_a_large_argument_that_finds_no_descriptor_is_an_error_of_its_call(run_with_pool, monkeypatch):
    async def test(pool):
        double = await pool.register(functions.double)
        assert (await pool.call(double, {"x": 1}, 20.0)).value == 2

        def no_descriptors(*_):
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr("areal_x.process_pool.wire.os.memfd_create", no_descriptors)
            result = await asyncio.wait_for(pool.call(double, {"x": "x" * 200_000}, 20.0), 60)
        assert result.status == "error" and "Too many open files" in result.error
        assert (await pool.call(double, {"x": 4}, 20.0)).value == 8

    run_with_pool(test)
