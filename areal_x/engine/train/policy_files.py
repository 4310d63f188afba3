"""A policy to a directory in Hugging Face format and back, on one rank or several."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from areal_x.api.errors import ConfigError, EngineError
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.train.load_rows import load_into, stored_tensors
from areal_x.engine.train.lora import (
    ADAPTER_FOLDER,
    load_merged,
    merged_rows,
    named_adapters,
    published_parameters,
    save_adapters,
)
from areal_x.engine.train.sharding import whole
from areal_x.engine.transfer.lora import AdapterFacts
from areal_x.engine.transfer.safetensors_folder import MAX_SHARD_BYTES, write_folder
from areal_x.engine.transfer.shared_buffers import TensorSpec

__all__ = ["load_weights", "save_policy"]


def save_policy(
    model: PreTrainedModel,
    path: Path,
    ranks: RankContext,
    adapters: AdapterFacts | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write weights and configuration, and ``adapters`` merged and apart. A sharded model is gathered weight by weight,
    and the first rank writes; it replaces a directory that is there.

    Raises:
        EngineError: it cannot be written, on any rank.
    """
    if not _is_sharded(model):
        if adapters is None:
            model.save_pretrained(path)
            return
        merged = {name: merged_rows(weight, layer) for name, weight, layer in published_parameters(model)}
        model.save_pretrained(path, state_dict=merged)
        save_adapters(path / ADAPTER_FOLDER, dict(named_adapters(model)), adapters)
        return
    gathered = _Gathered(model)
    adapter_tensors = {name: tensor.cpu() for name, tensor in named_adapters(model)}

    def write_the_rest(folder: Path) -> None:
        _write_configuration(model, folder)
        if adapters is not None:
            save_adapters(folder / ADAPTER_FOLDER, adapter_tensors, adapters)

    failed: EngineError | None = None
    if ranks.rank == 0:
        try:
            _make_room(path)
            write_folder(path, gathered.specs, gathered, write_the_rest, max_shard_bytes)
        except EngineError as error:
            failed = error
    # The other ranks take part in every gathering, those too that a failed write leaves undone.
    gathered.finish()
    num_failed = ranks.sum(torch.tensor([float(failed is not None)], device=_device_of(model)))
    if failed is not None:
        raise failed
    if num_failed.item():
        raise EngineError(f"the policy could not be written to {path}: see the first rank's error")


def _make_room(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in (path, path.with_name(path.name + ".partial")):
            if old.exists():
                shutil.rmtree(old)
    except OSError as error:
        raise EngineError(f"the policy could not be written to {path}: {error}") from error


class _Gathered(Mapping[str, torch.Tensor]):
    """A model's stored tensors, whole, on the host; each is gathered when it is asked for, once and in order."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._layers = {name: layer for name, _, layer in published_parameters(model)}
        self._tensors = dict(stored_tensors(model))
        self._waiting = list(self._tensors)
        self.specs = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors.items()]

    def __getitem__(self, name: str) -> torch.Tensor:
        assert self._waiting[0] == name, f"{name} was asked for out of order"
        del self._waiting[0]
        return merged_rows(whole(self._tensors[name]), self._layers.get(name)).cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def finish(self) -> None:
        """Gather all that was not asked for, for the sake of other ranks."""
        for name in tuple(self._waiting):
            self[name]


def _write_configuration(model: PreTrainedModel, folder: Path) -> None:
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def load_weights(
    model: PreTrainedModel, path: Path, *, has_adapters: bool = False, trust_remote_code: bool = False
) -> None:
    """Read weights into a model in place; see ``load_merged`` for one with adapters.

    Raises:
        EngineError: the directory holds no model, or one of other names or shapes.
    """
    try:
        if _is_sharded(model) and not has_adapters:
            load_into(model, path)
            return
        loaded = AutoModelForCausalLM.from_pretrained(path, dtype=model.dtype, trust_remote_code=trust_remote_code)
        if has_adapters:
            load_merged(model, loaded, path / ADAPTER_FOLDER)
        else:
            model.load_state_dict(loaded.state_dict())
    except (OSError, ValueError, RuntimeError, ConfigError) as error:
        raise EngineError(f"weights of {path} do not load into this policy: {str(error).splitlines()[0]}") from error


def _is_sharded(model: torch.nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _device_of(model: torch.nn.Module) -> str:
    """Where collectives run, which weights on the host do not tell."""
    parameter = next(parameter for parameter in model.parameters() if isinstance(parameter, DTensor))
    return parameter.device_mesh.device_type
