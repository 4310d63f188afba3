"""What the models of a run are, in words that a checkpoint keeps: only a run of the same ones goes on from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError

__all__ = ["run_identity"]


def run_identity(config: ExperimentConfig, model_path: Path | str) -> dict[str, str]:
    """Architecture and shapes of the policy, its adapters, and which further models have a state of their own.

    Only the model's configuration is read, so this needs neither its weights nor a GPU.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    roles = ["policy"]
    if config.uses_critic:
        roles.append("critic")
    if config.uses_reference and config.reference.ema_decay is not None:
        roles.append("moving reference")
    return {
        "model": _model_words(model_path, config.model.trust_remote_code),
        "adapters": _adapter_words(config),
        "roles": ", ".join(roles),
    }


def _model_words(path: Path | str, trust_remote_code: bool) -> str:
    try:
        model_config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {path} could not be loaded: {str(error).splitlines()[0]}") from error
    shapes = [f"{name} {tuple(parameter.shape)}" for name, parameter in model.named_parameters()]
    number = sum(parameter.numel() for parameter in model.parameters())
    digest = hashlib.blake2b("\n".join(shapes).encode(), digest_size=4).hexdigest()
    return f"{type(model).__name__} of {number:,} numbers in {len(shapes)} weights (shapes {digest})"


def _adapter_words(config: ExperimentConfig) -> str:
    lora = config.train.lora
    if not lora.rank:
        return "none"
    return f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(sorted(lora.targets)) or 'all linear layers'}"
