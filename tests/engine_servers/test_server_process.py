"""A server's process: started, watched and ended with everything below it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from process_trees import LONGEST, environment, lives, tree_command, wait_for_tree, wait_until_gone

from areal_x.api.errors import EngineError
from areal_x.engine.servers.server_process import ServerProcess


def start(folder: Path, depth: int = 0, *manners: str) -> tuple[ServerProcess, list[int]]:
    process = ServerProcess(tree_command(folder / "pids", depth, *manners), environment(), folder / "logs/server.log")
    return process, wait_for_tree(folder / "pids", depth + 1)


def python(code: str, log: Path, **variables: str) -> ServerProcess:
    return ServerProcess([sys.executable, "-c", code], {**environment(), **variables}, log)


async def test_stop_ends_the_server_and_descendants_in_sessions_of_their_own(tmp_path: Path) -> None:
    process, pids = start(tmp_path, 2)
    assert process.pid in pids and process.status is None
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    await process.stop()
    assert not any(map(lives, pids))
    assert process.status == await process.wait() == -signal.SIGTERM


async def test_who_ignores_sigterm_gets_sigkill_after_the_grace(tmp_path: Path) -> None:
    process, pids = start(tmp_path, 2, "deaf")
    began = time.monotonic()
    await process.stop(grace_seconds=0.5)
    assert time.monotonic() - began >= 0.5
    assert not any(map(lives, pids)) and process.status == -signal.SIGKILL


async def test_kill_does_not_wait(tmp_path: Path) -> None:
    process, pids = start(tmp_path, 1, "deaf")
    process.kill()
    async with asyncio.timeout(LONGEST):
        assert await process.wait() == -signal.SIGKILL
    assert not any(map(lives, pids))
    process.kill()
    await process.stop()


async def test_a_server_that_ends_takes_what_it_left_behind_with_it(tmp_path: Path) -> None:
    process, pids = start(tmp_path, 2)
    waiters = [asyncio.create_task(process.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    os.kill(process.pid, signal.SIGKILL)
    async with asyncio.timeout(LONGEST):
        assert await asyncio.gather(*waiters) == [-signal.SIGKILL] * 3
    assert not any(map(lives, pids))


async def test_the_exit_status_is_the_servers(tmp_path: Path) -> None:
    process = python("raise SystemExit(3)", tmp_path / "log")
    async with asyncio.timeout(LONGEST):
        assert await process.wait() == 3
    await process.stop()
    assert process.status == 3


async def test_cancelling_a_stop_does_not_stop_it(tmp_path: Path) -> None:
    process, pids = start(tmp_path, 1, "deaf")
    stopping = asyncio.create_task(process.stop(grace_seconds=0.3))
    await asyncio.sleep(0.05)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    async with asyncio.timeout(LONGEST):
        await process.wait()
    assert not any(map(lives, pids))


async def test_a_second_stop_may_be_less_patient(tmp_path: Path) -> None:
    process, _ = start(tmp_path, 0, "deaf")
    began = time.monotonic()
    await asyncio.gather(process.stop(grace_seconds=600.0), process.stop(grace_seconds=0.0))
    assert time.monotonic() - began < LONGEST


DRIVER = """
import sys, time
from pathlib import Path
from areal_x.engine.servers.server_process import ServerProcess
from process_trees import environment, tree_command
folder = Path(sys.argv[1])
process = ServerProcess(tree_command(folder / "pids", 2, "deaf"), environment(), folder / "log")
(folder / "guardian").write_text(str(process._guardian.pid))
if sys.argv[2] == "forks":
    import os
    # A child that holds every descriptor of the driver must not keep the server alive.
    if os.fork() == 0:
        (folder / "fork").write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.parametrize("manner", ["alone", "forks"])
