"""Weights in parts: each rank holds some rows of every weight and of its optimiser (FSDP2, ``fully_shard``). ::

    build on the meta device -> shard_module -> materialise (own rows only) -> load_into (own rows of the checkpoint)

Each decoder layer is gathered when its turn comes, and freed after it; what the root owns (embedding, last norm, output
layer) is whole from the root's forward to its backward pass. Gradients are sums over ranks, as losses are token sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from areal_x.api.config import TrainConfig
from areal_x.api.errors import ConfigError
from areal_x.engine.ranks.rank_context import RankContext

__all__ = [
    "computes_in_bfloat16",
    "decoder_layers",
    "free_gathered",
    "local_rows",
    "needs_sharding",
    "shard_module",
    "whole",
]


def computes_in_bfloat16(train: TrainConfig, device: torch.device) -> bool:
    """Whether forward and backward passes are in bfloat16; weights and optimiser stay float32."""
    return train.mixed_precision == "bfloat16" or (train.mixed_precision == "auto" and device.type == "cuda")


def needs_sharding(ranks: RankContext, train: TrainConfig, device: torch.device) -> bool:
    """Whether ``shard_module`` has anything to do: several ranks, numbers of two types, or weights on the host."""
    return ranks.num_ranks > 1 or train.cpu_offload or computes_in_bfloat16(train, device)


def shard_module(
    root: torch.nn.Module,
    layers: Sequence[torch.nn.Module],
    ranks: RankContext,
    train: TrainConfig,
    device: torch.device,
    methods: Sequence[str] = (),
) -> None:
    """Divide the weights of ``layers``, each on its own, and then the rest of ``root`` among the ranks, in place.

    Nothing happens where ``needs_sharding`` says so. Gradients become sums over ranks.

    Args:
        methods: of ``root``, that may be called as its forward is.

    Raises:
        ConfigError: offload is asked for where the device is the host itself.
    """
    if not needs_sharding(ranks, train, device):
        return
    if train.cpu_offload and device.type == "cpu":
        raise ConfigError("train.cpu_offload: the model is trained on a CPU, its weights are in the host's memory")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # A mesh takes the current one.
    options: dict[str, Any] = {
        "mesh": ranks.mesh or _mesh_of_one(device),
        "mp_policy": _precision(train, device),
        "offload_policy": CPUOffloadPolicy() if train.cpu_offload else OffloadPolicy(),
    }
    for module in (*layers, root):
        sharded: Any = fully_shard(module, **options)
        if ranks.num_ranks > 1:
            # A plain sum: gloo knows no scaled one, and the global token count divides later.
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
    for method in methods:
        register_fsdp_forward_method(root, method)


def _precision(train: TrainConfig, device: torch.device) -> MixedPrecisionPolicy:
    if computes_in_bfloat16(train, device):
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return MixedPrecisionPolicy()


def _mesh_of_one(device: torch.device) -> DeviceMesh:
    """A group of this process alone, which ``fully_shard`` asks for to cast or offload weights."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    group = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    return DeviceMesh.from_group(group, device.type)


def free_gathered(root: torch.nn.Module) -> None:
    """Let go of weights that were gathered for a pass without a backward pass, or one that failed half-way; later
    passes gather new values."""
    if isinstance(root, FSDPModule):
        root.reset_iter_state()


def local_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A tensor's rows on this rank, without gradient, and the index of the first; of one that is whole, all and 0."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    num_rows, mesh = tensor.shape[0], tensor.device_mesh
    rows_per_rank = -(-num_rows // mesh.size())
    rows: torch.Tensor = tensor.to_local().detach()
    return rows, min(mesh.get_local_rank() * rows_per_rank, num_rows)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, gathered from all ranks if it is sharded; without gradient. Every rank must call it."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    if tensor.device_mesh.size() == 1:
        # Where it lies: on a thread that has not chosen a GPU, "cuda" would be the first one.
        return tensor.to_local().detach()
    gathered: Any = tensor.detach().to(tensor.device_mesh.device_type)
    result: torch.Tensor = gathered.full_tensor()
    return result


def decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The blocks that are gathered one at a time: those that transformers does not split between devices.

    Raises:
        ConfigError: the model names none.
    """
    names = set(model._no_split_modules or ())
    layers = [module for module in model.base_model.modules() if type(module).__name__ in names]
    if not layers:
        raise ConfigError(
            f"model.path: {model.config.model_type} models do not name their layers, so they cannot be divided among "
            "ranks; use train.num_ranks=1 and train.mixed_precision=float32"
        )
    return layers
