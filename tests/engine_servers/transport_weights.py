"""Small weights of several versions, shapes and types for the tests of transports."""

from __future__ import annotations

import torch

__all__ = ["weights"]

Named = list[tuple[str, torch.Tensor]]


def weights(version: int, *, num_layers: int = 2) -> Named:
    """Weights that differ from version to version, with linear layers, a norm, an embedding and a scalar."""
    generator = torch.Generator().manual_seed(version)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    named = [("model.embed_tokens.weight", random(17, 40)), ("model.norm.weight", random(40).bfloat16())]
    for layer in range(num_layers):
        named.append((f"model.layers.{layer}.self_attn.q_proj.weight", random(130, 40)))
        named.append((f"model.layers.{layer}.self_attn.q_proj.bias", random(130)))
        named.append((f"model.layers.{layer}.mlp.down_proj.weight", random(40, 257)))
        named.append((f"model.layers.{layer}.input_layernorm.weight", random(40)))
    return [*named, ("scale", random())]