def test_all_end_when_the_driver_is_killed(tmp_path: Path, manner: str) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), manner], env={**os.environ, "PYTHONPATH": path}
    )
    (tmp_path / "pids").mkdir(exist_ok=True)
    pids = wait_for_tree(tmp_path / "pids", 3)
    until = time.monotonic() + LONGEST
    expected = tmp_path / ("fork" if manner == "forks" else "guardian")
    while not (expected.exists() and expected.read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    wait_until_gone([*pids, int((tmp_path / "guardian").read_text())])
    if manner == "forks":
        os.kill(int((tmp_path / "fork").read_text()), signal.SIGKILL)


async def test_the_server_ends_when_its_guardian_is_killed(tmp_path: Path) -> None:
    process, _ = start(tmp_path)
    os.kill(process._guardian.pid, signal.SIGKILL)
    async with asyncio.timeout(LONGEST):
        assert await process.wait() == -signal.SIGKILL
    wait_until_gone([process.pid])


def test_dropping_it_ends_the_server(tmp_path: Path) -> None:
    process, pids = start(tmp_path, 1, "deaf")
    del process
    gc.collect()
    wait_until_gone(pids)


async def test_an_interrupt_of_the_driver_is_not_the_servers(tmp_path: Path) -> None:
    process, _ = start(tmp_path)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process._guardian.pid, number)
    await asyncio.sleep(0.2)
    assert process.status is None and lives(process.pid)
    await process.stop()


async def test_the_server_inherits_no_deafness(tmp_path: Path) -> None:
    """The guardian handles signals; the server must find them as they are by default."""
    code = "import signal as s; print([s.getsignal(n) is s.SIG_DFL for n in (s.SIGTERM, s.SIGHUP, s.SIGCHLD)])"
    process = python(code, tmp_path / "log")
    await process.wait()
    assert process.tail() == "[True, True, True]"


async def test_the_log_of_each_start_is_added_and_the_tail_is_of_this_start(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server_0.log"
    first = python("print('of the first')", log)
    await first.wait()
    second = python("import sys; print(*range(100), sep='\\n'); sys.exit('the cause')", log)
    assert await second.wait() == 1
    assert "of the first" in log.read_text() and log.read_text().count("====") == 2
    assert second.tail().endswith("98\n99\nthe cause") and len(second.tail().splitlines()) == 30
    long = python("print('x' * 10**6, 'end', sep='\\n')", log)
    await long.wait()
    assert long.tail() == "x" * 400 + "\nend"
    third = python("pass", log)
    await third.wait()
    assert third.tail() == ""
    log.unlink()
    assert second.tail() == ""


async def test_secrets_of_the_environment_are_in_no_log_and_no_repr(tmp_path: Path) -> None:
    process = python("import os; print(len(os.environ['KEY']))", tmp_path / "log", KEY="sesame-123456")
    await process.wait()
    assert process.tail() == "13"
    assert "sesame" not in (tmp_path / "log").read_text() + repr(process)


async def test_no_descriptors_are_inherited(tmp_path: Path) -> None:
    with (tmp_path / "mine").open("w") as mine:
        os.set_inheritable(mine.fileno(), True)
        process = python("import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))", tmp_path / "log")
        assert await process.wait() == 0
    # The last one is that of the listed folder.
    assert len([fd for fd in eval(process.tail()) if fd not in (0, 1, 2)]) == 1


def test_a_command_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"No such file.*no-such-server") as caught:
        ServerProcess([str(tmp_path / "no-such-server")], environment(), tmp_path / "log")
    assert "log" in str(caught.value)


async def test_variables_of_the_servers_python_do_not_reach_the_guardian(tmp_path: Path) -> None:
    """PYTHONPATH and PYTHONHOME of a server's environment name other modules."""
    (tmp_path / "areal_x.py").write_text("raise SystemExit('wrong module')")
    process = python("print('fine')", tmp_path / "log", PYTHONPATH=str(tmp_path))
    assert await process.wait() == 0 and process.tail() == "fine"


def test_a_log_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    log_path = tmp_path / "server.log"
    log_path.symlink_to("/dev/full")
    with pytest.raises(EngineError, match=r"server\.log, the log of a server.*No space left.*free some space"):
        ServerProcess(["/bin/sleep", "60"], {}, log_path)
    with pytest.raises(EngineError, match="Not a directory"):
        ServerProcess(["/bin/sleep", "60"], {}, log_path / "below" / "it.log")
