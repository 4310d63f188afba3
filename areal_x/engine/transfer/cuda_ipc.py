"""Weights of servers on the trainer's own GPU: they read the trainer's buffer where it lies."""

from __future__ import annotations

import base64
import io
import pickle
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.broadcast_group import packed_order, views_of
from areal_x.engine.transfer.cuda_handle import export_flat
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.shared_buffers import TensorSpec, specs_to_json
from areal_x.engine.transfer.staging import OpenWrite
from areal_x.engine.transfer.transport import Order, WeightTransport

__all__ = ["CudaIpcTransport", "bucket_description"]

_ALIGNMENT = 512
_DEVICE_PLACE = 6  # Of the device among what torch rebuilds a CUDA tensor of another process from.


class CudaIpcTransport(WeightTransport):
    """One flat buffer on the GPU, two versions one behind the other; its handle is the same in every order.

    While servers load one version the next may be staged in the other half. The one after that overwrites what they
    read, so it must not be staged before they have loaded: a publication returns only then.

    Args:
        layout: what is staged.
        device: the trainer's GPU.
        engine: ``vllm`` gets the handle; ``sglang`` gets it in the form that its own route takes.
    """

    way: ClassVar[str] = "cuda_ipc"

    def __init__(self, layout: TensorLayout, *, device: torch.device, engine: str) -> None:
        super().__init__(layout)
        self._device = device
        self._specs = packed_order(layout.specs)
        self._half_bytes = -(-layout.num_bytes // _ALIGNMENT) * _ALIGNMENT
        self._flat: torch.Tensor | None = torch.empty(2 * self._half_bytes, dtype=torch.uint8, device=device)
        self._handle = export_flat(self._flat) if engine == "vllm" else None
        self._versions: list[int | None] = [None, None]
        self._sums: Mapping[str, int] = {}
        self._newest = 1

    @property
    def version(self) -> int | None:
        """See ``Staging.version``."""
        return self._versions[self._newest]

    def _half(self, half: int) -> torch.Tensor:
        if self._flat is None:
            raise EngineError("the transport of weights was closed")
        start = half * self._half_bytes
        return self._flat[start : start + self.layout.num_bytes]

    def begin(self, version: int) -> OpenWrite:
        """See ``Staging.begin``. No other process can write there."""
        target = 1 - self._newest
        self._versions[target] = None
        return OpenWrite(self.layout.order(version), dict(views_of(self._half(target), self._specs)), None)

    def finish(self, write: OpenWrite, sums: Mapping[str, int]) -> None:
        """See ``Staging.finish``. Returns when the copy on the GPU has ended."""
        torch.cuda.synchronize(self._device)
        self._newest = 1 - self._newest
        self._versions[self._newest] = write.order.version
        self._sums = sums

    def abandon(self, write: OpenWrite) -> None:
        """See ``Staging.abandon``: the half stays without a version."""

    def load_order(self) -> Order:
        """See ``WeightTransport.load_order``."""
        version = self._versions[self._newest]
        if version is None:
            raise EngineError("no weights have been written yet")
        order: Order = {"way": self.way, "version": version, "sums": dict(self._sums)}
        if self._handle is None:
            bucket = {
                "flattened_tensor": self._half(self._newest),
                "metadata": bucket_description(self._specs),
            }
            return {**order, "handles": [_pickled(bucket)], "load_format": "flattened_bucket"}
        start = self._newest * self._half_bytes
        return {**order, "handle": self._handle, "start": start, "specs": specs_to_json(self._specs)}

    def close(self) -> None:
        """See ``WeightTransport.close``."""
        self._flat = None


def bucket_description(specs: Sequence[TensorSpec]) -> list[SimpleNamespace]:
    """Where each tensor lies in a packed buffer, in the words of SGLang's ``flattened_bucket``."""
    found = []
    start = 0
    for spec in specs:
        end = start + spec.num_bytes
        found.append(
            SimpleNamespace(
                name=spec.name,
                shape=torch.Size(spec.shape),
                dtype=spec.dtype,
                start_idx=start,
                end_idx=end,
                numel=spec.num_bytes,
            )
        )
        start = end
    return found


class _HandlePickler(pickle.Pickler):
    """Pickles CUDA tensors as handles that name their GPU by its UUID: its number differs between processes."""

    def reducer_override(self, found: Any) -> Any:
        if not isinstance(found, torch.Tensor):
            return NotImplemented
        from torch.multiprocessing.reductions import reduce_tensor

        rebuild, arguments = reduce_tensor(found)
        uuid = str(torch.cuda.get_device_properties(found.device).uuid)
        return rebuild, (*arguments[:_DEVICE_PLACE], uuid, *arguments[_DEVICE_PLACE + 1 :])


def _pickled(found: Any) -> str:
    buffer = io.BytesIO()
    _HandlePickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(found)
    return base64.b64encode(buffer.getvalue()).decode()
