"""Each escape attempt does what it tries without the sandbox, and nothing in it; nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from sandbox_escapes import ATTEMPTS
from sandbox_escapes.attempt import PYTHON, Attempt, Scene

from areal_x.reward.sandbox import Limits, Sandbox

PATIENT = Limits(seconds=20.0)
LIMITS = Limits(seconds=0.5, memory_mb=200, disk_mb=8, files=300, open_files=128, output_kb=1024)
HELPER = "from child.runner import main"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"))
    made.folder.chmod(0o755)
    yield made
    made.close()


def traces() -> dict[str, object]:
    """What the machine has of what programs might leave: processes of the sandbox, mounts, files, IPC objects."""
    found: dict[str, object] = {"mounts": Path("/proc/self/mountinfo").read_text()}
    for folder in ("/tmp", "/dev/shm", "/"):
        found[folder] = sorted(name for name in os.listdir(folder) if "escape" in name)
    for kind in ("shm", "msg", "sem"):
        found[kind] = Path(f"/proc/sysvipc/{kind}").read_text()
    return found


def parents(pid: int) -> list[int]:
    """The parents of a process, the nearest first."""
    found: list[int] = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def helpers() -> set[int]:
    """Processes of the sandbox: they have the helper's command line, like everything forked from it.

    Those that another program has started, such as other tests at the same time, are not meant. A process that has
    lost its parents may be anybody's, so it counts.
    """
    above, found = {*parents(os.getpid()), 0}, set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if HELPER in (entry / "cmdline").read_text():
                    others = [pid for pid in parents(int(entry.name)) if pid not in above]
                    if not others or os.getpid() in others or HELPER in Path(f"/proc/{others[-1]}/cmdline").read_text():
                        found.add(int(entry.name))
            except OSError:
                continue
    return found


async def helpers_become(wanted: Callable[[], bool]) -> bool:
    """Whether it is so soon: a process that was killed takes a moment to go."""
    end = time.monotonic() + 20.0
    while not wanted() and time.monotonic() < end:
        await asyncio.sleep(0.02)
    return wanted()


def of(link_pid: int) -> list[int]:
    """The helper's own processes: the one that waits and the one that serves."""
    children = Path(f"/proc/{link_pid}/task/{link_pid}/children").read_text().split()
    return [link_pid, *map(int, children)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(scene: Scene) -> AsyncIterator[Sandbox]:
    os.environ["SECRET"] = scene.token
    handles = scene.inheritable()
    before, others = traces(), helpers()
    box = Sandbox(1, LIMITS)
    try:
        await box.start()
        own = of(box._links[0]._process.pid)  # type: ignore[union-attr]
        yield box
        assert await helpers_become(lambda: helpers() - others == set(own)), (
            "processes are left of the runs, or the helper did not survive"
        )
        scene.clean()
        assert traces() == before
    finally:
        await box.close()
        for handle in handles:
            os.close(handle)
        del os.environ["SECRET"]
    assert await helpers_become(lambda: helpers() <= others)


async def attempt_inside(attempt: Attempt, scene: Scene, sandbox: Sandbox) -> str:
    if attempt.before:
        await sandbox.run(attempt.text(scene, attempt.before))
    program = attempt.text(scene, attempt.program)
    result = await sandbox.run(program, stdin="y")
    output = result.stdout
    if attempt.kind == "parent":
        # Its parent is the first process of its namespace, and the helper's life is checked at the end.
        output += "PARENT LIVES"
    if attempt.kind == "grader":
        called = await sandbox.call(program + "\ndef f(x): return x", "f", [1], PATIENT)
        checked = await sandbox.check(program + "\ndef f(x): return x", f"assert f(1) == {scene.token!r}")
        assert called.returned and not checked.passed
        output += called.stdout + checked.stdout
    return output


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
async def test_attempt_fails_inside_and_only_there(attempt: Attempt, scene: Scene, sandbox: Sandbox) -> None:
    if attempt.needs_root and os.geteuid() != 0:
        pytest.skip("without the sandbox it works for root only")
    scene.clean()
    if attempt.victim:
        scene.new_victim()
    output = await asyncio.to_thread(attempt.run_unprotected, scene)
    assert attempt.succeeded(scene, output), f"it does not work without the sandbox either: {output!r}"
    scene.clean()
    if attempt.victim:
        scene.new_victim()
    output = await attempt_inside(attempt, scene, sandbox)
    assert not attempt.succeeded(scene, output), output[:1000]


AS_NOBODY = """
import asyncio, os, sys
import concurrent.futures
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_sandbox_escapes
from areal_x.reward.sandbox import Sandbox
from sandbox_escapes import ATTEMPTS, attempt
folder, python, mode = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
attempt.PYTHON = python
attempts = ATTEMPTS
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
if mode == "bubblewrap":
    attempt.deny_unshare()
    # Each takes the start of an interpreter, so a part of them; and it has no means against three.
    weaker = ("execute_own_binary", "execute_own_binary_by_loader", "many_files")
    attempts = [one for one in ATTEMPTS[::4] if one.name not in weaker]
async def main():
    scene = attempt.Scene(folder)
    async with Sandbox(1, test_sandbox_escapes.LIMITS, python=python) as sandbox:
        assert sandbox._links[0].mode == mode
        for one in attempts:
            scene.clean()
            if one.victim:
                scene.new_victim()
            output = await test_sandbox_escapes.attempt_inside(one, scene, sandbox)
            if one.succeeded(scene, output):
                print("GOT OUT:", one.name, output[:300])
    scene.close()
    print("all tried")
asyncio.run(main())
"""


def readable_python() -> str | None:
    """An interpreter that every user may start; the tests' own may lie in somebody's home."""
    for name in (PYTHON, "/usr/bin/python3", "/usr/local/bin/python3"):
        code = "import os, sys; os.setuid(65534); os.execv(sys.argv[1], [sys.argv[1], '-c', sys.argv[2]])"
        words = [sys.executable, "-c", code, name, "import sys; sys.exit(sys.version_info < (3, 11))"]
        if subprocess.run(words, capture_output=True, check=False).returncode == 0:
            return name
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
@pytest.mark.parametrize("mode", ["user", "bubblewrap"])
async def test_no_attempt_gets_out_of_an_ordinary_users_sandbox(mode: str) -> None:
    if mode == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    python = readable_python()
    if python is None:
        pytest.skip("there is no Python 3.11 or later that an ordinary user may start")
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 65534, 65534)
        words = [sys.executable, "-c", AS_NOBODY, str(Path(__file__).parent), folder, python, mode]
        done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, timeout=140, check=False)
        for path in Path(folder).iterdir():
            path.unlink()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all tried\n"


async def test_the_corpus_is_large_enough_and_has_no_twins() -> None:
    assert len(ATTEMPTS) >= 60
    assert (
        len({attempt.name for attempt in ATTEMPTS}) == len({attempt.program for attempt in ATTEMPTS}) == len(ATTEMPTS)
    )
