"""Where the weights of a model are while it is not used, and how they come to the device and leave it.

| | at rest | to the device | from the device |
| --- | --- | --- | --- |
| frozen, CUDA | one pinned block of host memory | one copy on a stream of its own | its block is freed |
| frozen, CPU | their files on disk | the files are mapped | the maps are taken down |
| trained or sharded (``moved_tensors.py``) | a pinned block; on a CPU, a temporary file | copied in | copied out |
| kept | on the device | | |

The model itself stays: the parameters of a frozen one hold nothing on the meta device while it rests. Buffers (a rotary
table) are small and stay on the device.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from areal_x.api.errors import ConfigError

__all__ = ["KeptWeights", "MappedWeights", "PinnedWeights", "WeightsHome", "lay_out"]

_ALIGNMENT = 256
"""Bytes. Kernels read wide words from the start of a tensor."""


class WeightsHome(ABC):
    """The life of a model's weights on its device: ``fetch``, ``wait``, then ``release``; each may be called again."""

    @abstractmethod
    def fetch(self) -> None:
        """Begin to bring the weights to the device; returns before they are there."""

    @abstractmethod
    def wait(self) -> None:
        """Return when a forward pass may begin."""

    @abstractmethod
    def release(self) -> None:
        """Free the device; no pass may be under way."""

    def renew(self) -> None:  # noqa: B027 (weights that stay, or never change, have nothing to note)
        """The weights that are on the device now have changed: the next ``release`` must keep them."""


class KeptWeights(WeightsHome):
    """Weights that stay where they are."""

    def fetch(self) -> None:
        """Nothing: they are there."""

    def wait(self) -> None:
        """Nothing: they are there."""

    def release(self) -> None:
        """Nothing: they stay."""


class MappedWeights(WeightsHome):
    """Weights of a model on a CPU, mapped from its files: the pages belong to the file cache, shared by all ranks.

    A file of another type of numbers than ``dtype`` is read and cast each time.

    Args:
        model: loaded; its parameters are given up here.
        files: its safetensors files.

    Raises:
        ConfigError: the files call a weight otherwise than the model does.
    """

    def __init__(self, model: PreTrainedModel, files: Sequence[Path], dtype: torch.dtype) -> None:
        self._slots = list(_parameter_slots(model))
        self._dtype = dtype
        self._files = tuple(files)
        self._names = _names_in(files)
        absent = [slot.name for slot in self._slots if slot.name not in self._names]
        if absent:
            raise ConfigError(
                f"{files[0].parent}: its files do not name {absent[0]}, so they cannot be mapped as they are; set "
                "offload=false for this reward model"
            )
        self._is_there = False
        _clear(self._slots)

    def fetch(self) -> None:
        """Map the files, and let the kernel read ahead what is not in its cache."""
        if self._is_there:
            return
        values: dict[str, torch.Tensor] = {}
        for path in self._files:
            _read_ahead(path)
            with safe_open(path, framework="pt") as file:
                for name in self._names_of(path):
                    values[name] = file.get_tensor(name).to(self._dtype)
        for slot in self._slots:
            slot.fill(values[slot.name])
        self._is_there = True

    def wait(self) -> None:
        """Nothing: a page that is not there yet is read when it is touched."""
        self.fetch()

    def release(self) -> None:
        """Take the maps down."""
        _clear(self._slots)
        self._is_there = False

    def _names_of(self, path: Path) -> list[str]:
        wanted = {slot.name for slot in self._slots}
        return [name for name, holder in self._names.items() if holder == path and name in wanted]


class PinnedWeights(WeightsHome):
    """Weights of a model on a GPU, with one pinned copy in the host's memory.

    All of them travel as one block: one copy at the full bandwidth of the bus, one allocation to free.

    Args:
        model: loaded on the CPU, in the type that it computes in; its parameters are given up here.
        device: where it scores.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self._slots = list(_parameter_slots(model))
        self._device = device
        self._places, total = lay_out([slot.value.nbytes for slot in self._slots])
        self._host = torch.empty(total, dtype=torch.uint8, pin_memory=device.type == "cuda")
        for slot, view in zip(self._slots, self._views(self._host), strict=True):
            view.copy_(slot.value)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._block: torch.Tensor | None = None
        _clear(self._slots)

    @property
    def num_bytes(self) -> int:
        """Of the block."""
        return self._host.numel()

    def fetch(self) -> None:
        """Start the copy on the model's own stream, after what the device is doing now."""
        if self._block is not None:
            return
        self._block = torch.empty(self.num_bytes, dtype=torch.uint8, device=self._device)
        if self._stream is None:
            self._block.copy_(self._host)
        else:
            # The memory may have been another tensor's, whose last use is still queued on this stream.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                self._block.copy_(self._host, non_blocking=True)
        for slot, view in zip(self._slots, self._views(self._block), strict=True):
            slot.fill(view)

    def wait(self) -> None:
        """Wait for the copy."""
        self.fetch()
        if self._stream is not None:
            self._stream.synchronize()

    def release(self) -> None:
        """Free the block, and give it back to the device."""
        if self._block is None:
            return
        _clear(self._slots)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._block = None
            torch.cuda.empty_cache()
        self._block = None

    def _views(self, block: torch.Tensor) -> Iterator[torch.Tensor]:
        for slot, (start, end) in zip(self._slots, self._places, strict=True):
            yield block[start:end].view(slot.dtype).view(slot.shape)


class _Slot:
    """A parameter, and every module that holds it (tied weights have several)."""

    def __init__(self, name: str, parameter: torch.nn.Parameter) -> None:
        self.name = name
        self.shape, self.dtype = parameter.shape, parameter.dtype
        self._empty = torch.nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        self._holders: list[tuple[torch.nn.Module, str]] = []

    @property
    def value(self) -> torch.Tensor:
        module, attribute = self._holders[0]
        parameter = module._parameters[attribute]
        assert parameter is not None
        return parameter.detach()

    def add(self, module: torch.nn.Module, attribute: str) -> None:
        self._holders.append((module, attribute))

    def fill(self, value: torch.Tensor) -> None:
        if value.shape != self.shape:
            raise ConfigError(f"{self.name} has the shape {tuple(value.shape)} in its file, not {tuple(self.shape)}")
        self._set(torch.nn.Parameter(value, requires_grad=False))

    def clear(self) -> None:
        self._set(self._empty)

    def _set(self, parameter: torch.nn.Parameter) -> None:
        for module, attribute in self._holders:
            module._parameters[attribute] = parameter


def _parameter_slots(model: torch.nn.Module) -> Iterator[_Slot]:
    """Each parameter once, with all its holders."""
    slots: dict[int, _Slot] = {}
    for prefix, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{prefix}.{attribute}" if prefix else attribute
            slots.setdefault(id(parameter), _Slot(name, parameter)).add(module, attribute)
    yield from slots.values()


def _clear(slots: Sequence[_Slot]) -> None:
    for slot in slots:
        slot.clear()


def _names_in(files: Sequence[Path]) -> dict[str, Path]:
    """Which file holds each tensor."""
    names: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            names.update(dict.fromkeys(file.keys(), path))
    return names


def _read_ahead(path: Path) -> None:
    """Ask the kernel to bring a file into its cache in the background."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


def lay_out(sizes: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
    """Start and end of each tensor of so many bytes in one block, and the length of the block."""
    places, total = [], 0
    for size in sizes:
        end = total + size
        places.append((total, end))
        total = -(-end // _ALIGNMENT) * _ALIGNMENT
    return places, total
