"""Model folders of safetensors files, written tensor by tensor without a second copy of the weights in memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.shared_buffers import TensorSpec

__all__ = ["MAX_SHARD_BYTES", "check_free_space", "copy_model_files", "write_folder", "write_json"]

MAX_SHARD_BYTES = 4 * 2**30
_SPARE_BYTES = 2**20
_TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".h5")


def check_free_space(folder: Path, num_bytes: int) -> None:
    """Raise ``EngineError`` when ``folder`` has no room for so many bytes more."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes + _SPARE_BYTES:
        raise EngineError(
            f"{folder} has {free / 2**20:.0f} MiB free, new weights need {num_bytes / 2**20:.0f} MiB: free some, "
            "choose another folder, or another rollout.server.weights"
        )


def write_folder(
    folder: Path,
    specs: Sequence[TensorSpec],
    tensors: Mapping[str, torch.Tensor],
    add_files: Callable[[Path], None] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    stem: str = "model",
) -> None:
    """Write all tensors into a new ``folder``, cast to the types of ``specs``.

    It is written aside and renamed, so a folder of this name is always complete.

    Args:
        add_files: writes further files into the folder that it is given.
        max_shard_bytes: files get no larger unless one tensor is.
        stem: how the files' names begin.

    Raises:
        EngineError: it cannot be written; nothing of it stays behind.
    """
    aside = folder.with_name(folder.name + ".partial")
    try:
        check_free_space(folder.parent, sum(spec.num_bytes for spec in specs))
        aside.mkdir(mode=0o700)
        shards = _shards(specs, max_shard_bytes, stem)
        for name, shard in shards.items():
            _write_file(aside / name, shard, tensors)
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(spec.num_bytes for spec in specs)},
                "weight_map": {spec.name: name for name, shard in shards.items() for spec in shard},
            }
            write_json(aside / f"{stem}.safetensors.index.json", index)
        if add_files is not None:
            add_files(aside)
        aside.rename(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        fix = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise EngineError(f"weights could not be written to {folder}: {error.strerror or error}{fix}") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _shards(specs: Sequence[TensorSpec], max_bytes: int, stem: str) -> dict[str, list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.num_bytes
    if len(shards) == 1:
        return {f"{stem}.safetensors": shards[0]}
    return {f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards)}


def _write_file(path: Path, specs: Sequence[TensorSpec], tensors: Mapping[str, torch.Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": _TYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.num_bytes],
        }
        end += spec.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb", buffering=0) as file:
        _write_all(file, len(text).to_bytes(8, "little") + text)
        for spec in specs:
            tensor = tensors[spec.name].detach().to("cpu", spec.dtype).contiguous()
            _write_all(file, tensor.reshape(-1).view(torch.uint8).numpy().data)


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of it: one call to the kernel takes 2 GiB at most, and less where a limit is near."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_json(path: Path, found: Any) -> None:
    """Write one JSON file."""
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def copy_model_files(model_path: str | os.PathLike[str], folder: Path, skip: Iterable[str] = ()) -> None:
    """Copy what makes a model folder but its weights: configuration, tokenizer, code.

    Raises:
        EngineError: a file cannot be copied.
    """
    source = Path(model_path)
    left_out = set(skip)
    try:
        for path in sorted(source.iterdir()):
            if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES) and path.name not in left_out:
                shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise EngineError(f"the files of {source} could not be copied to {folder}: {error}") from error
