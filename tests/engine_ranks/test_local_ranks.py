"""Ranks that are processes of this machine: what they answer, and how they end."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from areal_x.api.errors import ConfigError, EngineDiedError, EngineError
from areal_x.engine.ranks import exchange, local_ranks
from areal_x.engine.ranks.local_ranks import LocalRanks

ROLE = "rank_roles:Role"


@pytest.fixture(scope="module")
def ranks() -> Iterator[LocalRanks]:
    """Two ranks that every test leaves as it found them."""
    group = LocalRanks(2, sequence_parallel=2, num_threads=1, timeout_seconds=400)
    group.build("role", ROLE, {"factor": 10})
    yield group
    group.close()


@contextmanager
def doomed_ranks(log_dir: Path | None = None) -> Iterator[LocalRanks]:
    """Two ranks for a test that ends them."""
    group = LocalRanks(2, timeout_seconds=400, log_dir=log_dir)
    try:
        group.build("role", ROLE, {})
        yield group
    finally:
        group.close()
        assert still_running(group.pids) == []


def still_running(pids: list[int], seconds: float = 60) -> list[str]:
    """State and command of the processes that do not end in time."""
    deadline = time.monotonic() + seconds
    found = []
    for pid in pids:
        try:
            end = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([end], [], [], max(0, deadline - time.monotonic()))[0]:
                process = psutil.Process(pid)
                found.append(f"{pid} {process.status()} {' '.join(process.cmdline())}")
        finally:
            os.close(end)
    return found


def death_of(call: Callable[[], object]) -> EngineDiedError:
    """The error of a call that must fail because ranks ended, in time."""
    started = time.monotonic()
    with pytest.raises(EngineDiedError) as caught:
        call()
    assert time.monotonic() - started < 100
    return caught.value


def close_in_call(group: LocalRanks) -> None:
    """Close once a call is under way."""
    while not group._calling.locked():
        time.sleep(0.01)
    time.sleep(0.5)
    group.close()


def test_results_come_in_the_order_of_ranks(ranks: LocalRanks) -> None:
    assert ranks.num_ranks == 2 and ranks.same_host
    assert ranks.call("role", "place") == [(0, 2, 0, 1, 0), (1, 2, 0, 1, 1)]
    assert ranks.call("role", "add", 1, 2) == [30, 30]
    assert ranks.call("role", "add", per_rank=[(1, 2), (3, 4)]) == [30, 70]


def test_ranks_compute_together(ranks: LocalRanks) -> None:
    assert ranks.call("role", "sum_of_ranks") == [3.0, 3.0]
    assert ranks.call("role", "sequence_sum") == [1.0, 1.0]
    assert ranks.call("role", "threads_and_limits") == [(1, "1", "")] * 2


def test_arrays_arrive_whole_and_each_rank_has_its_own(ranks: LocalRanks) -> None:
    values = np.arange(3_000_001, dtype=np.float32)
    first, second = ranks.call("role", "double", values)
    np.testing.assert_array_equal(first, 2 * np.arange(3_000_001, dtype=np.float32))
    np.testing.assert_array_equal(second, first)
    assert values[1] == 1.0


def test_what_all_ranks_raise_is_raised_and_they_go_on(ranks: LocalRanks) -> None:
    with pytest.raises(ConfigError, match=r"^no such thing\n"):
        ranks.call("role", "fail", "no such thing")
    with pytest.raises(EngineError, match="UnpicklableError: 1 and 2"):
        ranks.call("role", "fail_unpicklable")
    with pytest.raises(EngineError, match="result cannot be sent"):
        ranks.call("role", "give_unpicklable")
    with pytest.raises(EngineError, match="no role 'critic'; it has role"):
        ranks.call("critic", "score")
    with pytest.raises(ConfigError, match="nowhere"):
        ranks.build("other", "rank_roles:failing_factory", {"rank": None})
    assert ranks.call("role", "sum_of_ranks") == [3.0, 3.0]


def test_a_killed_rank_ends_the_others_and_says_what_it_printed(tmp_path: Path) -> None:
    with doomed_ranks(log_dir=tmp_path / "ranks") as group:
        descendants = group.call("role", "start_child")
        death = death_of(lambda: group.call("role", "kill_on", 1))
        assert re.match(r"rank 1 of 2 was killed by SIGKILL .*in role\.kill_on; all ranks are stopped\n", str(death))
        assert "the last line before the end" in death.tail
        assert "the last line before the end" in (tmp_path / "ranks" / "rank1.log").read_text()
        assert "rank 1 of 2 was killed" in str(death_of(lambda: group.call("role", "place")))
    assert still_running(descendants) == []


def test_an_exception_on_one_rank_alone_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_OTHERS_SECONDS", 1.0)
    with doomed_ranks() as group:
        death = death_of(lambda: group.call("role", "fail_on", 1))
        assert "rank 1 of 2 raised ValueError in role.fail_on, and not all others did: rank 1 has had enough" in str(
            death
        )
        assert "in fail_on" in death.tail, "the traceback on the rank is missing"
        assert isinstance(death.__cause__, ValueError)


def test_one_rank_that_cannot_be_built_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_OTHERS_SECONDS", 200.0)
    with doomed_ranks() as group:
        death = death_of(lambda: group.build("other", "rank_roles:failing_factory", {"rank": 0}))
        assert "rank 0 of 2 raised ConfigError in making other" in str(death)


def test_a_hang_ends_after_the_time_and_shows_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ranks, "_STACKS_SECONDS", 3.0)
    with doomed_ranks(log_dir=tmp_path) as group:
        group._timeout = 4.0
        death = death_of(lambda: group.call("role", "sleep_on", 0, 1000.0))
        assert "role.sleep_on: no answer within 4 s (train.rank_timeout_seconds) of rank 0, 1 of 2" in str(death)
        assert "in sleep_on" in death.tail, "the stack of the rank that sleeps is missing"


def test_closing_ends_a_call_that_is_under_way_and_a_watch() -> None:
    with doomed_ranks() as group:
        watching = threading.Thread(target=group.watch)
        watching.start()
        closing = threading.Thread(target=close_in_call, args=(group,))
        closing.start()
        death = death_of(lambda: group.call("role", "sleep_on", 0, 1000.0))
        assert "closed while role.sleep_on ran" in str(death)
        closing.join(60)
        watching.join(60)
        assert not watching.is_alive() and not closing.is_alive()
        assert "closed" in str(death_of(lambda: group.call("role", "place")))


def test_a_death_between_calls_is_heard_by_who_watches() -> None:
    with doomed_ranks() as group:
        threading.Timer(0.3, os.kill, (group.pids[0], signal.SIGTERM)).start()
        death = death_of(group.watch)
        assert "rank 0 of 2 was killed by SIGTERM" in str(death)
        assert still_running(group.pids) == []


def test_ranks_that_do_not_meet_are_an_error() -> None:
    with pytest.raises(EngineDiedError, match=r"no answer within 0\.1 s .* of rank 0, 1 of 2"):
        LocalRanks(2, timeout_seconds=0.1)


_DRIVER = """
import sys
from areal_x.engine.ranks import exchange
from areal_x.engine.ranks.local_ranks import LocalRanks
group = LocalRanks(2, timeout_seconds=400)
group.build("role", "rank_roles:Role", {})
print(*group.pids, *group.call("role", "start_child"), flush=True)
group.call("role", "sleep_on", 0, 1000.0)
"""


def test_ranks_do_not_outlive_a_killed_driver() -> None:
    with subprocess.Popen([sys.executable, "-c", _DRIVER], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        pids = [int(pid) for pid in driver.stdout.readline().split()]
        driver.kill()
    assert len(pids) == 4
    assert still_running(pids) == []
