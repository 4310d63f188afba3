"""Random and given tokens for tests of the objective."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from areal_x.engine.train.objective.tokens import LossTokens

__all__ = ["Numbers", "make_tokens", "random_numbers", "tensor"]

Numbers = dict[str, npt.NDArray[np.float64]]


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make_tokens(numbers: Numbers, anchor: str = "proximal", dtype: torch.dtype = torch.float64) -> LossTokens:
    """Tokens of ``numbers``: new, proximal, behaviour, advantages, sequence, lag."""
    floats = {name: torch.tensor(numbers[name], dtype=dtype) for name in ("new", "proximal", "behaviour", "advantages")}
    return LossTokens(
        logprobs=floats["new"].requires_grad_(),
        behaviour=floats["behaviour"],
        proximal=floats["proximal"],
        anchor=floats[anchor],
        advantages=floats["advantages"],
        sequence=torch.tensor(numbers["sequence"], dtype=torch.int64),
        num_sequences=8,
        lag=torch.tensor(numbers["lag"], dtype=torch.int32),
    )


def random_numbers(seed: int, size: int = 200, spread: float = 0.5) -> Numbers:
    """Float32 values; sequences 0 and 5 of 8 have no token."""
    generator = np.random.default_rng(seed)
    behaviour = -3 + generator.standard_normal(size)
    proximal = behaviour + spread * generator.standard_normal(size)
    new = proximal + spread * generator.standard_normal(size)
    advantages = generator.standard_normal(size)
    advantages[::7] = 0
    found = {"behaviour": behaviour, "proximal": proximal, "new": new, "advantages": advantages}
    found = {name: values.astype(np.float32).astype(np.float64) for name, values in found.items()}
    sequence = np.sort(generator.choice([1, 2, 3, 4, 6, 7], size))
    return found | {"sequence": sequence.astype(np.float64), "lag": generator.integers(0, 3, size).astype(np.float64)}
