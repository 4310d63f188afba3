"""Adapters (LoRA, Hu et al. 2021) through peft: the base is frozen, and each linear layer gets a product of two thin
matrices that are trained. ::

    layer(x) = W x + scale · B (A x)          scale = alpha / rank, B starts at 0: the policy starts as the base
    published: W + scale · B A                one tensor at a time, W itself stays
    reference: W x                            adapters off, so the KL term needs no second model

Everything works on rows, so that it is the same where each rank holds a part of the weights.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from areal_x.api.config import LoraConfig
from areal_x.api.errors import ConfigError, EngineError
from areal_x.engine.train.sharding import whole
from areal_x.engine.transfer.lora import AdapterFacts
from areal_x.engine.transfer.safetensors_folder import write_json

__all__ = [
    "ADAPTER_FOLDER",
    "adapted_layers",
    "adapter_facts",
    "adapters_off",
    "add_adapters",
    "find_targets",
    "load_adapters",
    "load_merged",
    "merged_rows",
    "named_adapters",
    "published_parameters",
    "save_adapters",
    "start_adapters",
]

ADAPTER_FOLDER = "adapter"
"""Beside a saved policy, in peft's format."""
_NAME = "default"
_FILE = "adapter_model.safetensors"
_BASE = ".base_layer."
_SEED = 0
_SAME = 1e-5
"""Largest difference of weights that are the same but for rounding."""


def add_adapters(model: PreTrainedModel, config: LoraConfig) -> None:
    """Freeze ``model`` and give its linear layers adapters, of the type of their weights, in place.

    Raises:
        ConfigError: peft is missing, or ``train.lora.targets`` names what is no linear layer.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError("train.lora.rank needs peft, which is not installed: pip install 'areal-x[lora]'") from error
    targets = find_targets(model, config.targets)
    options: dict[str, Any] = {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        # GPT-2's layers hold their weights the other way round.
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in model.modules()),
    }
    peft.inject_adapter_in_model(peft.LoraConfig(**options), model, _NAME)
    start_adapters(model)


def find_targets(model: PreTrainedModel, wanted: Sequence[str]) -> list[str]:
    """Names of the layers that get adapters; by default all linear ones but the output layer, whose weight the
    log-probabilities take directly.

    Raises:
        ConfigError: a name is of no linear layer, or of the output layer; near names are given.
    """
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    for name in wanted:
        if name not in linear:
            near = difflib.get_close_matches(name, linear, n=3) or sorted(linear)
            raise ConfigError(
                f"train.lora.targets: {name!r} is no linear layer of this model below its output layer; "
                f"did you mean {', '.join(near)}?"
            )
    return sorted(set(wanted) or linear)


def adapted_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and layers that have adapters, in the model's order; none without LoRA."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield name, module


@torch.no_grad()
def start_adapters(model: torch.nn.Module) -> None:
    """Fresh adapters, the same on any number of ranks: A uniform within 1 / sqrt(inputs), B zero."""
    generator = torch.Generator().manual_seed(_SEED)
    for _, layer in adapted_layers(model):
        factor = layer.lora_A[_NAME].weight
        bound = factor.shape[1] ** -0.5
        _assign(factor, torch.empty(factor.shape).uniform_(-bound, bound, generator=generator))
        layer.lora_B[_NAME].weight.zero_()


@contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """The model as it was before ``add_adapters``, for passes without gradient."""
    layers = [layer for _, layer in adapted_layers(model)]
    _switch(layers, False)
    try:
        yield
    finally:
        _switch(layers, True)


def _switch(layers: Sequence[Any], on: bool) -> None:
    for layer in layers:
        layer.enable_adapters(on)
        # peft freezes adapters that are off. Sharded layers ask only once, at their first pass, what is trained.
        layer.set_requires_grad(_NAME, True)


def published_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, Any | None]]:
    """Each parameter of the base under its Hugging Face name, tied ones once, and the layer whose adapter belongs to
    it, if there is one (see ``merged_rows``)."""
    for name, parameter in model.named_parameters():
        stem, base, rest = name.rpartition(_BASE)
        if base:
            yield f"{stem}.{rest}", parameter.detach(), model.get_submodule(stem) if rest == "weight" else None
        elif ".lora_" not in name:
            yield name, parameter.detach(), None


@torch.no_grad()
def merged_rows(rows: torch.Tensor, layer: Any | None, first_row: int = 0) -> torch.Tensor:
    """Rows of a weight with its adapter merged in; the rows themselves where it has none.

    Where adapters are sharded, every rank must call this, in the same order.

    Args:
        rows: the weight's rows from ``first_row`` on.
        layer: of ``published_parameters``.
    """
    if layer is None:
        return rows
    last_row = first_row + len(rows)
    down, up = (whole(half[_NAME].weight).to(rows.device) for half in (layer.lora_A, layer.lora_B))
    if layer.fan_in_fan_out:
        product = down[:, first_row:last_row].t() @ up.t()
    else:
        product = up[first_row:last_row] @ down
    return torch.add(rows, product, alpha=layer.scaling[_NAME])


def named_adapters(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The adapters' tensors under peft's names, whole. Where they are sharded, every rank must call this."""
    for name, factor in _factors(model):
        yield name, whole(factor)


