"""Options belong to what they are options of: another reward, workflow or data set does not inherit them.

``reward.kwargs`` of a preset are options of that preset's reward. Whoever names another ``reward.fn``, in a file or on
the command line, begins with none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

__all__ = ["OPTION_OWNERS", "drop_inherited_options"]

OPTION_OWNERS = {"data.path": "data.kwargs", "reward.fn": "reward.kwargs", "workflow.path": "workflow.kwargs"}
"""Key that names something, and the key of its options."""


def drop_inherited_options(tree: DictConfig, file: Path, overridden: Sequence[str]) -> None:
    """Leave only the options that were given together with, or after, what they belong to.

    Args:
        tree: the composed configuration, changed in place.
        file: the primary configuration file; what it says itself stands.
        overridden: keys that the command line sets.
    """
    own = OmegaConf.load(file)
    for owner, options in OPTION_OWNERS.items():
        if owner in overridden:
            OmegaConf.update(tree, options, {}, merge=False)
        elif isinstance(own, DictConfig) and OmegaConf.select(own, owner) is not None:
            OmegaConf.update(tree, options, OmegaConf.select(own, options) or {}, merge=False)
