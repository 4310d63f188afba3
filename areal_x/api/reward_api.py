"""Rewards: the wrapper that makes any reward function awaitable, bounded in time and honest about failures."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
import traceback
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from areal_x.api.errors import ConfigError, DataError
from areal_x.api.reward_records import (
    RewardCrashError,
    RewardError,
    RewardOutcome,
    RewardResult,
    RewardStatus,
    RewardTimeoutError,
    check_reward,
)
from areal_x.process_pool import (
    CallResult,
    FunctionTransferError,
    PoolClient,
    ProcessPool,
    RegisteredFunction,
    describe_function,
    import_function,
)

__all__ = [
    "REWARD_ARGUMENTS",
    "AsyncRewardWrapper",
    "RewardCrashError",
    "RewardError",
    "RewardOutcome",
    "RewardResult",
    "RewardStatus",
    "RewardTimeoutError",
    "close_default_pool",
    "default_pool",
]

REWARD_ARGUMENTS = ("prompt", "completions", "prompt_ids", "completion_ids")
"""Arguments that every reward function may take, beside the columns of its data item."""

_ID_ARGUMENTS = ("prompt_ids", "completion_ids")
_default_pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ProcessPool] = weakref.WeakKeyDictionary()


def default_pool() -> ProcessPool:
    """The pool that wrappers without one of their own share on the running loop; made at the first use."""
    loop = asyncio.get_running_loop()
    pool = _default_pools.get(loop)
    if pool is None:
        pool = _default_pools[loop] = ProcessPool()
    return pool


async def close_default_pool() -> None:
    """Close the running loop's shared pool, if there is one. (A process that ends without it leaves nothing behind.)"""
    pool = _default_pools.pop(asyncio.get_running_loop(), None)
    if pool is not None:
        await pool.close()


