"""Runs model-written Python where it can do no harm.

    program, input ──memory files──▶ helper ──fork──▶ isolated process ──memory files──▶ output, read here

Consumes: calls of ``run``, ``call``, ``check`` and ``pytest``. Waits for: a free helper, then its reply; each run has a
deadline that the helper keeps, and a later one that is kept here. Produces: a record of how the program ended. What is
expected of a program never leaves this process (``run``, ``call``), or goes to a process of its own (``check``,
``pytest``).
"""

from __future__ import annotations

import ast
import asyncio
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Self, TypeVar

from areal_x.api.errors import ConfigError
from areal_x.reward.sandbox.child.values import InvalidValueError, Opaque, decode, dump, encode, load
from areal_x.reward.sandbox.files import new_output, read_output, sealed
from areal_x.reward.sandbox.limits import Limits
from areal_x.reward.sandbox.packages import installed_paths
from areal_x.reward.sandbox.results import (
    CallResult,
    CheckResult,
    PytestResult,
    RunResult,
    SandboxError,
    judge,
    limit_of_exception,
)
from areal_x.reward.sandbox.runner_link import RunnerLink

__all__ = ["Sandbox"]

_CHECKER_LIMITS = Limits(memory_mb=1024, output_kb=1024)
R = TypeVar("R", bound=RunResult)


