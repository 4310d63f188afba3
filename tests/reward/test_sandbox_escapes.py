"""Each escape attempt does what it tries without the sandbox, and nothing in it; nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from sandbox_escapes import ATTEMPTS
from sandbox_escapes.attempt import Attempt, Scene

from areal_x.reward.sandbox import Limits, Sandbox

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


def helpers() -> list[int]:
    """Processes of the sandbox: they have the helper's command line, like everything forked from it."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if HELPER in (entry / "cmdline").read_text():
                    pids.append(int(entry.name))
            except OSError:
                continue
    return sorted(pids)


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
        assert set(helpers()) - set(others) == set(own), "processes are left of the runs, or the helper did not survive"
        scene.clean()
        assert traces() == before
    finally:
        await box.close()
        for handle in handles:
            os.close(handle)
        del os.environ["SECRET"]
    assert set(helpers()) <= set(others)


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
        called = await sandbox.call(program + "\ndef f(x): return x", "f", [1])
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


async def test_the_corpus_is_large_enough_and_has_no_twins() -> None:
    assert len(ATTEMPTS) >= 60
    assert (
        len({attempt.name for attempt in ATTEMPTS}) == len({attempt.program for attempt in ATTEMPTS}) == len(ATTEMPTS)
    )
    assert subprocess.run(["true"], check=True).returncode == 0
