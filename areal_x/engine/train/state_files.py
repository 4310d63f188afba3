"""Training states on the disk: files of PyTorch's distributed checkpoint (DCP) in safetensors, without pickle. ::

    rank_00000.safetensors   this rank's part of every tensor, and where it begins in the whole tensor
    rank_00000.json          what is of this rank alone: the states of its random number generators
    state.json               all else; written by the first rank

DCP's planner says what a rank holds and, when a state is read, which parts of which files it needs, so a state may be
read on another number of ranks. DCP's ``HuggingFaceStorageReader`` reads the files. They are written from one buffer
that holds a whole file as it will be, because DCP's own writer would copy everything once more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, create_default_local_save_plan
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from areal_x.api.errors import CheckpointError

__all__ = ["FORMAT_VERSION", "STATE_FILE", "FileImage", "StateReader", "rank_stem", "write_durably"]

FORMAT_VERSION = 1
STATE_FILE = "state.json"
_BLOCK_BYTES = 8 * 2**20
_TYPE_NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}


def rank_stem(rank: int) -> str:
    """How the names of a rank's files begin."""
    return f"rank_{rank:05d}"


class FileImage:
    """Memory with the bytes of one rank's file, made once and filled with each checkpoint.

    Args:
        tensors: whole ones and sharded ones by name; none without dimensions.
        pinned: page-locked, for copies from a GPU.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], pinned: bool) -> None:
        self._names = list(tensors)
        plan = create_default_local_save_plan(dict(tensors), is_coordinator=True)
        parts = {item.index.fqn: item.tensor_data.chunk for item in plan.items if item.tensor_data is not None}
        # Ranks beyond a short tensor's rows hold nothing of it.
        self._held = [name for name, chunk in parts.items() if chunk.sizes.numel()]
        # No gaps are allowed between tensors; larger numbers first keeps each at a multiple of its size.
        self._held.sort(key=lambda name: -tensors[name].dtype.itemsize)
        header: dict[str, Any] = {}
        end = 0
        for name in self._held:
            start, end = end, end + parts[name].sizes.numel() * tensors[name].dtype.itemsize
            entry = {"dtype": _TYPE_NAMES[tensors[name].dtype], "shape": list(parts[name].sizes)}
            header[name] = entry | {"data_offsets": [start, end]}
        offsets = {name: {"saved_offsets": list(parts[name].offsets)} for name in self._held}
        header["__metadata__"] = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        prefix = len(text).to_bytes(8, "little") + text
        self._memory = torch.empty(len(prefix) + end, dtype=torch.uint8, pin_memory=pinned)
        # Every page is there before the first copy.
        self._memory.zero_()
        self.bytes = self._memory.numpy().data
        self.bytes[: len(prefix)] = prefix
        self._views = [
            self._memory[len(prefix) + header[name]["data_offsets"][0] : len(prefix) + header[name]["data_offsets"][1]]
            .view(tensors[name].dtype)
            .view(tuple(parts[name].sizes))
            for name in self._held
        ]

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether these are the tensors that it was made for, as far as names tell."""
        return self._names == list(tensors)

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy this rank's parts of all tensors; they may change once this returns."""
        parts = [_local(tensors[name]) for name in self._held]
        if not parts:
            return
        torch._foreach_copy_(self._views, parts, non_blocking=True)
        for device in {part.device for part in parts if part.is_cuda}:
            torch.cuda.current_stream(device).synchronize()


def write_durably(path: Path, data: memoryview | bytes) -> None:
    """Write a new file; it is on the disk when this returns. Others may compute meanwhile.

    Raises:
        OSError: it cannot be written.
    """
    view = memoryview(data)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        while view:
            view = view[os.write(descriptor, view[:_BLOCK_BYTES]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StateReader:
    """A state on the disk, opened: ``facts`` of ``state.json``, and ``shapes`` of all tensors, whole, by name.

    Raises:
        CheckpointError: it is missing, of a newer format, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = self._json(STATE_FILE)
        if self.facts.get("format") != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {path} has format version {self.facts.get('format')}, and this areal_x reads "
                f"{FORMAT_VERSION}; use the areal_x that wrote it"
            )
        self.num_ranks = int(self.facts["num_ranks"])
        for name in (f"{rank_stem(rank)}.safetensors" for rank in range(self.num_ranks)):
            if not (path / name).is_file():
                raise CheckpointError(f"checkpoint {path}: {name} is missing; use another checkpoint")
        self._reader = HuggingFaceStorageReader(str(path))
        try:
            self._metadata = self._reader.read_metadata()
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"checkpoint {path} cannot be read: {error}; use another checkpoint") from error
        self.shapes = {
            name: tuple(stored.size)
            for name, stored in self._metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }

    def of_rank(self, rank: int) -> dict[str, Any]:
        """What rank ``rank`` wrote of itself; nothing where there were fewer.

        Raises:
            CheckpointError: it is missing or cannot be read.
        """
        return self._json(f"{rank_stem(rank)}.json") if rank < self.num_ranks else {}

    def check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Whether all these are there, with these shapes.

        Raises:
            CheckpointError: they are not; it names the first.
        """
        for name, tensor in tensors.items():
            found = self.shapes.get(name)
            if found != tuple(tensor.shape):
                there = "has no" if found is None else f"has shape {list(found)} for"
                raise CheckpointError(
                    f"checkpoint {self.path} is from another model: it {there} {name}, which here has shape "
                    f"{list(tensor.shape)}; give the configuration that it was written with"
                )

    @torch.no_grad()
    def read(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Read what this rank holds of these tensors into them.

        Raises:
            CheckpointError: something cannot be read; some tensors may have been.
        """
        # Parameters take no copies in place while they want gradients.
        targets = {name: tensor.detach() for name, tensor in tensors.items()}
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            planner.set_up_planner(targets, self._metadata, is_coordinator=True)
            self._reader.set_up_storage_reader(self._metadata, True)
            self._reader.read_data(planner.finish_plan(planner.create_local_plan()), planner).wait()
        except (OSError, SafetensorError, ValueError, RuntimeError, AssertionError) as error:
            raise CheckpointError(f"checkpoint {self.path} cannot be read: {error}; use another checkpoint") from error

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"checkpoint {self.path}: {name} is missing; use another checkpoint") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"checkpoint {self.path}: {name} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise CheckpointError(f"checkpoint {self.path}: {name} holds no table; use another checkpoint")
        return found


def _local(tensor: torch.Tensor) -> torch.Tensor:
    part: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part
