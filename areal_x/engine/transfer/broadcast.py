"""Weights broadcast to all servers at once, over gloo (CPU) or NCCL (GPU)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.broadcast_group import BroadcastGroup, packed_order, split_buckets
from areal_x.engine.transfer.flat_memory import FlatMemory
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.shared_buffers import specs_to_json
from areal_x.engine.transfer.staging import OpenWrite
from areal_x.engine.transfer.transport import Order, WeightTransport

__all__ = ["BroadcastTransport", "GlooTransport", "NcclTransport"]

_GROUP = "areal_x"


class BroadcastTransport(WeightTransport):
    """Rank 0 of a group of its own, in which each worker of each server has one of the other ranks.

    Staging copies the weights into one of two flat buffers; the order names the version, and the buffer that it lies in
    is what is sent, even if the next version has been staged meanwhile.

    Args:
        layout: what is sent.
        num_ranks_per_server: workers of one server.
        timeout_seconds: for joining, and for each bucket.
        device: that tensors are sent from.
        host: this machine's address as servers reach it. Whoever reaches it could join, so it is loopback unless
            servers run on other machines.
        bucket_bytes: size of a bucket.
        on_host: stage in this machine's memory, where ranks can write; else on ``device``.
    """

    backend: ClassVar[str]
    default_bucket_bytes: ClassVar[int]

    def __init__(
        self,
        layout: TensorLayout,
        *,
        num_ranks_per_server: int,
        timeout_seconds: float,
        device: torch.device,
        bucket_bytes: int | None = None,
        on_host: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        super().__init__(layout)
        self._num_ranks = num_ranks_per_server
        self._timeout = timeout_seconds
        self._host = host
        self._specs = packed_order(layout.specs)
        self._buckets = split_buckets(self._specs, bucket_bytes or self.default_bucket_bytes)
        self._device = device
        self._halves = [self._half(on_host=on_host or device.type == "cpu") for _ in range(2)]
        self._versions: list[int | None] = [None, None]
        self._sums: list[Mapping[str, int]] = [{}, {}]
        self._newest = 1
        self._ordered: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._holds_lock = False
        self._group: BroadcastGroup | None = None
        self._next_join: tuple[dict[str, Any], TCPStore] | None = None

    def _half(self, on_host: bool) -> FlatMemory:
        if on_host:
            return FlatMemory.shared(self.layout.num_bytes)
        return FlatMemory(torch.empty(self.layout.num_bytes, dtype=torch.uint8, device=self._device), None)

    @property
    def version(self) -> int | None:
        """See ``Staging.version``."""
        return self._versions[self._newest]

    def begin(self, version: int) -> OpenWrite:
        """See ``Staging.begin``. Waits while the buffer that it needs is sent."""
        target = 1 - self._newest
        self._holds_lock = self._ordered is None or self._ordered[0] == target
        if self._holds_lock:
            self._lock.acquire()
        self._versions[target] = None
        return self._halves[target].open(self.layout.order(version), self._specs)

    def finish(self, write: OpenWrite, sums: Mapping[str, int]) -> None:
        """See ``Staging.finish``."""
        target = 1 - self._newest
        self._sums[target] = sums
        self._versions[target] = write.order.version
        self._newest = target
        self.abandon(write)

    def abandon(self, write: OpenWrite) -> None:
        """See ``Staging.abandon``."""
        if self._holds_lock:
            self._holds_lock = False
            self._lock.release()

    def join_orders(self, num_servers: int) -> list[Order]:
        """See ``WeightTransport.join_orders``. Each call is a new group, with a port of its own."""
        self._leave()
        world_size = 1 + num_servers * self._num_ranks
        store = _listen(self._host, world_size, self._timeout)
        join = {
            "backend": self.backend,
            "host": self._host,
            "port": store.port,
            "rank": 0,
            "world_size": world_size,
            "group": _GROUP,
            "timeout_seconds": self._timeout,
        }
        self._next_join = (join, store)
        return [
            {"way": "broadcast", "join": {**join, "rank": 1 + number * self._num_ranks}}
            for number in range(num_servers)
        ]

    def join(self) -> None:
        """See ``WeightTransport.join``."""
        if self._next_join is None:
            raise EngineError("join_orders comes before join")
        (join, store), self._next_join = self._next_join, None
        try:
            self._group = BroadcastGroup(join, store=store)
        except RuntimeError as error:
            raise EngineError(
                f"not every server joined the {self.backend} group within {self._timeout:g} s: {_first_line(error)}"
            ) from error

    def load_order(self) -> Order:
        """See ``WeightTransport.load_order``."""
        version = self._versions[self._newest]
        if version is None:
            raise EngineError("no weights have been written yet")
        if self._group is None:
            raise EngineError(f"servers have to join a new {self.backend} group before they load")
        self._ordered = (self._newest, version)
        layout = specs_to_json(self._specs)
        return {
            "way": "broadcast",
            "group": self._group.name,
            "names": [name for name, _, _ in layout],
            "shapes": [shape for _, shape, _ in layout],
            "dtypes": [dtype for _, _, dtype in layout],
            "buckets": [list(bucket) for bucket in self._buckets],
            "packed": True,
            "version": version,
            "sums": dict(self._sums[self._newest]),
        }

    def send(self) -> None:
        """See ``WeightTransport.send``. After an error servers have to join again.

        Raises:
            EngineError: a server was lost or took no part in time, or two newer versions have been staged since.
        """
        group, ordered = self._group, self._ordered
        if group is None or ordered is None:
            raise EngineError("join and load_order come before send")
        with self._lock:
            buffer, version = ordered
            try:
                if self._versions[buffer] != version:
                    raise EngineError(f"version {version} was replaced before it was sent")
                self._send(group, self._halves[buffer].flat)
            except BaseException as error:
                self._leave()
                if isinstance(error, RuntimeError):
                    # Its frames hold the group's connections: while this error lives, the other servers would wait.
                    raise EngineError(
                        f"weights could not be sent over {self.backend}, a server was lost or did not take them "
                        f"within {self._timeout:g} s: {_first_line(error)}"
                    ) from error.with_traceback(None)
                raise

    def _send(self, group: BroadcastGroup, flat: torch.Tensor) -> None:
        """What lies on the host goes to the device bucket by bucket, each while the one before it is sent."""
        # A bucket must not be freed before its wait: the work alone does not keep it.
        under_way: list[tuple[Any, torch.Tensor]] = []
        for start, stop in self._buckets:
            size = sum(spec.num_bytes for spec in self._specs[start:stop])
            bucket, flat = flat[:size].to(self._device), flat[size:]
            if under_way:
                group.wait(under_way.pop()[0])
            under_way.append((group.broadcast(bucket), bucket))
        group.wait(under_way.pop()[0])

    def _leave(self) -> None:
        group, self._group, self._next_join = self._group, None, None
        if group is not None:
            group.close()

    def close(self) -> None:
        """See ``WeightTransport.close``. Servers that wait in the group get an error."""
        self._leave()
        for half in self._halves:
            half.close()
        self._halves = []


class GlooTransport(BroadcastTransport):
    """Over TCP on loopback, from the CPU's memory."""

    way: ClassVar[str] = "gloo"
    backend: ClassVar[str] = "gloo"
    default_bucket_bytes: ClassVar[int] = 64 * 2**20


class NcclTransport(BroadcastTransport):
    """Between GPUs, from the trainer's."""

    way: ClassVar[str] = "nccl"
    backend: ClassVar[str] = "nccl"
    default_bucket_bytes: ClassVar[int] = 512 * 2**20


def _listen(host: str, world_size: int, timeout_seconds: float) -> TCPStore:
    """A store that listens at this address alone (by itself it would listen everywhere), on a free port."""
    listening = socket.create_server((host, 0), backlog=128)
    return TCPStore(
        host,
        listening.getsockname()[1],
        world_size,
        is_master=True,
        timeout=timedelta(seconds=timeout_seconds),
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
