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

__all__ = ["choose_way", "make_transport", "transport_of_layout"]


def choose_way(
    engine: str,
    on_cpu: bool,
    starts_servers: bool,
    colocated: bool,
    num_servers: int,
    from_ranks: bool = False,
    one_machine: bool = True,
) -> str:
    """What ``auto`` stands for: the fastest way that surely works.

    Args:
        engine: ``vllm`` or ``sglang``.
        on_cpu: the servers compute on a CPU.
        starts_servers: this run starts them, on this machine; else they run already, anywhere.
        colocated: they share the trainer's GPU.
        num_servers: how many there are.
        from_ranks: ranks train, in processes of their own.
        one_machine: all servers run on the machine of the run's own process.
    """
    if not starts_servers:
        return "disk"
    if on_cpu:
        return "shared_memory" if one_machine else "gloo"
    if colocated:
        # Only the first of several servers has the trainer's GPU, and NCCL takes no GPU twice. Weights of ranks meet in
        # the memory of the host.
        return "cuda_ipc" if num_servers == 1 and not from_ranks else "shared_memory"
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
        named_tensors: the trainer's weights, whose device is that of nccl and cuda_ipc.
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
    return transport_of_layout(
        way,
        TensorLayout(tensors, dtype, quantization),
        device=tensors[0][1].device if on_cuda else torch.device("cpu"),
        engine=engine,
        num_ranks_per_server=num_ranks_per_server,
        directory=directory,
        timeout_seconds=timeout_seconds,
        model_path=model_path,
    )


def transport_of_layout(
    way: str,
    layout: TensorLayout,
    *,
    device: torch.device,
    engine: str,
    num_ranks_per_server: int = 1,
    directory: Path,
    timeout_seconds: float,
    model_path: str | None = None,
    from_ranks: bool = False,
    address: str = "127.0.0.1",
) -> WeightTransport:
    """As ``make_transport``, for weights that need not be in this process.

    Args:
        layout: what servers get.
        device: where the weights are, and from where nccl sends them.
        from_ranks: ranks write them, each its rows; they are staged in this machine's memory or on disk.
        address: of this machine, as servers reach it; loopback when all run here.

    Raises:
        ConfigError: this way does not work for these weights.
    """
    if way in ("nccl", "cuda_ipc") and device.type != "cuda":
        raise ConfigError(
            f"rollout.server.weights={way}: it needs the trainer's weights on a CUDA device; "
            "use shared_memory, gloo or disk"
        )
    if way == "shared_memory":
        return SharedMemoryTransport(layout) if engine == "vllm" else SharedFolderTransport(layout, model_path)
    if way in ("gloo", "nccl"):
        kind = GlooTransport if way == "gloo" else NcclTransport
        return kind(
            layout,
            num_ranks_per_server=num_ranks_per_server,
            timeout_seconds=timeout_seconds,
            device=device if way == "nccl" else torch.device("cpu"),
            on_host=from_ranks,
            host=address,
        )
    if way == "cuda_ipc":
        if num_ranks_per_server > 1:
            raise ConfigError(
                f"rollout.server.weights=cuda_ipc: a server of {num_ranks_per_server} GPUs cannot open memory of the "
                "trainer's one; use shared_memory"
            )
        if from_ranks:
            raise ConfigError(
                "rollout.server.weights=cuda_ipc: it passes on memory of one process, and with train.num_ranks above 1 "
                "or cluster=ray the weights are those of ranks; use shared_memory"
            )
        return CudaIpcTransport(layout, device=device, engine=engine)
    if way == "disk":
        return DiskTransport(layout, directory, model_path)
    whole = ", ".join(known for known in WEIGHT_WAYS if known != "lora")
    raise ConfigError(f"rollout.server.weights={way}: it must be one of {whole}")
