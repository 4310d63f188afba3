"""What a check of a reward is told, beside the reward and the data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import nearest

__all__ = ["CheckOptions"]


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """Options of ``check_reward_function``; the command line has most of them, with dashes.

    Raises:
        ConfigError: a value is out of its range.
    """

    prompt_key: str | None = None
    """The prompt's column. None: the first of ``PROMPT_KEYS`` that the data has."""
    gold_key: str | None = None
    """The column of the gold solution. None: the first of ``GOLD_KEYS`` that the data has."""
    gold_format: str = "{gold}"
    """How a gold solution is written as a completion, such as ``The answer is {answer}``, which is what stands behind
    its last ``####`` or in its last box, or else all of it."""
    id_key: str = "id"
    """The column by which completions are matched to items, where both have it; else they are matched in order."""
    dataset: str | None = None
    """Name of the data set. None: from the file's name, as in a run."""
    limit: int | None = 100
    """Use the first so many items. None: all."""
    runs: int = 2
    """How often everything is scored; from two on, scores that differ are found."""
    timeout_seconds: float = 15.0
    """Deadline of one call."""
    workers: int | None = None
    """Worker processes. None: one for each core, eight at most."""
    concurrency: int = 64
    """Calls in flight at most."""
    group_size: int | None = None
    """Completions in a group of a group reward. None: all that there are of an item."""
    reward_key: str = "reward"
    """Where the reward is in a returned dict."""
    group: bool | None = None
    """Whether it scores whole groups, as ``reward.group``. None: as it is marked."""
    threshold: float = 0.5
    """A score above it counts as a right answer."""
    tokenizer: str | None = None
    """A model's folder or hub name, to render prompts and to make token ids. None: ids are the bytes of the text."""
    seed: int = 1
    """Of the garbage, and of the order in the second run."""

    def __post_init__(self) -> None:
        for name, lowest in (("limit", 1), ("runs", 1), ("workers", 1), ("concurrency", 1), ("group_size", 2)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{name}={value} must be at least {lowest}")
        if not self.timeout_seconds > 0:
            raise ConfigError(f"timeout_seconds={self.timeout_seconds} must be above 0")
        if "{gold}" not in self.gold_format and "{answer}" not in self.gold_format:
            raise ConfigError(f"gold_format={self.gold_format!r} must contain {{gold}} or {{answer}}")

    @classmethod
    def of(cls, options: dict[str, Any]) -> CheckOptions:
        """Options by name.

        Raises:
            ConfigError: there is no option of such a name.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(f"{name!r} is not an option of the check of a reward{nearest(name, known)}")
        return cls(**options)
