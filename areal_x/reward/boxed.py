"""``boxed_NAME``: a registered reward that sees the last boxed answer of a completion, and nothing else of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.reward_arguments import innermost, is_async
from areal_x.reward.answers import after_thinking, last_boxed, without_open_thought
from areal_x.reward.math.slime_strings import boxed_content
from areal_x.reward.options import check_choice
from areal_x.reward.registry import BOXED, RewardEntry, find_reward, get_reward_fn, offer

__all__ = ["AsyncBoxedReward", "BoxedReward", "boxed", "boxed_reward"]

_FORWARDED = ("start", "close", "metrics", "check_columns", "owns_deadline")


class BoxedReward:
    """Calls a reward with the content of the last ``\\boxed{}`` outside of the thought as the completion.

    Without a box the completion is empty. Under ``compat="slime"`` it is slime's rule, quirks included: the last box
    wherever it is, verbatim, so that the graders that look for a box or for ``Answer:`` themselves find none in it.

    Args:
        inner: the reward.
        mark: a format with one place for the answer, which ``inner`` searches for.
        compat: None or ``slime``.

    Raises:
        ConfigError: ``inner`` takes no ``completions``, or scores whole groups.
    """

    def __init__(self, inner: Callable[..., Any], mark: str = "{}", compat: str | None = None) -> None:
        check_choice("boxed_", "compat", compat, (None, "slime"))
        if getattr(innermost(inner), "is_group_reward", False):
            raise ConfigError(f"'boxed_' takes a reward of single samples; {inner!r} scores whole groups")
        signature = inspect.signature(inner)
        self._takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        if not self._takes_any and "completions" not in signature.parameters:
            raise ConfigError(f"'boxed_' takes a reward of the argument 'completions'; {inner!r} has none")
        self.inner = inner
        self.mark = mark
        self.compat = compat
        self._inner_takes_prompt = self._takes_any or "prompt" in signature.parameters
        self.__signature__ = _with_prompt(signature)

    def __call__(self, **sample: Any) -> Any:
        """Score one sample; what the inner reward returns."""
        return self.inner(**self._boxed(sample))

    def __getattr__(self, name: str) -> Any:
        """What a reward object may have besides being called is the inner reward's, where it has it."""
        if name in _FORWARDED and "inner" in self.__dict__:
            return getattr(innermost(self.inner), name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _boxed(self, sample: dict[str, Any]) -> dict[str, Any]:
        prompt = sample.get("prompt") or ""
        if self.compat == "slime":
            answer = boxed_content(sample["completions"])
        else:
            text = after_thinking(sample["completions"], prompt)
            answer = None if text is None else last_boxed(text)
        sample = {**sample, "completions": self.mark.format(answer) if answer else ""}
        if "prompt" in sample:
            if not self._inner_takes_prompt:
                del sample["prompt"]
            elif self.compat is None:
                # The thought has been dealt with; a prompt that begins one would make the answer a part of it.
                sample["prompt"] = without_open_thought(prompt)
        return sample


class AsyncBoxedReward(BoxedReward):
    """``BoxedReward`` for a reward that is awaited."""

    async def __call__(self, **sample: Any) -> Any:
        """Score one sample; what the inner reward returns."""
        return await self.inner(**self._boxed(sample))


def _with_prompt(signature: inspect.Signature) -> inspect.Signature:
    parameters = dict(signature.parameters)
    parameters.setdefault("prompt", inspect.Parameter("prompt", inspect.Parameter.KEYWORD_ONLY, default=None))
    ordered = sorted(parameters.values(), key=lambda parameter: parameter.kind)
    return inspect.Signature(ordered)


def boxed(inner: Callable[..., Any], compat: str | None = None, mark: str = "{}") -> BoxedReward:
    """``inner``, seeing the last boxed answer only; asynchronous if it is.

    Raises:
        ConfigError: ``inner`` cannot be wrapped.
    """
    return (AsyncBoxedReward if is_async(inner) else BoxedReward)(inner, mark, compat)


def boxed_reward(name: str, dataset: str | None, kwargs: dict[str, Any]) -> Callable[..., Any]:
    """The reward ``boxed_NAME``: what the registry makes of the prefix.

    Args:
        name: as it was written, prefix and all; NAME is a registered name or one of its data sets.
        dataset: the data set of the run.
        kwargs: options of the inner reward. ``compat="slime"`` is one of both; there ``remote_rm`` sees the whole
            response all the same.

    Raises:
        ConfigError: the inner reward is unknown, does not take an option, or cannot be wrapped.
    """
    compat = kwargs.get("compat")
    entry = _inner_entry(name)
    if compat == "slime" and entry.name == "remote_rm":
        return get_reward_fn(entry.name, dataset=dataset, **{key: kwargs[key] for key in kwargs if key != "compat"})
    mark = entry.boxed_as
    if mark is None:
        raise ConfigError(
            f"reward.fn={name!r}: {entry.name!r} looks at more than an answer; write reward.fn={entry.name}, and where "
            f"it has a reward of its own, {BOXED}NAME for that"
        )
    inner = get_reward_fn(entry.name, dataset=dataset, **kwargs)
    return boxed(inner, compat, "{}" if compat == "slime" else mark)


def _inner_entry(name: str) -> RewardEntry:
    inner = name[len(BOXED) :]
    if not inner:
        raise ConfigError(f"reward.fn={name!r} names no reward; write {BOXED}NAME, such as {BOXED}math")
    if inner.lower().startswith(BOXED):
        raise ConfigError(f"reward.fn={name!r}: there is one last box only; write {BOXED} once")
    entry = find_reward(inner)
    if entry is None:
        raise ConfigError(f"reward.fn={name!r} is unknown: there is no reward {inner!r}{offer(inner)}")
    return entry
