"""Weights of a sharded model from a checkpoint: each rank reads its own rows from safetensors files, and no others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from areal_x.api.errors import ConfigError
from areal_x.engine.train.lora import published_parameters
from areal_x.engine.train.sharding import local_rows

__all__ = ["load_into", "materialise", "stored_tensors"]


def materialise(
    root: torch.nn.Module, model: PreTrainedModel, device: torch.device, compute_device: torch.device | None = None
) -> None:
    """Give a module that was built on the meta device memory for its own rows, and compute its buffers.

    Weights hold anything afterwards: ``load_into`` comes next.

    Args:
        device: of the weights; ``compute_device``: of the buffers, where that is another one.
    """
    root.to_empty(device=device)
    # A tensor that two modules share became two, unless it is sharded.
    model.tie_weights()
    persistent = model.state_dict().keys()
    for prefix, module in model.named_modules():
        buffers = list(module.named_buffers(recurse=False))
        for name, buffer in buffers:
            setattr(module, name, buffer.to(compute_device or device))
        if any(f"{prefix}.{name}".lstrip(".") not in persistent for name, _ in buffers):
            model._init_weights(module)


def stored_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint holds of a model: parameters, tied ones once and no adapters, and buffers of its state."""
    yield from ((name, parameter) for name, parameter, _ in published_parameters(model))
    persistent = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)


@torch.no_grad()
def load_into(model: PreTrainedModel, path: Path | str) -> None:
    """Read this rank's rows of every weight from a checkpoint of safetensors, one weight at a time, in place.

    Raises:
        ConfigError: there is no such checkpoint, it lacks a weight, or one has another shape; nothing is changed then.
    """
    files = _weight_files(path)
    found = {name: _stored_name(name, files, model, path) for name, _ in stored_tensors(model)}
    try:
        opened = {file: safe_open(file, framework="pt", device="cpu") for file in set(files.values())}
        slices = {name: opened[files[stored]].get_slice(stored) for name, stored in found.items()}
        for name, tensor in stored_tensors(model):
            shape = tuple(slices[name].get_shape())
            if shape != tuple(tensor.shape):
                raise ConfigError(
                    f"model.path: {path} holds {found[name]} of shape {shape}, the model needs {tuple(tensor.shape)}"
                )
        for name, tensor in stored_tensors(model):
            rows, first = local_rows(tensor)
            if rows.ndim == 0:
                rows.copy_(opened[files[found[name]]].get_tensor(found[name]))
            elif len(rows):
                rows.copy_(slices[name][first : first + len(rows)])
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"model.path: the weights of {path} cannot be read: {error}") from error


def _stored_name(name: str, files: Mapping[str, str], model: PreTrainedModel, path: Path | str) -> str:
    """Under which name a checkpoint holds a weight: a bare base model has no prefix, in the file or here."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        if candidate in files:
            return candidate
    raise ConfigError(
        f"model.path: {path} has no weight {name!r}, which a sharded {model.config.model_type} model needs "
        f"(it has {len(files)}, such as {', '.join(list(files)[:3])})"
    )


def _weight_files(path: Path | str) -> dict[str, str]:
    """The file of each weight of a checkpoint.

    Raises:
        ConfigError: it has no safetensors files.
    """
    try:
        single = _cached(path, SAFE_WEIGHTS_NAME)
        if single is not None:
            with safe_open(single, framework="pt", device="cpu") as file:
                return dict.fromkeys(file.keys(), single)
        index = _cached(path, SAFE_WEIGHTS_INDEX_NAME)
        if index is not None:
            weight_map: dict[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            places = {name: _cached(path, name) for name in set(weight_map.values())}
            missing = sorted(name for name, place in places.items() if place is None)
            if missing:
                raise ConfigError(f"model.path: {path} lacks {missing[0]}, which its index names")
            return {name: str(places[file]) for name, file in weight_map.items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"model.path: the weights of {path} cannot be read: {error}") from error
    raise ConfigError(
        f"model.path: {path} has no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME}; ranks read their own rows of "
        "such files alone, so save the model with save_pretrained of a current transformers first"
    )


def _cached(path: Path | str, name: str) -> str | None:
    """A file of a directory or of a hub name's snapshot; ``None`` where there is none."""
    if Path(path).is_dir():
        return str(Path(path) / name) if (Path(path) / name).is_file() else None
    return cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)
