"""The grader's child serves many answers, and no answer, limit, fork or end of its owner leaves a trace of another."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.reward_api import AsyncRewardWrapper
from areal_x.process_pool import ProcessPool
from areal_x.reward import get_reward_fn
from areal_x.reward.math import child_loop, symbolic
from areal_x.reward.math.bounded_child import ChildError, LimitReached, Limits, run_bounded
from areal_x.reward.math.child_guard import is_doubtful

LIMITS = Limits(20.0)
SHORT = Limits(0.2)


def pid() -> int:
    return os.getpid()


def child_now() -> int:
    return int(run_bounded(pid, (), LIMITS))


def kill_child(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_ends(process: int) -> None:
    deadline = time.monotonic() + 30
    while is_running(process):
        assert time.monotonic() < deadline, f"process {process} is left"
        time.sleep(0.01)


def test_one_child_serves_many_answers_and_is_replaced_at_a_limit() -> None:
    first = child_now()
    assert {child_now() for _ in range(20)} == {first} and first != os.getpid()
    with pytest.raises(LimitReached):
        run_bounded(time.sleep, (60,), SHORT)
    assert not is_running(first)
    second = child_now()
    assert second != first
    with pytest.raises(ChildError):
        run_bounded(int, ("x",), LIMITS)
    assert child_now() != second


def write_on() -> None:
    while True:
        for descriptor in range(3, 100):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"x")


def test_a_child_that_writes_without_end_meets_its_deadline() -> None:
    begin = time.monotonic()
    with pytest.raises(LimitReached, match="math_time_limit"):
        run_bounded(write_on, (), SHORT)
    assert time.monotonic() - begin < 30.0


def test_a_long_text_arrives_whole() -> None:
    text = "x\ud800" * 500_000
    assert run_bounded(len, (text,), LIMITS) == len(text)


def test_a_child_that_was_killed_between_answers_is_replaced() -> None:
    first = child_now()
    kill_child(first)
    second = child_now()
    os.kill(second, signal.SIGKILL)
    os.waitpid(second, 0)  # Reaped by someone else.
    assert len({first, second, child_now()}) == 3


def test_a_child_ends_after_its_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    run_bounded(len, ("a new function, so a new child",), LIMITS)
    monkeypatch.setattr(child_loop, "MAX_JOBS", 3)
    run_bounded(max, (1, 2), LIMITS)
    served = [child_now() for _ in range(6)]
    assert served[0] == served[1] != served[2] == served[4] != served[5]


def take(size: int) -> int:
    """Memory from the kernel: a large process may have as much lying free, which would take no new address space."""
    try:
        region = mmap.mmap(-1, size)
    except OSError as error:
        raise MemoryError from error
    with region:
        return len(region)


def fill(size: int) -> int:
    with mmap.mmap(-1, size) as region:
        for page in range(0, size, mmap.PAGESIZE):
            region[page] = 1
        return len(region)


def test_a_child_that_has_grown_is_replaced_and_one_that_has_not_is_kept() -> None:
    run_bounded(fill, (1,), LIMITS)
    first = child_now()
    run_bounded(fill, (1 << 20,), LIMITS)
    assert child_now() == first
    run_bounded(fill, (child_loop.MAX_GROWTH_BYTES * 5 // 4,), LIMITS)
    assert child_now() != first


def test_each_answer_has_its_own_limits() -> None:
    assert run_bounded(take, (100 << 20,), LIMITS) == 100 << 20
    with pytest.raises(LimitReached, match="math_memory_limit"):
        run_bounded(take, (100 << 20,), Limits(10.0, 64 << 20))
    assert run_bounded(take, (100 << 20,), LIMITS) == 100 << 20
    assert run_bounded(take, (600 << 20,), Limits(10.0, 2 << 30)) == 600 << 20


def change_state() -> int:
    import mpmath
    from sympy.core.parameters import global_parameters
    from sympy.core.random import rng

    random.seed(time.monotonic())
    rng.seed(time.monotonic())
    mpmath.mp.prec = 200
    global_parameters.evaluate = False
    sys.setrecursionlimit(5000)
    sys.set_int_max_str_digits(10_000)
    return os.getpid()


def state() -> list[Any]:
    import mpmath
    from sympy.core.parameters import global_parameters
    from sympy.core.random import rng

    numbers = [random.random(), rng.random(), mpmath.mp.prec, global_parameters.evaluate]
    return [os.getpid(), *numbers, sys.getrecursionlimit(), sys.get_int_max_str_digits()]


def test_each_answer_begins_in_the_same_state() -> None:
    symbolic.prepare()
    run_bounded(state, (), LIMITS)
    child = run_bounded(change_state, (), LIMITS)
    first = run_bounded(state, (), LIMITS)
    assert first[0] == child
    assert run_bounded(change_state, (), LIMITS) == child
    assert run_bounded(state, (), LIMITS) == first


def pi_is_positive_after(code: str) -> bool:
    import sympy
    from sympy.parsing import sympy_parser

    sympy_parser.parse_expr(code)
    return bool(sympy.pi.default_assumptions.get("positive"))


def test_what_an_answer_breaks_is_not_seen_by_the_next() -> None:
    symbolic.prepare()
    harmless = "2*pi + sqrt(3)*x - sin(y)**2 + 0.5"
    assert run_bounded(pi_is_positive_after, (harmless,), LIMITS) is True
    child = child_now()
    assert run_bounded(pi_is_positive_after, (harmless,), LIMITS) is True
    assert child_now() == child
    assert run_bounded(pi_is_positive_after, ("[pi.default_assumptions.clear()]",), LIMITS) is False
    assert run_bounded(pi_is_positive_after, (harmless,), LIMITS) is True
    assert child_now() != child


@pytest.mark.parametrize("code", ["pi.clear()", "(y := 3)", "x.y", "f(1)", "S('1')", "open('x')", "init(1)", "m"])
def test_code_that_does_more_than_mathematics_is_doubtful(code: str) -> None:
    import sympy

    names = {**vars(sympy), "f": print, "open": open, "init": sympy.init_printing, "m": [], "x": sympy.Symbol("x")}
    assert is_doubtful(compile(code, "", "eval"), names)
    for harmless in ("x + 2*pi", "Add(x, sqrt(2), evaluate=False)", "Integer(3)/Symbol('y')", "(1, E, I, unknown)"):
        assert not is_doubtful(compile(harmless, "", "eval"), names)


def test_the_order_of_answers_does_not_matter() -> None:
    pairs = [("x^2-1", "(x-1)(x+1)"), ("1.0", "1"), (r"\frac{x}{2}", "0.5x"), (r"\sin(x)^2+\cos(x)^2", "1")]
    pairs += [(r"2^{1.0x}", "2^x"), ("f(x)", "x"), ("(1,2)", r"\{1,2\}"), (r"x\leq 5", r"5\geq x"), ("y=x", "x=y")]
    cases = [(f"\\boxed{{{gold}}}", f"\\boxed{{{answer}}}", LIMITS) for gold, answer in pairs]
    verdicts = [symbolic.verify_text(*case) for case in cases]
    child = child_now()
    assert [symbolic.verify_text(*case) for case in reversed(cases)] == verdicts[::-1]
    assert child_now() == child
    fresh = []
    for case in cases:
        kill_child(child_now())
        fresh.append(symbolic.verify_text(*case))
    assert fresh == verdicts


def test_a_fork_of_the_owner_has_a_child_of_its_own() -> None:
    first = child_now()
    read_end, write_end = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.write(write_end, b"%d" % child_now())
        finally:
            os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    other = int(os.read(read_end, 100))
    os.close(read_end)
    os.close(write_end)
    assert other != first and child_now() == first
    assert_ends(other)


def test_a_thread_that_ends_takes_its_child_along_and_nobody_notices() -> None:
    run_bounded(divmod, (5, 2), LIMITS)
    kill_child(child_now())
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(child_now()))
    thread.start()
    thread.join(60)
    assert_ends(found[0])
    assert child_now() != found[0]


def test_a_job_whose_child_ends_with_another_thread_is_done_again() -> None:
    run_bounded(sorted, ([2, 1],), LIMITS)
    run_bounded(pid_but_not, (0,), LIMITS)
    kill_child(child_now())
    started, leave, found = threading.Event(), threading.Event(), []

    def fork_and_leave() -> None:
        found.append(child_now())
        started.set()
        leave.wait(60)

    thread = threading.Thread(target=fork_and_leave)
    thread.start()
    assert started.wait(60)
    threading.Timer(0.2, leave.set).start()
    assert run_bounded(pid_but_not, (found[0],), LIMITS) not in (found[0], os.getpid())
    thread.join(60)


def pid_but_not(process: int) -> int:
    """In that process it takes too long."""
    if os.getpid() == process:
        time.sleep(15)
    return os.getpid()


OWNER = """
import os, sys
from areal_x.reward.math.bounded_child import Limits, run_bounded

