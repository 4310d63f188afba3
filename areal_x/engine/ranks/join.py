"""Joining: processes that meet at one store become ranks that can compute together."""

from __future__ import annotations

import socket
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh

from areal_x.api.errors import EngineError
from areal_x.engine.ranks.rank_context import RankContext

__all__ = ["join_ranks", "leave_ranks", "open_store"]


def open_store(timeout_seconds: float, host: str = "127.0.0.1") -> TCPStore:
    """The place where ranks find each other; ``store.host`` and ``store.port`` are its address. One process holds it.

    Args:
        timeout_seconds: how long a rank waits for what another has to say.
        host: an address of this machine. Only who reaches it reaches the store; torch alone would listen everywhere.
    """
    listener = socket.create_server((host, 0), backlog=1024)
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_seconds),
        master_listen_fd=listener.detach(),
    )


def join_ranks(
    rank: int,
    num_ranks: int,
    *,
    device: str,
    store_address: str,
    timeout_seconds: float,
    sequence_parallel: int = 1,
) -> RankContext:
    """Make this process one of ``num_ranks`` ranks; returns when all have come.

    It becomes torch's default process group: gloo on a CPU; on CUDA, NCCL for what is on the device and gloo for the
    rest. Only one rank's group can exist in a process.

    Args:
        device: ``cpu`` or ``cuda``; the first GPU that this process sees is then its own.
        store_address: ``host:port`` of ``open_store``.
        timeout_seconds: how long one rank waits for the others, here and in every collective.
        sequence_parallel: neighbours that share each micro-batch; divides ``num_ranks``.

    Raises:
        EngineError: the ranks did not meet in time, or the device is not there.
    """
    kind = device.partition(":")[0]
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise EngineError(f"rank {rank}: device cuda was asked for, but this process sees no GPU")
        torch.cuda.set_device(0)
    host, _, port = store_address.rpartition(":")
    timeout = timedelta(seconds=timeout_seconds)
    try:
        store = TCPStore(host.strip("[]"), int(port), is_master=False, wait_for_workers=False, timeout=timeout)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=num_ranks,
            timeout=timeout,
            device_id=torch.device("cuda", 0) if kind == "cuda" else None,
        )
        mesh = init_device_mesh(kind, (num_ranks,))
        sequence_mesh = None
        if sequence_parallel > 1:
            shape = (num_ranks // sequence_parallel, sequence_parallel)
            sequence_mesh = init_device_mesh(kind, shape, mesh_dim_names=("data", "sequence"))["sequence"]
    except (RuntimeError, ValueError) as error:
        leave_ranks()
        raise EngineError(
            f"rank {rank} of {num_ranks} could not join the others at {store_address} within {timeout_seconds:g} s: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return RankContext(rank, num_ranks, sequence_parallel, mesh, sequence_mesh)


def leave_ranks() -> None:
    """Undo ``join_ranks``, without waiting for the others. Safe when this process is no rank."""
    if dist.is_initialized():
        dist.destroy_process_group()
