"""A child that ends before its first job is no verdict on a text, and threads are served in spite of it."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys

import pytest

from areal_x.reward.math import child_process
from areal_x.reward.math.bounded_child import ChildError, Limits, run_bounded

# What the main thread keeps for itself is cleared in the fork of another thread. Here that ends it, or hangs it.
FORKS_OF_A_THREAD = """
import os, signal, threading, time
from areal_x.reward import get_reward_fn
from areal_x.reward.math import child_process

child_process.FORK_SECONDS = 3.0
owner = os.getpid()

class Kept:
    def __del__(self):
        if os.getpid() != owner:
            {end}

def work(answers):
    reward = get_reward_fn("math", time_limit=4.0)
    for answer in answers:
        result = reward(completions=chr(92) + "boxed{{" + answer + "}}", answer="x^2-1")
        print(result.value, result.metadata.get("reason"), flush=True)

local = threading.local()
local.kept = Kept()
for answers in (["(x-1)(x+1)", "x^2", "2^{{10^9}}", "-1+x^2"], ["(1+x)(x-1)"]):
    thread = threading.Thread(target=work, args=(answers,))
    thread.start()
    thread.join()
work(["x^2-2+1"])
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGSEGV)", "time.sleep(60)"])
def test_threads_whose_forks_do_not_live_are_served(end: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FORKS_OF_A_THREAD.format(end=end)], capture_output=True, text=True, timeout=120
    )
    lines = ["1.0 None", "0.0 None", "0.0 math_time_limit", "1.0 None", "1.0 None"]
    assert (run.returncode, run.stdout.splitlines()) == (0, [*lines, "1.0 None"]), run.stderr


def end_by(number: int) -> None:
    faulthandler.disable()
    signal.raise_signal(number)


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGKILL, "SIGKILL"), (signal.SIGSTOP, "not within 0.5 s")]
)
def test_an_end_before_the_first_job_is_a_fault(
    number: signal.Signals, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = Limits(10.0, (1 << 30) + number)  # More than the children before it have.
    with monkeypatch.context() as patched:
        patched.setattr(child_process, "FORK_SECONDS", 0.5 if number == signal.SIGSTOP else 30.0)
        patched.setattr(child_process, "run_child", lambda *_: end_by(number))
        with pytest.raises(ChildError, match=f"did not become ready.*{said}"):
            run_bounded(os.getpid, (), more)
    assert run_bounded(os.getpid, (), Limits(10.0)) != os.getpid()
