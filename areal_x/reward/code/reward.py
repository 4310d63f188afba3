"""The reward ``code``: a program's score on the tests of its data item, run in the sandbox."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from areal_x.api.errors import DataError
from areal_x.api.reward_records import RewardResult
from areal_x.reward.code.cases import COLUMNS, AssertCase, CallCase, Case, PytestCase, StdioCase, read_cases
from areal_x.reward.code.extraction import BLOCKS, complete_program, find_program
from areal_x.reward.code.outputs import COMPARISONS, same_output, same_value
from areal_x.reward.options import check_choice, check_number, check_whole_number
from areal_x.reward.registry import register_reward
from areal_x.reward.sandbox import Limits, RunResult, Sandbox

__all__ = ["CodeReward"]

_IN_THREAD_BYTES = 1 << 16
_PRELUDE = (
    "from typing import *; from collections import *; from functools import *; from itertools import *; "
    "from heapq import *; from bisect import *; import collections, functools, itertools, heapq, bisect, math, "
    "operator, random, re, string\n"
)
"""What judges of function problems import for their users."""


@dataclass(slots=True)
class _Verdict:
    passed: float
    """Share of the case's tests that passed."""
    reason: str = ""
    """Why not all: ``failed``, ``crash``, or a limit as in ``time_limit``."""
    detail: str = ""
    loaded: bool = True
    seconds: float = 0.0


