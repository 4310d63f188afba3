"""What may be done to decoder layers: compute them again in the backward pass, compile them, Liger's kernels.

Hooks that gather sharded weights run around a layer's ``forward``, so replacing that keeps them outside: a layer is
gathered once for its backward pass, and compiled code sees whole weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from areal_x.api.config import TrainConfig
from areal_x.api.errors import ConfigError
from areal_x.engine.train.attention import PACKED_ATTENTION

__all__ = ["apply_layer_options", "checkpoint_layers", "use_liger_kernels"]


def apply_layer_options(
    model: PreTrainedModel, layers: Sequence[torch.nn.Module], train: TrainConfig, device: torch.device
) -> None:
    """Do to ``layers`` what ``train`` asks for, in place.

    Raises:
        ConfigError: Liger's kernels are asked for and cannot be used.
    """
    if train.liger:
        use_liger_kernels(model, device)
    if train.compile:
        _compile_layers(layers)
    if train.gradient_checkpointing:
        checkpoint_layers(layers)


def checkpoint_layers(layers: Sequence[torch.nn.Module]) -> None:
    """Keep only what enters each layer; the backward pass computes the rest again. Nothing in them is random."""
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def _compile_layers(layers: Sequence[torch.nn.Module]) -> None:
    """Compile each layer but its attention: bucket sizes change with every micro-batch, and each would be a new graph.

    One graph, of any number of rows, serves all layers of a kind.
    """
    attention = ALL_ATTENTION_FUNCTIONS[PACKED_ATTENTION]
    AttentionInterface.register(PACKED_ATTENTION, torch.compiler.disable(attention))
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def use_liger_kernels(model: PreTrainedModel, device: torch.device) -> None:
    """Replace norms, rotary embeddings and gated units by Liger's kernels.

    Raises:
        ConfigError: there is no CUDA device, the package is missing, or it does not know the model.
    """
    if device.type != "cuda":
        raise ConfigError(f"train.liger: these kernels run on CUDA alone, the model is trained on {device.type}")
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise ConfigError("train.liger needs Liger, which is not installed: pip install 'areal-x[liger]'") from error
    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ConfigError(f"train.liger: Liger has no kernels for {model.config.model_type} models; leave it off")
    # The output layer's loss is the chunked log-probabilities' business.
    _apply_liger_kernel_to_instance(model, fused_linear_cross_entropy=False, cross_entropy=False)
