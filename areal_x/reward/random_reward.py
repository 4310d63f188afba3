"""A reward without meaning, for smoke tests: nothing can be learnt from it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from areal_x.reward.options import check_choice, check_number
from areal_x.reward.registry import register_reward

__all__ = ["RandomReward"]

_SYSTEM_RANDOM = random.SystemRandom()


@register_reward("random", extracts="nothing", returns="1 or 0 by chance")
class RandomReward:
    """1 with the given probability, else 0, whatever the completion says. For smoke tests and baselines.

    The draw depends on the seed, the prompt and the completion alone, so that a run can be repeated, and no two worker
    processes deal the same numbers because they were forked from one. Equal completions to one prompt draw alike.

    Args:
        probability: of a 1.
        seed: another seed, another reward.
        compat: ``slime`` draws anew at every call, so that scoring again gives another reward.
    """

    def __init__(self, probability: float = 0.5, seed: int = 0, compat: str | None = None) -> None:
        check_choice("random", "compat", compat, (None, "slime"))
        self.probability = check_number("random", "probability", probability, 0.0, 1.0)
        self.seed = seed
        self.compat = compat

    def __call__(self, prompt: str, completions: str, completion_ids: Sequence[int] = ()) -> float:
        """Draw for one completion."""
        if self.compat == "slime":
            return float(_SYSTEM_RANDOM.random() < self.probability)
        parts = (str(self.seed), prompt, completions, ",".join(map(str, completion_ids)))
        digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=7)
        return float(int.from_bytes(digest.digest(), "big") < self.probability * 2**56)
