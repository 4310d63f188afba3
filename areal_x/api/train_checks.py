"""Checks of what trains and where: adapters, ranks, clusters, reward models."""

from __future__ import annotations

from importlib.util import find_spec

from areal_x.api.check_values import above_zero, at_least, bad_value
from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError
from areal_x.api.server_checks import SERVER_ENGINES

__all__ = ["check_lora"]

_MAX_SERVED_RANK = 512
"""vLLM has no kernels for larger ones."""


def check_lora(config: ExperimentConfig) -> None:
    """Refuse adapters that cannot be trained, or not be published the way that is asked for.

    Raises:
        ConfigError: names ``train.lora....`` or ``rollout.server.weights``, its value and what to use.
    """
    lora, rollout = config.train.lora, config.rollout
    at_least("train.lora.rank", lora.rank, 0)
    above_zero("train.lora.alpha", lora.alpha)
    for target in lora.targets:
        if not target or "." in target:
            fix = "names a layer by the last part of its name, such as q_proj"
            raise bad_value("train.lora.targets", repr(target), fix)
    if lora.targets and not lora.rank:
        raise bad_value("train.lora.targets", lora.targets, "needs train.lora.rank above 0, such as 16")
    if lora.rank and find_spec("peft") is None:
        raise ConfigError("train.lora.rank needs peft, which is not installed: pip install 'areal-x[lora]'")
    if rollout.server.weights != "lora":
        return
    if rollout.engine not in SERVER_ENGINES:
        fix = f"is for vllm and sglang, and rollout.engine={rollout.engine}; use auto: adapters are merged for it"
        raise bad_value("rollout.server.weights", "lora", fix)
    if not lora.rank:
        raise bad_value("rollout.server.weights", "lora", "sends adapters, and none are trained; set train.lora.rank")
    if rollout.engine == "vllm" and lora.rank > _MAX_SERVED_RANK:
        fix = f"vLLM serves adapters up to rank {_MAX_SERVED_RANK}; use less, or rollout.server.weights=auto"
        raise bad_value("train.lora.rank", lora.rank, fix)
