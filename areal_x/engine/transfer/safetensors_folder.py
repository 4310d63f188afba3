"""Model folders of safetensors files, written tensor by tensor without a second copy of the weights in memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.shared_buffers import TensorSpec
from areal_x.engine.transfer.weight_rows import WriteOrder
from areal_x.engine.transfer.write_target import Place, WriteTarget, open_target

__all__ = ["MAX_SHARD_BYTES", "FolderWriter", "check_free_space", "copy_model_files", "write_folder", "write_json"]

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


class FolderWriter:
    """A new folder while it is written: aside, under another name, so that a folder of its own name is complete.

    Its files have their headers and sizes from the beginning; ``target`` says where the tensors go.

    Args:
        folder: its name, which must be new.
        order: what is written.
        max_shard_bytes: files get no larger unless one tensor is.
        stem: how the files' names begin.

    Raises:
        EngineError: there is no space, or the folder cannot be made; nothing of it stays behind.
    """

    def __init__(
        self, folder: Path, order: WriteOrder, max_shard_bytes: int = MAX_SHARD_BYTES, stem: str = "model"
    ) -> None:
        self.folder = folder
        self._aside = folder.with_name(folder.name + ".partial")
        with self.guarded():
            check_free_space(folder.parent, sum(spec.num_bytes for spec in order.specs))
            self._aside.mkdir(mode=0o700)
            shards = _shards(order.specs, max_shard_bytes, stem)
            places: list[Place] = []
            for number, (name, shard) in enumerate(shards.items()):
                places += [Place(number, offset) for offset in _make_file(self._aside / name, shard)]
            if len(shards) > 1:
                index = {
                    "metadata": {"total_size": sum(spec.num_bytes for spec in order.specs)},
                    "weight_map": {spec.name: name for name, shard in shards.items() for spec in shard},
                }
                write_json(self._aside / f"{stem}.safetensors.index.json", index)
            self.target = WriteTarget(order, tuple(str(self._aside / name) for name in shards), tuple(places))

    def finish(self, add_files: Callable[[Path], None] | None = None) -> None:
        """All tensors are written: give the folder its name.

        Args:
            add_files: writes further files into the folder that it is given.

        Raises:
            EngineError: it cannot be written; nothing of it stays behind.
        """
        with self.guarded():
            if add_files is not None:
                add_files(self._aside)
            self._aside.rename(self.folder)

    def abandon(self) -> None:
        """Remove what was written. Safe to call twice."""
        shutil.rmtree(self._aside, ignore_errors=True)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """An error in here removes what was written; the system's own say what to do about it."""
        try:
            yield
        except OSError as error:
            self.abandon()
            fix = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise EngineError(
                f"weights could not be written to {self.folder}: {error.strerror or error}{fix}"
            ) from error
        except BaseException:
            self.abandon()
            raise


def write_folder(
    folder: Path,
    specs: Sequence[TensorSpec],
    tensors: Mapping[str, torch.Tensor],
    add_files: Callable[[Path], None] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write all tensors into a new ``folder``, cast to the types of ``specs``; see ``FolderWriter``."""
    writer = FolderWriter(folder, WriteOrder(0, tuple(specs)), max_shard_bytes)
    with writer.guarded(), open_target(writer.target) as sink:
        for spec in specs:
            sink.put(spec, 0, tensors[spec.name].detach())
    writer.finish(add_files)


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


def _make_file(path: Path, specs: Sequence[TensorSpec]) -> list[int]:
    """Make a file with its header and its full size; where each tensor begins in it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, end = [], 0
    for spec in specs:
        header[spec.name] = {
            "dtype": _TYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.num_bytes],
        }
        starts.append(end)
        end += spec.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return [8 + len(text) + start for start in starts]


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