class Sandbox:
    """A pool of helpers that run programs, on one event loop.

    Args:
        num_runners: programs that run at the same time; None: one for each core.
        limits: of each run, unless a call says otherwise.
        packages: installed distributions that programs may import beside the standard library, such as ``numpy``;
            what they require comes along.
        preload: modules to import once ahead of all runs, so that no run pays for it.
        python: the interpreter; None: the one that runs here, outside of its virtual environment.
    """

    def __init__(
        self,
        num_runners: int | None = None,
        limits: Limits | None = None,
        packages: Iterable[str] = (),
        preload: Iterable[str] = (),
        python: str | None = None,
    ) -> None:
        if num_runners is not None and num_runners < 1:
            raise ConfigError(f"num_runners must be at least 1, got {num_runners}")
        self.limits = limits or Limits()
        self.num_runners = num_runners or len(os.sched_getaffinity(0))
        self._python = python or getattr(sys, "_base_executable", None) or sys.executable
        self._packages = installed_paths(packages)
        self._preload = list(preload)
        self._links: list[RunnerLink] = []
        self._idle: list[RunnerLink] = []
        self._free = asyncio.Semaphore(0)

    async def start(self) -> None:
        """Start the helpers and prove with a first program that the isolation works.

        Raises:
            SandboxUnavailableError: it does not; the error says what is missing.
        """
        if self._links:
            return
        self._links = [RunnerLink(self._python, self._packages, self._preload) for _ in range(self.num_runners)]
        try:
            await self._links[0].start()  # Alone, so that a refusal is raised as it is.
            await asyncio.gather(*(link.start() for link in self._links[1:]))
        except BaseException:
            await self.close()
            raise
        self._idle = list(self._links)
        for _ in self._links:
            self._free.release()
        proof = await self.run("import os; print(os.getpid(), os.listdir('/tmp'))")
        if (proof.exit_code, proof.stdout) != (0, "2 []\n"):
            await self.close()
            raise SandboxError(f"the sandbox does not isolate as it should: {proof}")

    async def close(self) -> None:
        """End all helpers; runs in progress fail with a ``SandboxError``."""
        links, self._links, self._idle, self._free = self._links, [], [], asyncio.Semaphore(0)
        await asyncio.gather(*(link.close() for link in links))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def run(self, program: str, stdin: str = "", limits: Limits | None = None) -> RunResult:
        """Run ``program`` as a script.

        Raises:
            SandboxError: the sandbox itself failed, twice.
        """
        limits = limits or self.limits
        with _Files() as files:
            source, given = files.give(program), files.give(stdin)
            stdout, stderr = files.take(), files.take()
            member = _member("script", [given, stdout, stderr, source, -1, -1], limits)
            reply = await self._do(files, [member], limits.seconds)
            return files.result(RunResult, reply, 0, stdout, stderr, limits)

    async def call(self, program: str, name: str, args: Sequence[Any] = (), limits: Limits | None = None) -> CallResult:
        """Import ``program`` and call its function ``name`` (or that method of its class ``Solution``).

        Raises:
            SandboxError: the sandbox itself failed, twice.
            TypeError: an argument is not plain data.
        """
        limits = limits or self.limits
        request = dump(["call", ["n", name], encode(list(args), _refuse), ["d"]])
        with _Files() as files:
            source, asked = files.give(program), files.give(request)
            stdout, stderr, answer = files.take(), files.take(), files.take()
            member = _member("call", [-1, stdout, stderr, source, answer, asked], limits)
            reply = await self._do(files, [member], limits.seconds)
            result = files.result(CallResult, reply, 0, stdout, stderr, limits)
            data, size = read_output(files.fds[answer], limits.output_bytes)
        if size > limits.output_bytes:
            result.limit = result.limit or "output"
        if result.limit is None:
            _read_answer(data, result)
        return result

    async def check(self, program: str, test: str, setup: str = "", limits: Limits | None = None) -> CheckResult:
        """Import ``program`` and execute ``test``, which sees its names and passes if it raises nothing.

        The test runs in a process of its own and calls the program in another, so nothing that the program does to its
        process makes a test pass.

        Raises:
            SandboxError: the sandbox itself failed, twice.
            SyntaxError: ``test`` or ``setup`` is no Python.
        """
        for text, what in ((setup, "the test's setup"), (test, "the test")):
            ast.parse(text, what)
        limits = limits or self.limits
        order = {"setup": setup, "code": test}
        result, report = await self._check("asserts", program, order, limits, CheckResult)
        result.loaded = report.get("program") == "ok"
        result.passed = result.limit is None and report.get("passed") is True
        result.error = report.get("error", "")
        return result

    async def pytest(self, program: str, test_file: str, limits: Limits | None = None) -> PytestResult:
        """Run a pytest file that imports ``program`` as the module ``solution``.

        As in ``check``, the tests run in a process of their own. The sandbox needs ``packages=["pytest"]``, and starts
        tests fast with ``preload=["pytest"]``.

        Raises:
            SandboxError: the sandbox itself failed, twice.
            SyntaxError: ``test_file`` is no Python.
        """
        if "pytest" not in self._packages:
            raise ConfigError("pytest files need a sandbox with packages=['pytest'] (and pytest installed)")
        ast.parse(test_file, "the test file")
        limits = limits or self.limits
        order = {"code": test_file}
        result, report = await self._check("pytest", program, order, limits, PytestResult)
        result.loaded = report.get("program") == "ok"
        result.tests = report.get("tests", {})
        result.completed = result.loaded and result.limit is None
        result.error = report.get("error", "")
        return result

    async def _check(
        self, work: str, program: str, order: dict[str, str], limits: Limits, kind: type[R]
    ) -> tuple[R, dict[str, Any]]:
        with _Files() as files:
            source, tests = files.give(program), files.give(dump(order))
            stdout, stderr, errors, report = files.take(), files.take(), files.take(), files.take()
            members = [
                _member("module", [-1, stdout, stderr, source, -1, -1], limits),
                _member(work, [-1, errors, errors, tests, report, -1], _CHECKER_LIMITS),
            ]
            reply = await self._do(files, members, limits.seconds)
            member = reply["members"][0]
            was_alive = reply["ended"] == "itself" and "code" not in member
            if was_alive:
                member["code"] = 0  # The tests were done with it.
            result = files.result(kind, reply, 0, stdout, stderr, limits)
            data, _ = read_output(files.fds[report], _CHECKER_LIMITS.output_bytes)
            if not data and result.limit is None:
                text = read_output(files.fds[errors], 1 << 16)[0].decode(errors="replace")
                raise SandboxError(f"the tests did not run to their end: {reply['members'][1]}\n{text[-2000:]}")
        found: dict[str, Any] = load(data) if data else {}
        if was_alive and found.get("program") == "ended":
            result.exit_code, result.limit = None, "memory"  # Only the kernel kills it all, for want of memory.
        result.limit = result.limit or limit_of_exception(found.get("kind", ""), found.get("error", ""))
        return result, found

    async def _do(self, files: _Files, members: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
        """Have a helper do it; a helper that died is replaced, and the run is tried once more."""
        if not self._links:
            raise SandboxError("the sandbox is not started, or closed")
        order = {"members": members, "seconds": seconds}
        async with self._free:
            link = self._idle.pop()
            try:
                if not link.alive:
                    await link.start()
                try:
                    reply = await link.run(order, files.fds)
                except SandboxError:
                    if link not in self._links:
                        raise
                    files.reset()
                    await link.start()
                    reply = await link.run(order, files.fds)
            finally:
                self._idle.append(link)
        for member in reply["members"]:
            if "refused" in member:
                raise SandboxError(f"the sandbox could not isolate a program: {member['refused']}{link.last_words()}")
        return reply


class _Files:
    """The memory files of one run."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self._outputs: list[int] = []

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds:
            os.close(fd)

    def give(self, content: str | bytes) -> int:
        """A new file with ``content``; its index."""
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        self.fds.append(sealed(data))
        return len(self.fds) - 1

    def take(self) -> int:
        """A new file for output; its index."""
        self.fds.append(new_output())
        self._outputs.append(self.fds[-1])
        return len(self.fds) - 1

    def reset(self) -> None:
        """Forget what was written."""
        for fd in self.fds:
            os.lseek(fd, 0, os.SEEK_SET)
        for fd in self._outputs:
            os.ftruncate(fd, 0)

    def result(self, kind: type[R], reply: dict[str, Any], place: int, stdout: int, stderr: int, limits: Limits) -> R:
        """The record of the member at ``place``."""
        member = reply["members"][place]
        out, out_size = read_output(self.fds[stdout], limits.output_bytes)
        err, err_size = read_output(self.fds[stderr], limits.output_bytes)
        text = err.decode(errors="replace")
        return kind(
            exit_code=member.get("code"),
            limit=judge(reply["ended"], member, (out_size, err_size), text, limits),
            stdout=out.decode(errors="replace"),
            stderr=text,
            seconds=reply["seconds"],
            cpu_seconds=member.get("cpu_seconds", 0.0),
            memory_bytes=member.get("memory", 0),
        )


def _member(work: str, fds: list[int], limits: Limits) -> dict[str, Any]:
    return {"work": work, "fds": fds, "limits": limits.for_kernel()}


def _refuse(value: Any) -> list[Any]:
    raise TypeError(f"an argument of a call in the sandbox must be plain data, got a {type(value).__name__}")


def _opaque(data: list[Any]) -> Opaque:
    return Opaque(str(data[2])[:100] if len(data) > 2 else "object")


def _read_answer(data: bytes, result: CallResult) -> None:
    """Take the returned value from what the program's process wrote; anything odd means that nothing was returned."""
    try:
        messages = [load(line) for line in data.splitlines()]
        result.loaded = bool(messages) and messages[0][0] == "ready"
        last = messages[-1] if messages else ["failed", [], "the program ended", ""]
        if last[0] == "result":
            result.value, result.returned = decode(last[1], _opaque), True
        elif last[0] == "ready":
            result.error = "the program ended"
        else:
            result.limit = limit_of_exception(last[1][0] if last[1] else "", str(last[2]))
            result.error = f"{last[1][0] if last[1] else ''}: {last[2]}\n{last[3]}"[:4000]
    except (InvalidValueError, RecursionError, LookupError, TypeError) as error:
        result.error = f"the program sent no value: {error}"[:1000]
