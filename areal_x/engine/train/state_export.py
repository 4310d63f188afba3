"""A policy's training state as a model in Hugging Face format, without ranks and without a GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from areal_x.api.config import LoraConfig
from areal_x.api.errors import CheckpointError, ConfigError
from areal_x.engine.ranks.rank_context import ONE_RANK
from areal_x.engine.train.load_rows import materialise
from areal_x.engine.train.lora import adapter_facts, add_adapters
from areal_x.engine.train.policy_files import save_policy
from areal_x.engine.train.state_files import StateReader
from areal_x.engine.train.training_state import MODEL, bit_sums, other_base, saved_bit_sums

__all__ = ["export_state"]


def export_state(
    state: Path,
    model_files: Path,
    output: Path,
    *,
    base_model: Path | str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write what ``FSDPEngine.save`` would have written where the state was taken.

    Args:
        state: what ``begin_checkpoint`` wrote.
        model_files: the model's configuration.
        output: a directory.
        base_model: the model below adapters. Default: where it was when they were trained.

    Raises:
        CheckpointError: the state cannot be read, or its adapters' base is not there.
        OSError: the model cannot be written.
    """
    reader = StateReader(state)
    lora = LoraConfig(**reader.facts["lora"])
    if not lora.rank:
        model = _empty_model(model_files, trust_remote_code)
        _read(reader, model)
        save_policy(model, output, ONE_RANK)
        return
    base = str(base_model or reader.facts["model_path"])
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {state} holds adapters, and the model below them cannot be loaded from {base}: say where it "
            f"is (--base-model); {str(error).splitlines()[0]}"
        ) from error
    add_adapters(model, lora)
    if bit_sums(p for p in model.parameters() if not p.requires_grad) != saved_bit_sums(reader):
        raise other_base(state, f"of {base}")
    _read(reader, model)
    save_policy(model, output, ONE_RANK, adapter_facts(model, lora, base))


def _empty_model(model_files: Path, trust_remote_code: bool) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(model_files, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model_files} holds no usable configuration: {str(error).splitlines()[0]}") from error
    materialise(model, model, torch.device("cpu"))
    return model


def _read(reader: StateReader, model: PreTrainedModel) -> None:
    """Read what the state has of this model, which is all that was trained of it."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    held = {MODEL + name: tensor for name, tensor in tensors.items() if name in wanted or MODEL + name in reader.shapes}
    reader.check(held)
    reader.read(held)
