"""Packed weights over a private process group: what the sender and the receivers of a broadcast share.

The group is never torch's default group, which trainers and servers use for their own work. Tensors travel in buckets,
each one flat buffer of bytes without gaps; they come in an order (widest types first) that keeps each one aligned.

This module runs inside inference servers, too: of this package it imports ``shared_buffers`` alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import (  # type: ignore[attr-defined]
    BroadcastOptions,
    PrefixStore,
    ProcessGroupGloo,
    Store,
    TCPStore,
)

from areal_x.engine.transfer.shared_buffers import TensorSpec, specs_from_json

__all__ = ["BroadcastGroup", "own_address", "packed_order", "receive_buckets", "split_buckets", "views_of"]

_NCCL_BLOCKING = "TORCH_NCCL_BLOCKING_WAIT"


def packed_order(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The order in which tensors lie in a packed buffer."""
    return sorted(specs, key=lambda spec: -spec.dtype.itemsize)


def split_buckets(specs: Sequence[TensorSpec], max_bytes: int) -> list[tuple[int, int]]:
    """Ranges of ``specs`` that travel together: ``max_bytes`` at most unless one tensor has more."""
    buckets: list[tuple[int, int]] = []
    start = size = 0
    for place, spec in enumerate(specs):
        if place > start and size + spec.num_bytes > max_bytes:
            buckets.append((start, place))
            start, size = place, 0
        size += spec.num_bytes
    return [*buckets, (start, len(specs))]


def views_of(flat: torch.Tensor, specs: Sequence[TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and view of each tensor that lies in ``flat`` (bytes), without gaps and in this order."""
    start = 0
    for spec in specs:
        end = start + spec.num_bytes
        yield spec.name, flat[start:end].view(spec.dtype).view(spec.shape)
        start = end


class BroadcastGroup:
    """One process's part of a group. Making it blocks until every rank has come.

    Args:
        join: what ``BroadcastTransport.join_orders`` says below ``join``: ``backend``, ``host``, ``port``, ``rank``,
            ``world_size``, ``group`` and ``timeout_seconds``.
        rank: instead of the order's, which is that of a server's first worker.
        store: the sender's own; others connect to it.

    Raises:
        RuntimeError: a rank did not come in time (torch's own error).
    """

    def __init__(self, join: Mapping[str, Any], rank: int | None = None, store: Store | None = None) -> None:
        self.name = str(join["group"])
        self._timeout = timedelta(seconds=float(join["timeout_seconds"]))
        world_size = int(join["world_size"])
        own_rank = int(join["rank"]) if rank is None else rank
        if store is None:
            store = TCPStore(str(join["host"]), int(join["port"]), world_size, is_master=False, timeout=self._timeout)
        backend = str(join["backend"])
        # The prefixes that torch's own groups of this name get, so that servers may join through torch's functions.
        device = "cpu" if backend == "gloo" else "cuda"
        inner = PrefixStore(f"{device}/", PrefixStore(f"{self.name}/", PrefixStore(self.name, store)))
        self.is_nccl = backend == "nccl"
        self._store: Store | None = store
        if self.is_nccl:
            self._group: Any = _nccl_group(inner, own_rank, world_size, self._timeout)
        else:
            self._group = _gloo_group(inner, own_rank, world_size, self._timeout, own_address(str(join["host"])))

    def broadcast(self, flat: torch.Tensor) -> Any:
        """Start to send (rank 0) or receive ``flat``; the result is for ``wait``."""
        options = BroadcastOptions()
        options.rootRank = 0
        return self._group.broadcast([flat], options)

    def wait(self, work: Any) -> None:
        """Wait until ``flat`` may be used again.

        Raises:
            RuntimeError: a rank was lost, or the time was up (torch's own error). The group is of no more use.
        """
        work.wait(self._timeout)

    def close(self) -> None:
        """Leave the group; whoever still waits in it gets an error. Safe to call twice."""
        group, self._group, self._store = self._group, None, None
        if group is not None and self.is_nccl:
            group.abort()


def own_address(host: str) -> str:
    """This machine's address on the way to ``host``; loopback for loopback, and nothing is sent to find out."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def _gloo_group(store: Store, rank: int, world_size: int, timeout: timedelta, address: str) -> Any:
    gloo: Any = ProcessGroupGloo
    options = gloo._Options()
    # Without a device of its own it listens on whatever the machine's name stands for.
    options._devices = [gloo.create_device(hostname=address)]
    options._timeout = timeout
    return gloo(store, rank, world_size, options)


def _nccl_group(store: Store, rank: int, world_size: int, timeout: timedelta) -> Any:
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    with _blocking_wait():
        return ProcessGroupNCCL(store, rank, world_size, options)


@contextmanager
def _blocking_wait() -> Iterator[None]:
    """A group made in here raises from ``wait`` when its time is up; else torch would end the whole process."""
    before = os.environ.get(_NCCL_BLOCKING)
    os.environ[_NCCL_BLOCKING] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NCCL_BLOCKING]
        else:
            os.environ[_NCCL_BLOCKING] = before


def receive_buckets(
    group: BroadcastGroup, order: Mapping[str, Any], device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """A receiver's part of ``BroadcastTransport.send``: name and view of each tensor, as they come.

    The next bucket travels while the caller loads the one before. Each bucket has memory of its own, which lives as
    long as one of its views: a server that fuses or pads a layer keeps its parts until the last of them has come. The
    caller must take them all.

    Args:
        order: what ``BroadcastTransport.load_order`` says.
        device: of this worker; gloo's tensors are on the CPU nevertheless.

    Raises:
        RuntimeError: the sender was lost, or the time was up.
    """
    specs = specs_from_json(list(zip(order["names"], order["shapes"], order["dtypes"], strict=True)))
    buckets = [specs[start:stop] for start, stop in order["buckets"]]
    sizes = [sum(spec.num_bytes for spec in bucket) for bucket in buckets]
    place = device if group.is_nccl else torch.device("cpu")
    flat = torch.empty(sizes[0], dtype=torch.uint8, device=place)
    work = group.broadcast(flat)
    for number, bucket in enumerate(buckets):
        group.wait(work)
        received = flat
        if number + 1 < len(buckets):
            flat = torch.empty(sizes[number + 1], dtype=torch.uint8, device=place)
            work = group.broadcast(flat)
        yield from views_of(received, bucket)