print(run_bounded(os.getpid, (), Limits(10.0)), flush=True)
{end}
"""


@pytest.mark.parametrize(
    "end", ["", "os._exit(1)", "os.kill(os.getpid(), 9)", "run_bounded(pow, (7, 10**9), Limits(60))"]
)
def test_the_child_ends_with_its_owner(end: str) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER.format(end=end)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        if "pow" in end:
            children = Path(f"/proc/{owner.pid}/task/{owner.pid}/children")
            deadline = time.monotonic() + 30
            while (busy := children.read_text().split()) in ([], [str(child)]):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            owner.kill()
            child = int(busy[-1])
        owner.wait(60)
    assert_ends(child)


def grade_and_tell(completions: str, answer: str) -> list[Any]:
    value = get_reward_fn("math", time_limit=4.0)(completions=completions, answer=answer)
    return [value.value, value.metadata.get("reason"), os.getpid(), child_now()]


async def test_a_worker_of_the_pool_keeps_its_child_and_is_kept() -> None:
    async with ProcessPool(1) as pool:
        function = await pool.register(grade_and_tell)
        answers = [r"\boxed{(x-1)(x+1)}", r"\boxed{x^2}", r"\boxed{2^{10^9}}", r"\boxed{-1+x^2}"]
        results = [await pool.call(function, {"completions": text, "answer": "x^2-1"}, 60.0) for text in answers]
        assert [result.status for result in results] == ["ok"] * 4
        values = [result.value for result in results]
        assert [value[:2] for value in values] == [[1, None], [0, None], [0, "math_time_limit"], [1, None]]
        assert len({value[2] for value in values}) == 1
        assert values[0][3] == values[1][3] != values[2][3] == values[3][3]
        wrapper = AsyncRewardWrapper(get_reward_fn("math"), pool=pool)
        assert (await wrapper.outcome("", r"\boxed{x+x}", answer="2x")).value == 1.0
