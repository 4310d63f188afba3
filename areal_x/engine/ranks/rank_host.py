"""What runs in each rank's process, whoever started it: roles by name, and calls of their methods."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from areal_x.api.errors import EngineError
from areal_x.engine.ranks.rank_channel import travels
from areal_x.engine.ranks.rank_context import RankContext

__all__ = ["Outcome", "RankHost", "outcome_of", "raised_alike"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call gave on one rank: a value, or the exception that it raised. Both can be pickled."""

    value: Any = None
    error: BaseException | None = None


class RankHost:
    """The roles of one rank (``policy``, ``reward_model/<name>``, ...)."""

    def __init__(self, context: RankContext) -> None:
        self._context = context
        self._roles: dict[str, Any] = {}

    def build(self, role: str, factory: str, kwargs: Mapping[str, Any]) -> Outcome:
        """Make ``role``: ``factory(ranks=RankContext, **kwargs)``; ``factory`` is named ``package.module:function``."""
        return outcome_of(self._build, role, factory, kwargs)

    def call(self, role: str, method: str, args: Sequence[Any] = ()) -> Outcome:
        """What a method of ``role`` gives for ``args``."""
        return outcome_of(self._call, role, method, args)

    def _build(self, role: str, factory: str, kwargs: Mapping[str, Any]) -> None:
        module, _, name = factory.partition(":")
        # What the role held is free before the new one needs it.
        self._roles.pop(role, None)
        self._roles[role] = getattr(importlib.import_module(module), name)(ranks=self._context, **kwargs)

    def _call(self, role: str, method: str, args: Sequence[Any]) -> Any:
        if role not in self._roles:
            raise EngineError(f"this rank has no role {role!r}; it has {', '.join(self._roles) or 'none'}")
        return getattr(self._roles[role], method)(*args)


def outcome_of(function: Callable[..., Any], *args: Any) -> Outcome:
    """Call, and keep what it gave or raised; the exception carries its traceback as a note."""
    try:
        return Outcome(function(*args))
    # The boundary of a rank: whatever a role raises is raised again where the driver waits for it.
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        print(trace, file=sys.stderr, flush=True)
        if not travels(error):
            error = EngineError(f"{type(error).__name__}: {error}")
        error.add_note(f"on a rank:\n{trace}")
        return Outcome(error=error.with_traceback(None))


def raised_alike(outcomes: Sequence[Outcome]) -> BaseException | None:
    """The exception that all ranks raised (of the lowest), ``None`` when not all raised one of the same type.

    Ranks that all raised the same stand at the same place of the same program, so that they can go on together.
    """
    types = {type(outcome.error) for outcome in outcomes}
    return outcomes[0].error if len(types) == 1 else None