@register_reward(
    "code",
    datasets=["apps", "code_contests", "humaneval", "mbpp", "openai_humaneval", "taco"],
    extracts="the last complete Python block",
    returns="1 if the program passes all tests, else 0; or the share of tests",
)
class CodeReward:
    """1 if the program passes the item's tests in a sandbox, else 0, or the share that it passes.

    The tests are in the column ``tests`` (or another of the known ones): pairs of input and output, function calls,
    asserts, or a pytest file.

    Args:
        tests: the column of the test cases; None: found by its name.
        blocks: which block of the completion is the program: ``python``, ``any``, or ``none`` (the whole text).
        score: ``all``: passed or not; ``fraction``: between ``failed_value`` and ``passed_value``, by passed cases.
        comparison, tolerance: of outputs and values: ``tokens``, ``exact`` or ``float``.
        max_cases: only the first so many; None: all.
        seconds, memory_mb, processes: limits of each case. (A pytest file is one case.)
        total_seconds: limit of all cases of one completion.
        passed_value, failed_value, no_program_value: rewards.
        limit_value: the verdict on a program that hit a limit.
        timeout_value: the same for limits of time; None: ``limit_value``.
        crash_value: the verdict on a program that raises or is killed; None: ``failed_value``.
        packages: distributions that programs may import beside the standard library.
        num_runners: programs that run at the same time; None: one for each core.
    """

    owns_deadline = True
    """``total_seconds`` bounds the work; waiting for a free place must not count."""

    def __init__(
        self,
        *,
        tests: str | None = None,
        blocks: str = "python",
        score: str = "all",
        comparison: str = "tokens",
        tolerance: float = 1e-6,
        max_cases: int | None = None,
        seconds: float = 6.0,
        memory_mb: int = 512,
        processes: int = 16,
        total_seconds: float = 60.0,
        passed_value: float = 1.0,
        failed_value: float = 0.0,
        no_program_value: float = 0.0,
        limit_value: float = 0.0,
        timeout_value: float | None = None,
        crash_value: float | None = None,
        packages: Iterable[str] = (),
        num_runners: int | None = None,
    ) -> None:
        check_choice("code", "blocks", blocks, BLOCKS)
        check_choice("code", "score", score, ("all", "fraction"))
        check_choice("code", "comparison", comparison, COMPARISONS)
        if max_cases is not None:
            check_whole_number("code", "max_cases", max_cases, 1)
        self.tests, self.blocks, self.score, self.comparison = tests, blocks, score, comparison
        self.tolerance = check_number("code", "tolerance", tolerance, 0.0)
        self.max_cases = max_cases
        self.total_seconds = check_number("code", "total_seconds", total_seconds, 0.0)
        self.passed_value = check_number("code", "passed_value", passed_value)
        self.failed_value = check_number("code", "failed_value", failed_value)
        self.no_program_value = check_number("code", "no_program_value", no_program_value)
        self.limit_value = check_number("code", "limit_value", limit_value)
        self.timeout_value = check_number(
            "code", "timeout_value", limit_value if timeout_value is None else timeout_value
        )
        self.crash_value = check_number("code", "crash_value", failed_value if crash_value is None else crash_value)
        limits = Limits(seconds=seconds, memory_mb=memory_mb, processes=processes)
        self._packages = list(packages)
        self._num_runners = num_runners
        self._limits = limits
        self._sandboxes: dict[bool, Sandbox] = {}
        self._lock = asyncio.Lock()
        self._totals: Counter[str] = Counter()

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raise unless the data have a column of test cases.

        Raises:
            DataError: they have none.
        """
        names = set(columns)
        wanted = (self.tests,) if self.tests is not None else COLUMNS
        if not names.intersection(wanted):
            raise DataError(
                f"reward 'code' needs a column {' or '.join(map(str, wanted))} with test cases; "
                f"the data has: {', '.join(sorted(names)) or 'none'}"
            )

    async def start(self) -> None:
        """Start the sandbox, or refuse the run where programs cannot be isolated."""
        await self._sandbox(with_pytest=False)

    async def close(self) -> None:
        """End the sandbox."""
        sandboxes, self._sandboxes = self._sandboxes, {}
        for sandbox in sandboxes.values():
            await sandbox.close()

    def metrics(self) -> dict[str, float]:
        """Totals of the run: programs, cases and seconds in the sandbox, and how programs failed."""
        return dict(self._totals)

    async def _sandbox(self, with_pytest: bool) -> Sandbox:
        async with self._lock:
            if with_pytest not in self._sandboxes:
                extra = ["pytest"] if with_pytest else []
                sandbox = Sandbox(self._num_runners, self._limits, [*self._packages, *extra], preload=extra)
                await sandbox.start()
                self._sandboxes[with_pytest] = sandbox
            return self._sandboxes[with_pytest]

    async def __call__(self, completions: str, prompt: str = "", **columns: Any) -> RewardResult:
        """Score one completion.

        Raises:
            ValueError: the item has no test cases, or none in a known format.
            SyntaxError: the item's own tests are no Python.
            SandboxError: the sandbox failed.
        """
        cases = read_cases(columns, self.tests)[: self.max_cases]
        program = find_program(completions, prompt, self.blocks)
        self._totals["programs"] += program is not None
        if program is None:
            self._totals["no_program"] += 1
            return RewardResult(self.no_program_value, {"passed": 0.0}, metadata={"reason": "no_program"})
        if isinstance(columns.get("entry_point"), str):
            program = complete_program(program, prompt, columns["entry_point"])
        verdicts = await self._run_cases(program, cases)
        return self._result(verdicts, len(cases))

    async def _run_cases(self, program: str, cases: list[Case]) -> list[_Verdict]:
        sandbox = await self._sandbox(any(isinstance(case, PytestCase) for case in cases))
        verdicts: list[_Verdict] = []
        left = self.total_seconds
        for case in cases:
            if left <= 0:
                verdicts.append(_Verdict(0.0, "time_limit", f"all cases together take over {self.total_seconds:g} s"))
                break
            verdict = await self._run_case(sandbox, program, case)
            left -= verdict.seconds
            verdicts.append(verdict)
            self._totals.update(cases=1, seconds=verdict.seconds)  # type: ignore[call-overload]
            if verdict.reason and (self.score == "all" or not verdict.loaded):
                break
        return verdicts

    async def _run_case(self, sandbox: Sandbox, program: str, case: Case) -> _Verdict:
        if isinstance(case, StdioCase):
            run = await sandbox.run(program, case.stdin)
            if not run.ok:
                return _failure(run, "crash", run.stderr)
            right = await _compare(
                len(run.stdout), same_output, run.stdout, case.expected, self.comparison, self.tolerance
            )
            return _Verdict(right, "" if right else "failed", seconds=run.seconds)
        if isinstance(case, CallCase):
            called = await sandbox.call(_with_prelude(program), case.name, case.args)
            if not called.returned:
                return _failure(called, "crash", called.error, called.loaded)
            right = same_value(called.value, case.expected, self.comparison, self.tolerance)
            if not right and case.or_first and isinstance(case.expected, list) and len(case.expected) == 1:
                right = same_value(called.value, case.expected[0], self.comparison, self.tolerance)
            return _Verdict(float(right), "" if right else "failed", seconds=called.seconds)
        if isinstance(case, AssertCase):
            checked = await sandbox.check(program, case.code, case.setup)
            if checked.passed:
                return _Verdict(1.0, seconds=checked.seconds)
            return _failure(checked, "failed" if checked.loaded else "crash", checked.error, checked.loaded)
        tested = await sandbox.pytest(program, case.text)
        if not tested.completed:
            return _failure(tested, "crash", tested.error, tested.loaded)
        if not tested.tests:
            raise ValueError(f"the pytest file of this item has no tests: {tested.error}")
        share = sum(tested.tests.values()) / len(tested.tests)
        return _Verdict(share, "" if share == 1.0 else "failed", tested.error, seconds=tested.seconds)

    def _result(self, verdicts: list[_Verdict], num_cases: int) -> RewardResult:
        """The reward: of the passed share, or of the first failure where nothing counts but passing all.

        With ``score=fraction`` a limit or a crash sets the reward only if nothing passed.
        """
        share = sum(verdict.passed for verdict in verdicts) / num_cases
        bad = next((verdict for verdict in verdicts if verdict.reason), None)
        if bad is None:
            return RewardResult(self.passed_value, {"passed": share}, metadata={"cases": num_cases})
        self._totals[bad.reason] += 1
        if self.score == "fraction" and share > 0:
            value = self.failed_value + (self.passed_value - self.failed_value) * share
        else:
            value = {"failed": self.failed_value, "crash": self.crash_value, "time_limit": self.timeout_value}.get(
                bad.reason, self.limit_value
            )
        metadata = {"reason": f"code_{bad.reason}", "cases": num_cases, "detail": bad.detail[-500:]}
        return RewardResult(value, {"passed": share}, metadata=metadata)


def _failure(run: RunResult, reason: str, detail: str, loaded: bool = True) -> _Verdict:
    return _Verdict(0.0, f"{run.limit}_limit" if run.limit else reason, detail, loaded, run.seconds)


def _with_prelude(program: str) -> str:
    # An import from __future__ must stay the first statement of the program.
    return program if "__future__" in program else _PRELUDE + program


async def _compare(size: int, function: Any, *args: Any) -> float:
    """Compare in a thread where the texts are large, so that the event loop goes on."""
    if size > _IN_THREAD_BYTES:
        return float(await asyncio.to_thread(function, *args))
    return float(function(*args))
