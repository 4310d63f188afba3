"""One flat CUDA buffer that another process of the same GPU opens: its handle as JSON, and the inverse.

This module runs inside inference servers, too: it imports nothing of this package.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["HANDLE_FIELDS", "export_flat", "handle_from_json", "handle_to_json", "import_flat"]

HANDLE_FIELDS = (
    "memory",
    "num_bytes",
    "offset_bytes",
    "counter",
    "counter_offset",
    "event",
    "event_needs_sync",
)
"""What CUDA needs to open memory of another process, in torch's order (after the device, which each side knows)."""


def handle_to_json(fields: tuple[Any, ...]) -> dict[str, Any]:
    """Fields of a handle with their bytes in base64."""
    return {
        name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in zip(HANDLE_FIELDS, fields, strict=True)
    }


def handle_from_json(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """The inverse of ``handle_to_json``.

    Raises:
        ValueError: a field is missing, or is no base64.
    """
    values = []
    for name in HANDLE_FIELDS:
        if name not in found:
            raise ValueError(f"the CUDA handle has no {name!r}")
        value = found[name]
        values.append(base64.b64decode(value["base64"], validate=True) if isinstance(value, dict) else value)
    return tuple(values)


def export_flat(flat: torch.Tensor) -> dict[str, Any]:
    """The handle of a CUDA buffer of bytes that owns all of its storage. The buffer must outlive its readers."""
    shared: Any = flat.untyped_storage()
    _device, *fields = shared._share_cuda_()
    return handle_to_json(tuple(fields))


def import_flat(handle: Mapping[str, Any], device: torch.device) -> torch.Tensor:
    """The other process's buffer as bytes, without a copy. Open each handle once and keep the result."""
    index = torch.cuda.current_device() if device.index is None else device.index
    opened: Any = torch.UntypedStorage
    storage = opened._new_shared_cuda(index, *handle_from_json(handle))
    return torch.empty(0, dtype=torch.uint8, device=torch.device("cuda", index)).set_(storage)
