"""The states of a process's random number generators, as JSON holds them."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch

__all__ = ["random_states", "restore_random_states"]


def random_states(device: torch.device) -> dict[str, Any]:
    """Of torch on the CPU and on ``device``, of numpy and of Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    return {
        "torch": _text(torch.get_rng_state()),
        "cuda": _text(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None,
        "numpy": [name, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)],
        "python": [version, list(words), next_gauss],
    }


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Go on where ``random_states`` was taken; what is not there stays as it is."""
    if "torch" in states:
        torch.set_rng_state(_tensor(states["torch"]))
    if device.type == "cuda" and states.get("cuda") is not None:
        torch.cuda.set_rng_state(_tensor(states["cuda"]), device)
    if "numpy" in states:
        name, keys, position, has_gauss, gauss = states["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    if "python" in states:
        version, words, next_gauss = states["python"]
        random.setstate((version, tuple(words), next_gauss))


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