def _factors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, layer in adapted_layers(model):
        for half in ("lora_A", "lora_B"):
            yield f"base_model.model.{name}.{half}.weight", getattr(layer, half)[_NAME].weight


def adapter_facts(model: torch.nn.Module, config: LoraConfig, base_model: str) -> AdapterFacts:
    """What a server, or peft, must know to use ``named_adapters``."""
    targets = sorted({name.rpartition(".")[2] for name, _ in adapted_layers(model)})
    return AdapterFacts(config.rank, config.alpha, tuple(targets), base_model)


def save_adapters(folder: Path, tensors: Mapping[str, torch.Tensor], facts: AdapterFacts) -> None:
    """Write an adapter in peft's format."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / _FILE)
    write_json(folder / "adapter_config.json", facts.config())


@torch.no_grad()
def load_adapters(model: torch.nn.Module, folder: Path) -> None:
    """Read an adapter that ``save_adapters`` or peft wrote into this model's, in place.

    Raises:
        EngineError: it cannot be read, or is of other layers or another rank; nothing is changed then.
    """
    try:
        found = load_file(folder / _FILE)
    except (OSError, SafetensorError) as error:
        raise EngineError(f"the adapter in {folder} cannot be read: {error}") from error
    wanted = dict(_factors(model))
    different = sorted(found.keys() ^ wanted.keys())
    if different:
        place = "the folder has" if different[0] in found else "this policy has"
        raise EngineError(
            f"the adapter in {folder} is of other layers: only {place} {different[0]} ({len(different)} differ); "
            "train.lora.targets must be what it was trained with"
        )
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise EngineError(
                f"the adapter in {folder} holds {name} of shape {tuple(tensor.shape)}, this policy's has "
                f"{tuple(wanted[name].shape)}; train.lora.rank must be what it was trained with"
            )
    _assign_adapters(model, found)


def _assign_adapters(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, target in _factors(model):
        _assign(target, tensors[name])


@torch.no_grad()
def load_merged(model: torch.nn.Module, saved: PreTrainedModel, folder: Path) -> None:
    """Take over a policy that was saved merged. With its adapter in ``folder`` that is read, and the base stays; else
    the saved weights become the base, and adapters start anew.

    Raises:
        EngineError: names or shapes differ, or the adapter and this base do not make the saved weights; nothing is
            changed then.
    """
    weights = dict(saved.named_parameters())
    parts = list(published_parameters(model))
    for name, parameter, _ in parts:
        if name not in weights or weights[name].shape != parameter.shape:
            found = f"has shape {tuple(weights[name].shape)}" if name in weights else "is missing"
            raise EngineError(f"weight {name} {found}, and should have {tuple(parameter.shape)}")
    foreign = weights.keys() - {name for name, _, _ in parts}
    if foreign:
        raise EngineError(f"weight {min(foreign)} is not part of this policy")
    if not folder.is_dir():
        for name, parameter, _ in parts:
            _assign(parameter, weights[name])
        start_adapters(model)
        return
    before = {name: tensor.clone() for name, tensor in named_adapters(model)}
    load_adapters(model, folder)
    for name, parameter, layer in parts:
        merged = merged_rows(whole(parameter), layer)
        if not torch.allclose(merged, weights[name].to(merged), rtol=_SAME, atol=_SAME):
            _assign_adapters(model, before)
            raise EngineError(f"the adapter in {folder} is of another base: with this one it makes other {name}")


def _assign(target: torch.Tensor, values: torch.Tensor) -> None:
    """Copy whole values into a tensor, or each rank's rows of them into a sharded one."""
    if isinstance(target, DTensor):
        values = distribute_tensor(values, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(values)
