"""Which way weights take to which servers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from areal_x.api.errors import ConfigError
from areal_x.api.server_checks import WEIGHT_WAYS
from areal_x.engine.transfer.broadcast import GlooTransport, NcclTransport
from areal_x.engine.transfer.cuda_ipc import CudaIpcTransport
from areal_x.engine.transfer.disk import DiskTransport
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.shared_memory import SharedFolderTransport, SharedMemoryTransport
from areal_x.engine.transfer.transport import WeightTransport

__all__ = ["choose_way", "make_transport"]


def choose_way(engine: str, on_cpu: bool, starts_servers: bool, colocated: bool, num_servers: int) -> str:
    """What ``auto`` stands for: the fastest way that surely works.

    Args:
        engine: ``vllm`` or ``sglang``.
        on_cpu: the servers compute on a CPU.
        starts_servers: this run starts them, on this machine; else they run already, anywhere.
        colocated: they share the trainer's GPU.
        num_servers: how many there are.
    """
    if not starts_servers:
        return "disk"
    if on_cpu:
        return "shared_memory"
    if colocated:
        # Only the first of several servers has the trainer's GPU, and NCCL takes no GPU twice.
        return "cuda_ipc" if num_servers == 1 else "shared_memory"
    return "nccl"


def make_transport(
    way: str,
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    engine: str,
    dtype: torch.dtype | None,
    num_ranks_per_server: int = 1,
    directory: Path,
    timeout_seconds: float,
    quantization: str | None = None,
    model_path: str | None = None,
) -> WeightTransport:
    """The transport for a way that is not ``auto``.

    Args:
        way: as in ``rollout.server.weights``.
        named_tensors: the trainer's weights.
        engine: ``vllm`` or ``sglang``.
        dtype: type that the servers compute in. Default: each tensor's own.
        num_ranks_per_server: GPUs of one server (tensor parallel).
        directory: where the way ``disk`` writes.
        timeout_seconds: for each collective step.
        quantization: ``fp8`` or ``fp8_block``.
        model_path: folder of the initial model, whose configuration goes along with weights on disk.

    Raises:
        ConfigError: this way does not work for these tensors.
    """
    tensors = list(named_tensors)
    on_cuda = bool(tensors) and all(tensor.device.type == "cuda" for _, tensor in tensors)
    if way in ("nccl", "cuda_ipc") and not on_cuda:
        raise ConfigError(
            f"rollout.server.weights={way}: it needs the trainer's weights on a CUDA device; "
            "use shared_memory, gloo or disk"
        )
    layout = TensorLayout(tensors, dtype, quantization)
    if way == "shared_memory":
        return SharedMemoryTransport(layout) if engine == "vllm" else SharedFolderTransport(layout, model_path)
    if way in ("gloo", "nccl"):
        kind = GlooTransport if way == "gloo" else NcclTransport
        device = tensors[0][1].device if way == "nccl" else torch.device("cpu")
        return kind(layout, num_ranks_per_server=num_ranks_per_server, timeout_seconds=timeout_seconds, device=device)
    if way == "cuda_ipc":
        if num_ranks_per_server > 1:
            raise ConfigError(
                f"rollout.server.weights=cuda_ipc: a server of {num_ranks_per_server} GPUs cannot open memory of the "
                "trainer's one; use shared_memory"
            )
        return CudaIpcTransport(layout, device=tensors[0][1].device, engine=engine)
    if way == "disk":
        return DiskTransport(layout, directory, model_path)
    whole = ", ".join(known for known in WEIGHT_WAYS if known != "lora")
    raise ConfigError(f"rollout.server.weights={way}: it must be one of {whole}")
