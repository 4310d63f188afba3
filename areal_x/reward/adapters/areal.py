"""Rewards for AReaL: ``fn(prompt, completions, prompt_ids, completion_ids, **data)``, which returns a number."""

from __future__ import annotations

from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.reward_records import RewardSample
from areal_x.reward.adapters.calling import Adapter, Call
from areal_x.reward.adapters.columns import refuse_shadowed
from areal_x.reward.adapters.library_function import LibraryFunction
from areal_x.reward.adapters.results import Reward, read_reward

__all__ = ["ArealAdapter"]

_POSITIONAL = ("prompt", "completions", "prompt_ids", "completion_ids")


class ArealAdapter(Adapter):
    """AReaL's call. Options go to the function by name."""

    def __init__(self, function: LibraryFunction, options: dict[str, Any], dataset: str | None) -> None:
        super().__init__(function, options, dataset)
        if self.is_group:
            raise ConfigError(f"reward.kwargs.group=True: AReaL has no rewards of groups; drop it for {function.name}")
        function.check_options(options, len(_POSITIONAL))
        self._options = options

    def call(self, samples: list[RewardSample]) -> Call:
        """Texts and ids by position, whatever the function calls them; the item's columns by name."""
        (sample,) = samples
        kwargs = self.function.taken({**sample.data, **self._options}, len(_POSITIONAL))
        return Call(self._read, (sample.prompt, sample.completion, sample.prompt_ids, sample.completion_ids), kwargs)

    def check_columns(self, columns: frozenset[str]) -> None:
        """What the function takes behind the texts and the ids are columns."""
        if self.function.takes_any:
            refuse_shadowed(columns, self.function.first_names(len(_POSITIONAL)), self.function.name)
        self.function.check_columns(columns, self._options, len(_POSITIONAL))

    def _read(self, returned: Any) -> list[Reward]:
        return [read_reward(returned, None, f"what {self.function.name} returned")]
