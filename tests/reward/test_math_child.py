"""The bounded child: nothing that a job does outlives its deadline, takes too much memory, or reaches the machine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.reward_api import AsyncRewardWrapper
from areal_x.process_pool import ProcessPool
from areal_x.reward import get_reward_fn
from areal_x.reward.math.bounded_child import ChildError, LimitReached, Limits, run_bounded
from areal_x.reward.math.child_guard import UnsafeAnswerError, evaluate_answer
from areal_x.reward.math.slime_grader import grade_strings

SHORT, LONG = Limits(time_limit=0.2), Limits(time_limit=20.0)


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_job_gives_its_value() -> None:
    assert run_bounded(lambda: {"a": [1, 2.5, None, "x"]}, (), LONG) == {"a": [1, 2.5, None, "x"]}


def endless() -> None:
    while True:
        pass


def holds_the_lock() -> int:
    return 7 ** (2 * 10**7)  # In C: no signal handler and no other thread of this process runs meanwhile.


def stops_itself() -> None:
    signal.raise_signal(signal.SIGSTOP)


def closes_everything() -> None:
    os.closerange(0, 100)
    time.sleep(60)


@pytest.mark.parametrize("job", [endless, holds_the_lock, stops_itself, lambda: time.sleep(60)])
def test_the_deadline_holds_whatever_the_job_does(job: Callable[[], Any]) -> None:
    before, begin = children(), time.monotonic()
    with pytest.raises(LimitReached) as caught:
        run_bounded(job, (), SHORT)
    assert caught.value.reason == "math_time_limit"
    assert time.monotonic() - begin < 20.0
    assert children() <= before


def test_a_child_that_ends_without_an_answer_is_a_fault_or_a_limit() -> None:
    with pytest.raises(LimitReached, match="math_time_limit"):
        run_bounded(closes_everything, (), SHORT)
    with pytest.raises(LimitReached, match="math_memory_limit"):
        run_bounded(lambda: signal.raise_signal(signal.SIGKILL), (), LONG)  # As the kernel's memory killer does.
    with pytest.raises(ChildError, match="wait status"):
        run_bounded(lambda: os._exit(3), (), LONG)
    with pytest.raises(LimitReached) as caught:
        run_bounded(lambda: os.abort(), (), LONG)
    assert caught.value.reason == "math_memory_limit"


def test_memory_is_bounded() -> None:
    with pytest.raises(LimitReached) as caught:
        run_bounded(lambda: len(bytearray(2 << 30)), (), Limits(20.0, 64 << 20))
    assert caught.value.reason == "math_memory_limit"


def test_recursion_is_a_limit_and_an_error_is_an_error() -> None:
    def deeper() -> int:
        return deeper() + 1

    with pytest.raises(LimitReached) as caught:
        run_bounded(deeper, (), LONG)
    assert caught.value.reason == "math_too_deep"
    with pytest.raises(ChildError, match="KeyError: 'nothing'"):
        run_bounded(lambda: {}["nothing"], (), LONG)


def test_it_works_in_threads_at_the_same_time() -> None:
    results: list[Any] = []

    def work(number: int) -> None:
        results.append(run_bounded(abs, (number,), Limits(10.0)))
        try:
            run_bounded(holds_the_lock, (), SHORT)
        except LimitReached as limit:
            results.append(limit.reason)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results, key=str) == [0, 1, 2, 3, *["math_time_limit"] * 4]


@pytest.mark.parametrize(
    "job",
    [
        lambda: os.system("true"),
        lambda: os.fork(),
        lambda: os.remove("victim"),
        lambda: open("victim", "w").close(),
        lambda: Path("victim").write_text("x"),
        lambda: os.open("victim", os.O_CREAT | os.O_WRONLY),
        lambda: __import__("socket").socket(),
        lambda: __import__("subprocess").run(["true"]),
        lambda: __import__("ctypes").CDLL(None),
        lambda: os.kill(os.getppid(), 0),
        lambda: os.rename("victim", "other"),
    ],
)
def test_the_machine_is_out_of_reach(job: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("victim").write_text("safe")
    with pytest.raises(ChildError, match="PermissionError"):
        run_bounded(job, (), Limits(10.0))
    assert Path("victim").read_text() == "safe" and os.listdir() == ["victim"]


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os')",
        "().__class__",
        "x.__class__.__base__.__subclasses__()",
        "open('/etc/passwd')",
        "eval('1')",
        "(lambda: 1)()",
        "[a for a in (1, 2)]",
        "getattr(x, 'y')",
        "_x",
    ],
)
def test_evaluated_text_reaches_no_builtin(code: str) -> None:
    with pytest.raises((UnsafeAnswerError, NameError)):
        evaluate_answer(code, {}, {"x": 1})
    assert evaluate_answer("x + 1", {}, {"x": 1}) == 2


ATTACKS = [
    "__import__('os').system('touch victim')",
    "open('victim','w')",
    "().__class__.__mro__[1].__subclasses__()",
    "eval('1')",
    r"\text{__import__('os').system('touch victim')}",
    "S('__import__(1)')",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_grader_runs_an_answer(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert grade_strings(attack, r"\frac{1}{3}", Limits(10.0)) is False
    for name, options in (
        ("math", {}),
        ("math", {"compat": "areal"}),
        ("math", {"compat": "slime"}),
        ("deepscaler", {}),
    ):
        result = get_reward_fn(name, **options)(completions=f"\\boxed{{{attack}}}", answer=r"x+\frac{1}{3}")
        assert getattr(result, "value", result) == 0
    assert os.listdir() == []


async def test_in_a_pool_worker_a_limit_is_a_verdict_and_nothing_is_left() -> None:
    async with ProcessPool(1) as pool:
        reward = AsyncRewardWrapper(get_reward_fn("math", time_limit=0.5, limit_value=-0.5), pool=pool)
        hang = await reward.outcome("", r"\boxed{2^{10^9}}", answer=r"\frac12")
        assert (hang.status, hang.value, hang.metadata["reason"]) == ("ok", -0.5, "math_time_limit")
        equal = await reward.outcome("", r"\boxed{(x-1)(x+1)}", answer="x^2-1")
        assert (equal.status, equal.value) == ("ok", 1.0)
        again = await reward.outcome("", r"\boxed{72}", answer="72")
        assert again.value == 1.0
