"""``slime.utils.types`` for machines without slime: the one module that nearly every reward for slime imports."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

from areal_x.reward.adapters.slime_sample import Sample

__all__ = ["provide_slime_types", "sample_class"]

_MODULE = "slime.utils.types"


def provide_slime_types() -> None:
    """Make ``from slime.utils.types import Sample`` work where slime is not installed. Installed, it is used as it is.

    Nothing else of slime is there: an import of another of its modules fails with Python's own error.
    """
    if "slime" in sys.modules or importlib.util.find_spec("slime") is not None:
        return
    parent: types.ModuleType | None = None
    for name in ("slime", "slime.utils", _MODULE):
        module = types.ModuleType(name, "Stands in for slime, which is not installed.")
        if name == _MODULE:
            module.Sample = Sample  # type: ignore[attr-defined]
        else:
            module.__path__ = []
        if parent is not None:
            setattr(parent, name.rpartition(".")[2], module)
        sys.modules[name] = parent = module


def sample_class() -> Any:
    """The ``Sample`` that user code compares with: slime's own if it was imported, else the one of areal_x."""
    module = sys.modules.get(_MODULE)
    return Sample if module is None else module.Sample
