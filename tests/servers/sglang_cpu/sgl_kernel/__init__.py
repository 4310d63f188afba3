"""Stands in for SGLang's compiled kernels on a CPU, where there is no wheel of them.

SGLang imports names of this package when it starts, and calls none of them for dense models with
``--device cpu --attention-backend torch_native``: so every name is there, and says what is wrong when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

__version__ = "0.0.0"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} is a compiled kernel; this environment holds only its name")

    missing.__name__ = name
    return missing


def _init_cpu_threads_env(cpu_ids: str) -> str:
    return cpu_ids


# SGLang looks this operator up before it asks whether it needs it.
torch.library.define("sgl_kernel::init_cpu_threads_env", "(str cpu_ids) -> str")
torch.library.impl("sgl_kernel::init_cpu_threads_env", "CompositeExplicitAutograd", _init_cpu_threads_env)
