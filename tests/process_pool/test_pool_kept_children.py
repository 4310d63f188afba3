"""A helper process that a function keeps does not cost the worker; what else a call leaves behind still does."""

from __future__ import annotations

import subprocess
import sys

from pool_functions import describe_worker, keep_a_child, leave_a_child


def test_a_worker_with_a_kept_child_stays(run_with_pool):
    async def test(pool):
        keep, where = await pool.register(keep_a_child), await pool.register(describe_worker)
        first = (await pool.call(where, {}, 10)).value
        assert [(await pool.call(keep, {}, 10)).status for _ in range(2)] == ["ok", "ok"]
        assert [(await pool.call(where, {}, 10)).value for _ in range(3)] == [first] * 3

    run_with_pool(test, num_workers=1)


def test_a_leftover_beside_a_kept_child_costs_the_worker(run_with_pool):
    async def test(pool):
        keep, leave = await pool.register(keep_a_child), await pool.register(leave_a_child)
        where = await pool.register(describe_worker)
        first = (await pool.call(where, {}, 10)).value
        assert (await pool.call(keep, {}, 10)).status == "ok"
        assert (await pool.call(leave, {}, 10)).status == "ok"
        assert (await pool.call(where, {}, 10)).value != first

    run_with_pool(test, num_workers=1)


COUNTS = """
import os, signal
from areal_x.process_pool import keep_child, forget_child
from areal_x.process_pool.kept_children import has_leftovers

def child():
    pid = os.fork()
    if pid == 0:
        signal.pause()
    return pid

def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

assert not has_leftovers()
kept = child()
assert has_leftovers()
assert keep_child(kept) and not has_leftovers()
other = child()
assert has_leftovers()
end(other)
assert not has_leftovers()
other = child()
end(kept)
assert has_leftovers()
assert keep_child(other) and not has_leftovers()
os.kill(other, signal.SIGKILL)
os.waitpid(other, 0)
other = child()
assert has_leftovers()
keep_child(other)
forget_child(other)
assert has_leftovers()
end(other)
assert not has_leftovers()
"""


def test_what_is_left_is_counted_whoever_reaps_and_ends():
    done = subprocess.run([sys.executable, "-c", COUNTS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
