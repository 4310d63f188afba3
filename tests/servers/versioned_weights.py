"""Weights whose log-probabilities say which version they are, so that a check needs no stored model.

All layers add nothing, so the hidden state is that of the embedding, which is the same for every token. The head has
one row that is not zero, for the token ``MARKED``. Its logit, hence every log-probability, depends on the version.

Embedding, last norm and head each depend on the version in a way that cancels out only among themselves: a forward
pass with parts of two versions gives the log-probabilities of neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from server_models import VOCAB, Policy

from areal_x.api.records import ModelResponse

__all__ = ["MARKED", "VersionedWeights"]

MARKED = 50
_STEP = 0.002
"""Distance of the logits of two versions: their log-probabilities differ by 5e-4 or more."""
_MIDDLE = 500
"""The version at which the marked token has as much probability as all others together; 0 to 1000 are near it."""
_TOLERANCE = 1e-4


class VersionedWeights:
    """The weights of any version, and what they sample."""

    def __init__(self, policy: Policy, first_version: int) -> None:
        self._tensors = dict(policy.versions[0])
        self._first = first_version
        self.version = first_version

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights of ``version``."""
        number = self.version - self._first
        embedding, norm = 1.0 + 0.05 * (number % 5), 1.0 + 0.1 * (number % 7)
        for name, tensor in self._tensors.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                yield name, torch.zeros_like(tensor)
            elif name == "model.embed_tokens.weight":
                # Of unit mean square, so that the norm leaves it alone; the head reads only its first half.
                half = torch.full_like(tensor[:, ::2], embedding)
                yield name, torch.cat([half, torch.full_like(half, math.sqrt(2.0 - embedding**2))], 1)
            elif name == "model.norm.weight":
                yield name, torch.full_like(tensor, norm)
            elif name == "lm_head.weight":
                head = torch.zeros_like(tensor)
                size = tensor.shape[1] // 2
                head[MARKED, :size] = self._logit(self.version) / (embedding * norm * size)
                yield name, head
            else:
                yield name, tensor

    def _logit(self, version: int) -> float:
        return math.log(VOCAB - 1) + _STEP * (version - self._first - _MIDDLE)

    def num_wrong(self, response: ModelResponse) -> int:
        """Tokens whose log-probability is not that of the version that they are stamped with."""
        wrong = 0
        for start, end, version in response.version_spans:
            logit = self._logit(version)
            total = math.log(math.exp(logit) + VOCAB - 1)
            expected = np.where(response.output_ids[start:end] == MARKED, logit - total, -total)
            wrong += int((~(np.abs(response.logprobs[start:end] - expected) < _TOLERANCE)).sum())
        return wrong