class AsyncRewardWrapper:
    """Makes a reward function awaitable.

    A ``def`` runs in a killable worker process; an ``async def`` is awaited on the event loop. Either way the deadline
    counts from the start of the work, and a failure is an exception or a typed outcome, never a number.

    Arguments go by name, and only those that the function takes: ``prompt``, ``completions`` (texts), ``prompt_ids``,
    ``completion_ids`` (``list[int]``), and the columns of the data item.

    Args:
        reward_fn: a function, or ``package.module:function`` or ``file.py:function``.
        timeout_seconds: deadline of one call.
        max_workers: how many calls of this wrapper may run in the pool at once; None: no cap. Async rewards ignore it.
        pool: the run's pool; None: one that all wrappers of this loop share.
        reward_key: where the reward is in a returned dict.

    Raises:
        ConfigError: the function cannot be found, or takes arguments by position only.
    """

    def __init__(
        self,
        reward_fn: Callable[..., Any] | str,
        timeout_seconds: float = 15.0,
        max_workers: int | None = None,
        *,
        pool: ProcessPool | None = None,
        reward_key: str = "reward",
    ) -> None:
        if not timeout_seconds > 0:
            raise ConfigError(f"timeout_seconds must be above 0, got {timeout_seconds}")
        if max_workers is not None and max_workers < 1:
            raise ConfigError(f"max_workers must be at least 1, got {max_workers}")
        if isinstance(reward_fn, str):
            try:
                reward_fn = import_function(reward_fn)
            except FunctionTransferError as error:
                raise ConfigError(str(error)) from error
        if not callable(reward_fn):
            raise ConfigError(f"a reward function must be callable, got a {type(reward_fn).__name__}")
        self.reward_fn = reward_fn
        self.name = describe_function(reward_fn)
        self.timeout_seconds = float(timeout_seconds)
        self.max_workers = max_workers
        self.reward_key = reward_key
        self.is_async = _is_async(reward_fn)
        self._pool = pool
        self._accepted, self._required, self._bound = _inspect_arguments(reward_fn, self.name)
        self._int_lists = tuple(name for name in _ID_ARGUMENTS if self._takes(name))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._active_pool: ProcessPool | None = None
        self._function: RegisteredFunction | None = None
        self._client = PoolClient(max_workers)

    def __repr__(self) -> str:
        limits = f"timeout_seconds={self.timeout_seconds:g}, max_workers={self.max_workers}"
        return f"AsyncRewardWrapper({self.name}, {limits})"

    def _takes(self, name: str) -> bool:
        return name not in self._bound and (self._accepted is None or name in self._accepted)

    def check_columns(self, columns: Iterable[str], prompt_key: str | None = None) -> None:
        """Check the data's columns against the function, before a run starts.

        Args:
            columns: names of the data's columns.
            prompt_key: the column that becomes the prompt; the function does not get it as a column.

        Raises:
            DataError: a column has the name of a reward argument, or the function needs one that is not there.
        """
        names = set(columns)
        names.discard(prompt_key or "")
        taken = sorted(names.intersection(REWARD_ARGUMENTS))
        if taken:
            raise DataError(f"column {taken[0]!r} of the data has the name of a reward argument; rename or drop it")
        missing = [name for name in self._required if name not in names and name not in REWARD_ARGUMENTS]
        if missing:
            raise DataError(
                f"reward {self.name} needs a column {missing[0]!r}; the data has: {', '.join(sorted(names)) or 'none'}"
            )

    async def start(self) -> None:
        """Import the function's module in the pool's helper process, before any deadline runs.

        Raises:
            ConfigError: the function cannot be sent to a worker process (a lambda, a closure), or its module cannot be
                imported there.
        """
        if self.is_async:
            return
        loop = asyncio.get_running_loop()
        pool = self._pool or default_pool()
        try:
            function = await pool.register(self.reward_fn)
        except FunctionTransferError as error:
            failure = ConfigError(f"reward {error}")
            for note in getattr(error, "__notes__", ()):
                failure.add_note(note)
            raise failure from error
        if self._active_pool is not None and self._active_pool is not pool:
            self._client = PoolClient(self.max_workers)
        self._loop, self._active_pool, self._function = loop, pool, function

    async def __call__(
        self, prompt: str, completions: str, prompt_ids: Any = None, completion_ids: Any = None, **data: Any
    ) -> float | dict[str, Any] | RewardResult | None:
        """Score one completion; gives what the function returned, checked (a number comes as a float).

        Raises:
            RewardTimeoutError: the deadline passed.
            RewardCrashError: the worker died, twice.
            RewardError: the function raised, or returned something that is not a reward.
        """
        result = await self._run(self._arguments(prompt, completions, prompt_ids, completion_ids, data))
        value = result.value
        if result.status == "ok":
            checked = check_reward(value, self.reward_key, _length(completion_ids))
            if checked is None:
                return None
            return value if isinstance(value, dict) else checked if isinstance(value, RewardResult) else checked.value
        if result.status == "timeout":
            raise RewardTimeoutError(f"reward {result.error}")
        if result.status == "crash":
            raise RewardCrashError(f"reward {self.name}: {result.error}")
        error = RewardError(f"reward {self.name}: {result.error}")
        if result.traceback:
            error.add_note(_with_output(result))
        raise error

    async def outcome(
        self, prompt: str, completions: str, prompt_ids: Any = None, completion_ids: Any = None, **data: Any
    ) -> RewardOutcome:
        """Score one completion; a failure is a typed record, too. Only a pool that is closed or cannot go on raises."""
        result = await self._run(self._arguments(prompt, completions, prompt_ids, completion_ids, data))
        seconds, started_at = result.seconds, result.started_at
        if result.status != "ok":
            reason = _with_output(result) if result.traceback else result.error
            return RewardOutcome(result.status, seconds=seconds, started_at=started_at, error=reason)
        try:
            checked = check_reward(result.value, self.reward_key, _length(completion_ids))
        except RewardError as error:
            return RewardOutcome("error", seconds=seconds, started_at=started_at, error=f"reward {self.name}: {error}")
        if checked is None:
            return RewardOutcome("not_applicable", seconds=seconds, started_at=started_at)
        return RewardOutcome(
            "ok",
            checked.value,
            checked.parts,
            checked.metadata,
            seconds,
            started_at,
            None,
            checked.token_rewards,
            checked.step_rewards,
        )

    def _arguments(
        self, prompt: str, completions: str, prompt_ids: Any, completion_ids: Any, data: dict[str, Any]
    ) -> dict[str, Any]:
        data["prompt"] = prompt
        data["completions"] = completions
        data["prompt_ids"] = prompt_ids
        data["completion_ids"] = completion_ids
        accepted = self._accepted
        if accepted is not None:
            return {name: value for name, value in data.items() if name in accepted}
        for name in self._bound:
            data.pop(name, None)
        return data

    async def _run(self, kwargs: dict[str, Any]) -> CallResult:
        if self.is_async:
            return await self._await(kwargs)
        if self._function is None or self._loop is not asyncio.get_running_loop():
            await self.start()
        assert self._active_pool is not None and self._function is not None
        return await self._active_pool.call(self._function, kwargs, self.timeout_seconds, self._client, self._int_lists)

    async def _await(self, kwargs: dict[str, Any]) -> CallResult:
        for name in self._int_lists:
            if hasattr(kwargs.get(name), "tolist"):
                kwargs[name] = kwargs[name].tolist()
        started_at = time.monotonic()
        deadline = asyncio.timeout(self.timeout_seconds)
        try:
            async with deadline:
                value = await self.reward_fn(**kwargs)
        except Exception as error:  # The boundary to the user's coroutine: whatever it raises is its result.
            seconds = time.monotonic() - started_at
            if deadline.expired() and isinstance(error, TimeoutError):
                text = f"{self.name} did not return within {self.timeout_seconds:g} s"
                return CallResult("timeout", None, text, seconds=seconds, started_at=started_at)
            summary, name = f"{type(error).__name__}: {error}", type(error).__name__
            return CallResult("error", None, summary, name, traceback.format_exc(), "", seconds, started_at)
        return CallResult("ok", value, seconds=time.monotonic() - started_at, started_at=started_at)


def _with_output(result: CallResult) -> str:
    return f"{result.traceback}\nprinted:\n{result.output}" if result.output else str(result.traceback)


def _length(values: Any) -> int | None:
    return None if values is None else len(values)


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    call_method = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call_method)


def _inspect_arguments(function: Any, name: str) -> tuple[frozenset[str] | None, list[str], frozenset[str]]:
    """Names that the function takes (None: any), those without a default, and those that a partial has bound."""
    bound: set[str] = set()
    inner = function
    while isinstance(inner, functools.partial):
        bound.update(inner.keywords)
        inner = inner.func
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the arguments of reward {name} cannot be inspected ({error}); wrap it in a def") from error
    accepted: set[str] = set()
    required: list[str] = []
    takes_any = False
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise ConfigError(f"reward {name} takes {parameter.name!r} by position only; rewards get arguments by name")
        elif (
            parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL) and parameter.name not in bound
        ):
            accepted.add(parameter.name)
            if parameter.default is parameter.empty:
                required.append(parameter.name)
    return None if takes_any else frozenset(accepted), required, frozenset(bound)
