"""Rewards: the wrapper that makes any reward function awaitable, bounded in time and honest about failures."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.reward_arguments import (
    GROUP_ARGUMENTS,
    REWARD_ARGUMENTS,
    TRUNCATED,
    RewardArguments,
    innermost,
    is_async,
    isolated,
)
from areal_x.api.reward_base import PendingScore, Reward
from areal_x.api.reward_lifecycle import RewardLifecycle, has_lifecycle
from areal_x.api.reward_records import (
    DEFAULT_REWARD_KEY,
    RewardCrashError,
    RewardError,
    RewardOutcome,
    RewardResult,
    RewardSample,
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
    "RewardSample",
    "RewardTimeoutError",
    "as_reward",
    "close_default_pool",
    "default_pool",
]

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


class AsyncRewardWrapper(Reward):
    """Makes a reward function awaitable.

    A ``def`` runs in a killable worker process; an ``async def`` is awaited on the event loop. Either way the deadline
    counts from the start of the work, and a failure is an exception or a typed outcome, never a number.

    Arguments go by name, and only those that the function takes: ``prompt``, ``completions`` (texts), ``prompt_ids``,
    ``completion_ids`` (``list[int]``), and the columns of the data item; ``truncated`` (whether the completion ended
    for its length) if it names that, too. A function marked with ``@group_reward`` scores a whole group of one prompt
    in one call: see there.

    An object with an ``async def __call__`` may have ``async def start()`` and ``async def close()`` for what it needs
    during a run, ``metrics()`` for running totals, ``check_columns(columns)``, and ``owns_deadline = True`` if it
    bounds its own time and raises ``RewardTimeoutError``.

    Args:
        reward_fn: a function, or ``package.module:function`` or ``file.py:function``.
        timeout_seconds: deadline of one call.
        max_workers: how many calls of this wrapper may run in the pool at once; None: no cap. Async rewards ignore it.
        pool: the run's pool; None: one that all wrappers of this loop share.
        reward_key: where the reward is in a returned dict.
        group: whether the function scores whole groups; None: as it is marked.
        score_truncated: whether completions that ended for their length are scored.

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
        reward_key: str = DEFAULT_REWARD_KEY,
        group: bool | None = None,
        score_truncated: bool = True,
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
        self.score_truncated = score_truncated
        self._object = innermost(reward_fn)
        self.is_async = is_async(self._object)
        if not self.is_async and has_lifecycle(self._object):
            raise ConfigError(
                f"reward {self.name} has start(), close() or metrics(), but runs in worker processes, where nothing of "
                "it is kept; write 'async def __call__', or leave them out"
            )
        self.min_group_size = int(getattr(self._object, "min_group_size", 1))
        self.is_group = bool(getattr(self._object, "is_group_reward", False)) if group is None else group
        self._pool = pool
        self._arguments = RewardArguments.of(reward_fn, self.name)
        self.takes_truncated = TRUNCATED in self._arguments.named or getattr(self._object, "takes_truncated", False)
        self._int_lists = tuple(name for name in _ID_ARGUMENTS if not self.is_group and self._arguments.takes(name))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._active_pool: ProcessPool | None = None
        self._function: RegisteredFunction | None = None
        self._client = PoolClient(max_workers)
        self._lifecycle = RewardLifecycle(self._object, self.name)

    def __repr__(self) -> str:
        limits = f"timeout_seconds={self.timeout_seconds:g}, max_workers={self.max_workers}"
        return f"AsyncRewardWrapper({self.name}, {limits})"

    def check_columns(self, columns: Iterable[str], prompt_key: str | None = None) -> None:
        """Check the data's columns against the function, before a run starts.

        Args:
            columns: names of the data's columns.
            prompt_key: the column that becomes the prompt; the function does not get it as a column.

        Raises:
            DataError: a column has the name of a reward argument, or the function needs one that is not there.
        """
        names = frozenset(columns) - {prompt_key}
        reserved = GROUP_ARGUMENTS if self.is_group else REWARD_ARGUMENTS
        self._arguments.check_columns(names, (*reserved, TRUNCATED) if self.takes_truncated else reserved)
        check = getattr(self._object, "check_columns", None)
        if check is not None:
            check(names)

    async def start(self) -> None:
        """Import the function's module in the pool's helper process, before any deadline runs, or start the object.

        Raises:
            ConfigError: the function cannot be sent to a worker process (a lambda, a closure), or its module cannot be
                imported there.
        """
        if self.is_async:
            await self._lifecycle.start()
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

    async def close(self) -> None:
        """Close an object that has something to give back. The pool is its owner's to close."""
        if self.is_async:
            await self._lifecycle.close()

    def metrics(self) -> dict[str, float]:
        """See ``Reward.metrics``."""
        totals = getattr(self._object, "metrics", None)
        return dict(totals()) if callable(totals) else {}

    def with_key(self, reward_key: str) -> AsyncRewardWrapper:
        """See ``Reward.with_key``."""
        other = copy.copy(self)
        other.reward_key = reward_key
        return other

    async def __call__(
        self, prompt: str, completions: str, prompt_ids: Any = None, completion_ids: Any = None, **data: Any
    ) -> float | dict[str, Any] | RewardResult | None:
        """Score one completion; gives what the function returned, checked (a number comes as a float).

        Raises:
            RewardTimeoutError: the deadline passed.
            RewardCrashError: the worker died, twice.
            RewardError: the function raised, or returned something that is not a reward.
        """
        if self.is_group:
            raise TypeError(f"reward {self.name} scores whole groups; await group_outcomes(samples)")
        result = await self._run(self._select(prompt, completions, prompt_ids, completion_ids, data))
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
        if self.is_group:
            truncated = bool(data.pop(TRUNCATED, False)) if self.takes_truncated else False
            ids = _as_list(prompt_ids) or [], _as_list(completion_ids) or []
            sample = RewardSample(prompt, completions, *ids, data, truncated)
            return RewardOutcome("pending", pending=PendingScore(sample))
        result = await self._run(self._select(prompt, completions, prompt_ids, completion_ids, data))
        if result.status != "ok":
            return self._failure(result)
        return self._checked(result.value, result, _length(completion_ids))

    async def finish_group(self, outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        """See ``Reward.finish_group``."""
        return await self.group_outcomes([outcome.pending.sample for outcome in outcomes])

    async def group_outcomes(self, samples: Sequence[RewardSample]) -> list[RewardOutcome]:
        """Score all samples of one prompt in one call. A failure of the call is the outcome of each of them."""
        if not samples:
            return []
        result = await self._run(self._arguments.of_group(samples))
        if result.status != "ok":
            return [self._failure(result) for _ in samples]
        values = result.value.tolist() if hasattr(result.value, "tolist") else result.value
        if not isinstance(values, list | tuple) or len(values) != len(samples):
            got = f"{len(values)} results" if isinstance(values, list | tuple) else f"a {type(values).__name__}"
            error = f"reward {self.name} returned {got} for a group of {len(samples)} samples; return one for each"
            return [RewardOutcome("error", seconds=result.seconds, error=error) for _ in samples]
        return [
            self._checked(value, result, len(sample.completion_ids) or None)
            for value, sample in zip(values, samples, strict=True)
        ]

    def _failure(self, result: CallResult) -> RewardOutcome:
        reason = _with_output(result) if result.traceback else result.error
        return RewardOutcome(result.status, seconds=result.seconds, started_at=result.started_at, error=reason)

    def _checked(self, value: Any, result: CallResult, num_completion_tokens: int | None) -> RewardOutcome:
        seconds, started_at = result.seconds, result.started_at
        try:
            checked = check_reward(value, self.reward_key, num_completion_tokens)
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

    def _select(
        self, prompt: str, completions: str, prompt_ids: Any, completion_ids: Any, data: dict[str, Any]
    ) -> dict[str, Any]:
        data["prompt"] = prompt
        data["completions"] = completions
        data["prompt_ids"] = prompt_ids
        data["completion_ids"] = completion_ids
        return self._arguments.select(data)

    async def _run(self, kwargs: dict[str, Any]) -> CallResult:
        if self.is_async:
            return await self._await(kwargs)
        if self._function is None or self._loop is not asyncio.get_running_loop():
            await self.start()
        assert self._active_pool is not None and self._function is not None
        return await self._active_pool.call(self._function, kwargs, self.timeout_seconds, self._client, self._int_lists)

    async def _await(self, kwargs: dict[str, Any]) -> CallResult:
        if not self._lifecycle.is_started:
            await self.start()
        for name, value in kwargs.items():
            kwargs[name] = _as_list(value) if name in self._int_lists else isolated(value)
        started_at = time.monotonic()
        owns_deadline = getattr(self._object, "owns_deadline", False)
        deadline = contextlib.nullcontext() if owns_deadline else asyncio.timeout(self.timeout_seconds)
        try:
            async with deadline:
                value = await self.reward_fn(**kwargs)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return _raised(error, started_at, "it cancelled itself")
        except Exception as error:  # The boundary to the user's coroutine: whatever it raises is its result.
            if _has_expired(deadline) and isinstance(error, TimeoutError):
                return self._late(started_at)
            if isinstance(error, RewardTimeoutError):
                seconds = time.monotonic() - started_at
                return CallResult("timeout", None, f"{self.name}: {error}", seconds=seconds, started_at=started_at)
            return _raised(error, started_at, str(error))
        if _has_expired(deadline):
            return self._late(started_at)
        return CallResult("ok", value, seconds=time.monotonic() - started_at, started_at=started_at)

    def _late(self, started_at: float) -> CallResult:
        text = f"{self.name} did not return within {self.timeout_seconds:g} s"
        return CallResult("timeout", None, text, seconds=time.monotonic() - started_at, started_at=started_at)


def _has_expired(deadline: Any) -> bool:
    return isinstance(deadline, asyncio.Timeout) and deadline.expired()


def _raised(error: BaseException, started_at: float, text: str) -> CallResult:
    name = type(error).__name__
    details = "".join(traceback.format_exception(error))
    return CallResult("error", None, f"{name}: {text}", name, details, "", time.monotonic() - started_at, started_at)


def as_reward(reward_fn: Reward | Callable[..., Any]) -> Reward:
    """What a workflow was given: a reward as it is, a function in an ``AsyncRewardWrapper``."""
    return reward_fn if isinstance(reward_fn, Reward) else AsyncRewardWrapper(reward_fn)


def _with_output(result: CallResult) -> str:
    return f"{result.traceback}\nprinted:\n{result.output}" if result.output else str(result.traceback)


def _length(values: Any) -> int | None:
    return None if values is None else len(values)


def _as_list(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values
