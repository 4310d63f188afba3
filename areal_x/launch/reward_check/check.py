"""Tries a reward on data, before a run does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from areal_x.api.errors import ArealXError, ConfigError, DataError
from areal_x.api.import_paths import nearest
from areal_x.api.reward_api import AsyncRewardWrapper
from areal_x.api.reward_arguments import GROUP_ARGUMENTS, REWARD_ARGUMENTS, TRUNCATED, RewardArguments, innermost
from areal_x.launch.reward_check.completion_file import read_samples
from areal_x.launch.reward_check.derived import derive_samples
from areal_x.launch.reward_check.finding import Finding
from areal_x.launch.reward_check.findings import measured_findings
from areal_x.launch.reward_check.options import CheckOptions
from areal_x.launch.reward_check.report import RewardReport
from areal_x.launch.reward_check.runs import ObservedPool, score_all
from areal_x.launch.reward_check.samples import CheckData, PromptTexts, load_check_data
from areal_x.launch.reward_check.static_checks import static_findings

__all__ = ["check_reward_function", "check_reward_function_async"]

Data = str | Path | Sequence[Mapping[str, Any]]
Completions = str | Path | Sequence[str | Mapping[str, Any]]
_LARGE_COLUMNS = 20_000
"""Characters of columns that each call carries for nothing."""
_STEP_SECONDS = 150.0
"""For the imports of a reward, and for start() and close() of an object."""
_FIXES = {
    "start": "a reward is a function or an object that can be pickled: at the top of a module, without locks, clients "
    "or open files; make those at the first call, or in start() of an object with async def __call__",
    "close": "close what start() made, also when a call failed",
}
_MISSPELT = 0.8
"""How alike two names are of which one is a slip; options of a reward are further from all columns."""


def check_reward_function(
    reward: Callable[..., Any] | str,
    data: Data,
    completions: Completions | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> RewardReport:
    """As ``check_reward_function_async``, to call without ``await``; in a notebook, too, whose event loop runs already.

    There the check has a thread and a loop of its own.
    """

    def check() -> Any:
        return check_reward_function_async(reward, data, completions, kwargs=kwargs, **options)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(check())
    return _in_a_thread(check)


def _in_a_thread(check: Callable[[], Any]) -> RewardReport:
    """Run a coroutine on a new loop in a new thread. An interrupt of the waiting thread ends the other, too."""
    running: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = (
        concurrent.futures.Future()
    )

    async def announced() -> RewardReport:
        task = asyncio.current_task()
        assert task is not None
        running.set_result((asyncio.get_running_loop(), task))
        report: RewardReport = await check()
        return report

    with concurrent.futures.ThreadPoolExecutor(1, "areal-x-reward-check") as executor:
        result = executor.submit(asyncio.run, announced())
        try:
            return result.result()
        except BaseException:
            if not result.done():
                loop, task = running.result(10.0)
                loop.call_soon_threadsafe(task.cancel)
            raise


async def check_reward_function_async(
    reward: Callable[..., Any] | str,
    data: Data,
    completions: Completions | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> RewardReport:
    """Score completions with a reward as a run would, and report what it does and which mistakes it makes.

    Args:
        reward: a reward function or object, or what ``reward.fn`` would say: a name, or ``file.py:function``.
        data: a file of items, or whatever else ``data.path`` may name, or a list of dicts.
        completions: a file or a list of rows with ``completion`` (or ``completions``) and, where known, ``expected``.
            None: completions are made from the data's gold solutions.
        kwargs: options of the reward, as in ``reward.kwargs``.
        options: fields of ``CheckOptions`` by name, such as ``limit=20`` or ``prompt_key="question"``.

    Raises:
        ConfigError: there is no such reward, it does not take ``kwargs``, or an option is wrong.
        DataError: the data or the completions cannot be used.
    """
    settings = CheckOptions.of(options)
    items = load_check_data(data, settings, settings.limit if completions is None else None)
    _refuse_a_config(reward)
    function = _reward_function(reward, items.dataset, dict(kwargs or {}))
    report = RewardReport(_label(reward), items, settings)
    pool = ObservedPool(num_workers=settings.workers)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(pool.close)
        wrapper = _wrapped(report, function, pool)
        if wrapper is None:
            return report
        report.name = wrapper.name
        report.is_async, report.is_group = wrapper.is_async, wrapper.is_group
        read = static_findings(function, is_async=wrapper.is_async)
        report.findings += _argument_findings(function, wrapper, items)
        stack.push_async_callback(_users_step, report, "close", wrapper.close)
        if report.ok and await _users_step(report, "start", wrapper.start):
            texts = PromptTexts(settings, items.prompt_key)
            if completions is None:
                report.samples = derive_samples(items, texts, settings, is_group=wrapper.is_group)
            else:
                report.samples = read_samples(completions, items, texts, settings)
            started = time.monotonic()
            report.runs = await score_all(wrapper, report.samples, texts, settings, pool)
            report.seconds = time.monotonic() - started
        report.findings += read + measured_findings(report)
    report.findings = _worst_first(report.findings)
    return report


def _worst_first(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.severity))


def _label(reward: Callable[..., Any] | str) -> str:
    target = innermost(reward)
    return target if isinstance(target, str) else str(getattr(target, "__qualname__", type(target).__qualname__))


def _reward_function(reward: Callable[..., Any] | str, dataset: str | None, kwargs: dict[str, Any]) -> Any:
    if isinstance(reward, str):
        from areal_x.reward.registry import get_reward_fn

        try:
            return get_reward_fn(reward, dataset=dataset, **kwargs)
        except ArealXError:
            raise
        except Exception as error:  # The boundary to the constructor of the user's class.
            text = f"{type(error).__name__}: {error}"
            raise ConfigError(f"reward {reward!r} cannot be made with options {_names(kwargs)}: {text}") from error
    if kwargs:
        raise ConfigError(f"options {_names(kwargs)}: bind them with functools.partial, or give the reward by its name")
    return reward


def _refuse_a_config(reward: Callable[..., Any] | str) -> None:
    if isinstance(reward, str) and reward.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"{reward!r} is a configuration, no reward: give its reward.fn, and each of its reward.rewards by itself; "
            "the command areal-x reward test takes the file"
        )


def _names(kwargs: Mapping[str, Any]) -> str:
    """What may be shown of options: one may be a key."""
    return ", ".join(kwargs) or "(none)"


def _wrapped(report: RewardReport, function: Any, pool: ObservedPool) -> AsyncRewardWrapper | None:
    settings = report.options
    try:
        return AsyncRewardWrapper(
            function,
            settings.timeout_seconds,
            settings.workers,
            pool=pool,
            reward_key=settings.reward_key,
            group=settings.group,
        )
    except ConfigError as error:
        fix = "write def reward(prompt, completions, prompt_ids, completion_ids, **columns), or fewer of these"
        report.findings.append(Finding("bad_signature", "error", str(error), fix))
        return None


async def _users_step(report: RewardReport, name: str, step: Callable[[], Awaitable[None]]) -> bool:
    """Whether the reward could be sent to its workers or started on the loop, or closed."""
    try:
        async with asyncio.timeout(_STEP_SECONDS):
            await step()
    except Exception as error:  # The boundary to the start() and close() of the user's object.
        text = str(error) if isinstance(error, ConfigError) else f"{name}() raises {type(error).__name__}: {error}"
        notes = getattr(error, "__notes__", [])
        report.findings.append(Finding(f"cannot_{name}", "error", "\n".join([text, *notes]), _FIXES[name]))
        return False
    return True


def _argument_findings(function: Any, wrapper: AsyncRewardWrapper, items: CheckData) -> list[Finding]:
    """What the names of the columns and of the arguments show."""
    reserved = (*(GROUP_ARGUMENTS if wrapper.is_group else REWARD_ARGUMENTS), TRUNCATED)
    columns = set(items.rows[0]) - {items.prompt_key}
    arguments = RewardArguments.of(function, wrapper.name)
    known = sorted({*columns, *reserved})
    try:
        wrapper.check_columns(columns)
    except DataError as error:
        if columns & (set(reserved) if wrapper.takes_truncated else set(reserved) - {TRUNCATED}):
            return [Finding("column_collision", "error", str(error), "rename the column in the data file")]
        missing = next((name for name in arguments.required if name not in known), "")
        fix = f"rename the argument, or give it a default{nearest(missing, known)}"
        return [Finding("missing_column", "error", str(error), fix)]
    found = []
    for name in sorted((arguments.accepted or frozenset()) - set(arguments.required) - set(known)):
        others = [candidate for candidate in known if candidate not in (arguments.accepted or ())]
        close = get_close_matches(name, others, n=1, cutoff=_MISSPELT)
        if close:
            text = f"argument {name!r} is no column and no reward argument: it always has its default"
            found.append(Finding("argument_never_given", "warning", text, f"if {close[0]!r} is meant, rename it"))
    size = sum(len(str(value)) for row in items.rows for name, value in row.items() if name != items.prompt_key)
    if arguments.accepted is None and size > _LARGE_COLUMNS * len(items.rows) and not wrapper.is_async:
        text = (
            f"the reward takes **{{any}}, so that every call carries {size // len(items.rows):,} characters of columns"
        )
        found.append(Finding("takes_every_column", "warning", text.replace("{any}", "kwargs"), "name those it needs"))
    return found
