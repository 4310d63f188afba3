"""Options belong to what they are options of: another reward, workflow or data set does not inherit them.

``reward.kwargs`` of a preset are options of that preset's reward. Whoever names another ``reward.fn``, or several
``reward.rewards``, in a file or on the command line, begins with none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from areal_x.launch.schema import entry_of_key

__all__ = ["OPTION_OWNERS", "drop_inherited_options"]

OPTION_OWNERS: dict[str, dict[str, Any]] = {
    "algorithm.advantage": {"algorithm.advantage_kwargs": {}},
    "algorithm.correction": {"algorithm.correction_kwargs": {}},
    "algorithm.policy_loss": {"algorithm.policy_loss_kwargs": {}},
    "data.path": {"data.kwargs": {}},
    "reward.post_process": {"reward.post_process_kwargs": {}},
    "reward.fn": {"reward.kwargs": {}, "reward.rewards": {}, "reward.group": None},
    "reward.rewards": {"reward.fn": None, "reward.kwargs": {}, "reward.group": None},
    "rollout.filter": {"rollout.filter_kwargs": {}},
    "workflow.path": {"workflow.kwargs": {}},
}
"""Key that names something, and its options with what they are when nobody gave them."""


def drop_inherited_options(tree: DictConfig, file: Path, overridden: Sequence[str]) -> None:
    """Leave only the options that were given together with, or after, what they belong to.

    Args:
        tree: the composed configuration, changed in place.
        file: the primary configuration file; what it says itself stands.
        overridden: keys that the command line sets.
    """
    own = OmegaConf.load(file)
    for owner, options in OPTION_OWNERS.items():
        if any(key == owner or key.startswith(f"{owner}.") for key in overridden):
            said: Any = None
        elif isinstance(own, DictConfig) and OmegaConf.select(own, owner) is not None:
            said = own
        else:
            continue
        for key, default in options.items():
            if key in overridden:
                continue
            value = None if said is None else OmegaConf.select(said, key)
            OmegaConf.update(tree, key, default if value is None else value, merge=False)
    for key in overridden:
        entry = entry_of_key(key)
        if entry is not None and key == f"{entry[0]}.fn" and OmegaConf.select(tree, entry[0]) is not None:
            OmegaConf.update(tree, f"{entry[0]}.kwargs", {}, merge=False)
