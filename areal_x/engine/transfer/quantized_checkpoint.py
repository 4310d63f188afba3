"""A quantized copy of a model folder, so that a server starts with the structure that publications fill later."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.fp8 import quantization_config
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.safetensors_folder import copy_model_files, write_folder, write_json

__all__ = ["write_quantized_checkpoint"]


def write_quantized_checkpoint(
    model_path: str | Path, target: Path, quantization: str, dtype: torch.dtype | None = torch.bfloat16
) -> None:
    """Write the model of ``model_path`` to the new folder ``target``, its linear layers in eight bits.

    Args:
        model_path: a folder of safetensors files.
        quantization: ``fp8`` or ``fp8_block``.
        dtype: of all other tensors. Default: bfloat16; ``None``: as they are.

    Raises:
        EngineError: the folder has no weights, they cannot be cast, or there is no space.
    """
    source = Path(model_path)
    tensors = _read(source)
    layout = TensorLayout(tensors.items(), dtype, quantization)

    def add_files(folder: Path) -> None:
        copy_model_files(source, folder)
        path = folder / "config.json"
        if not path.is_file():
            raise EngineError(f"{source} has no config.json")
        config = json.loads(path.read_text(encoding="utf-8"))
        shapes = [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
        config["quantization_config"] = quantization_config(quantization, shapes)
        if dtype is not None:
            config.pop("torch_dtype", None)
            config["dtype"] = str(dtype).removeprefix("torch.")
        write_json(path, config)

    write_folder(target, layout.specs, layout.prepared(tensors.items()), add_files)


def _read(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise EngineError(f"{folder} has no safetensors files; save the model there first")
    try:
        for path in paths:
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise EngineError(f"{folder} cannot be read: {error}") from error
    return tensors
