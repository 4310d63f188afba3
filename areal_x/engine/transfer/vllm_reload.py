"""New weights into a model that vLLM serves; runs inside vLLM's worker (0.32).

vLLM reloads layer by layer: each layer's parameters are made anew, filled, processed (fused, quantized, packed for the
CPU) and put back in the place of the old ones. Two things are added here. When loading fails half-way, the layers that
were under way get their old tensors back, so that loading again starts from a clean state: what is left of a failed
load would count twice there, and a fused layer could end up with one of its parts never written. And an output layer
whose weight is tied to the embeddings is packed again, which vLLM forgets on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload.layerwise import (
    LOADING_LAYERS,
    _place_kernel_tensors,
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)

from areal_x.engine.transfer.shared_buffers import TensorSpec

__all__ = ["ExpectedWeights", "checkpoint_shapes", "reload_model"]

_TIED_HEAD = "lm_head.weight"
_SCALES = (".weight_scale", ".weight_scale_inv", ".input_scale")


class ExpectedWeights:
    """What a publication must hold, known from the checkpoint that the server started with.

    Args:
        shapes: names and shapes of the checkpoint; empty when it cannot be read: then the model's own are the check.
        model: the loaded model.
        ties_embeddings: the output layer has no weight of its own.
        is_quantized: scales come beside the weights.
    """

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], model: torch.nn.Module, ties_embeddings: bool, is_quantized: bool
    ) -> None:
        fused = {part: whole for whole, parts in _fused(model).items() for part in parts}
        self._parameters = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}
        self._shapes = shapes
        self._is_quantized = is_quantized
        self._ties_embeddings = ties_embeddings
        self._required = {
            name
            for name in shapes
            if _renamed(name, fused) in self._parameters and not (ties_embeddings and name == _TIED_HEAD)
        }

    def check(self, specs: Sequence[TensorSpec]) -> None:
        """Raise ``ValueError`` when these are not all weights of the model in their shapes."""
        seen: set[str] = set()
        for spec in specs:
            if spec.name in seen:
                raise ValueError(f"weight {spec.name!r} comes twice")
            seen.add(spec.name)
            if not spec.dtype.is_floating_point:
                raise ValueError(f"weight {spec.name!r} has the type {spec.dtype}, which is none for weights")
            known = self._shapes.get(spec.name)
            if known is None:
                self._check_unknown(spec.name)
            elif known != spec.shape:
                raise ValueError(f"weight {spec.name!r} has shape {spec.shape}, the model has {known}")
        missing = sorted(self._required - seen)
        if missing or not seen:
            raise ValueError(f"{len(missing) or 'all'} weights are missing: {missing[:3]}")

    def _check_unknown(self, name: str) -> None:
        is_scale = self._is_quantized and name.endswith(_SCALES)
        is_tied_head = self._ties_embeddings and name == _TIED_HEAD
        if self._shapes and not (is_scale or is_tied_head):
            raise ValueError(f"weight {name!r} is not part of the model")

    def check_loaded(self, loaded: Iterable[str] | None) -> None:
        """Raise ``ValueError`` when a parameter of the model did not get new values."""
        if loaded is None or self._is_quantized:
            return
        left = sorted(self._parameters - {name.replace(".base_layer.", ".") for name in loaded})
        if left:
            raise ValueError(f"{len(left)} parameters of the model got no new weights: {left[:3]}")


def _fused(model: torch.nn.Module) -> dict[str, list[str]]:
    found: Any = getattr(model, "packed_modules_mapping", None) or {}
    return dict(found)


def _renamed(name: str, fused: dict[str, str]) -> str:
    return ".".join(fused.get(part, part) for part in name.split("."))


def checkpoint_shapes(model_path: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a local folder of safetensors files; empty for anything else."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(model_path).glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items()}
    return shapes


def reload_model(
    model: torch.nn.Module, model_config: Any, named: Iterable[tuple[str, torch.Tensor]], expected: ExpectedWeights
) -> None:
    """Load all of ``named`` into ``model``, whose scheduler must be paused.

    Raises:
        Exception: whatever went wrong. The model then holds old and new weights and must be loaded again in whole.
    """
    try:
        initialize_layerwise_reload(model)
        served: Any = model
        expected.check_loaded(served.load_weights(named))
        finalize_layerwise_reload(model, model_config)
    except BaseException:
        _put_back(model)
        raise
    _pack_tied_heads(model)


def _put_back(model: torch.nn.Module) -> None:
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load() and info.kernel_tensors is not None:
            _place_kernel_tensors(layer, info)
        info.reset()
    LOADING_LAYERS.clear()


def _pack_tied_heads(model: torch.nn.Module) -> None:
    """Pack the output layer again where its weight came through the embeddings, on a CPU."""
    modules = list(model.modules())
    heads = [module for module in modules if isinstance(module, ParallelLMHead)]
    others = {id(parameter) for module in modules if module not in heads for parameter in module.parameters(False)}
    for head in heads:
        if id(head.weight) in others and head.weight.device.type == "cpu":
            method: Any = head.quant_method
            method.process_weights_after_loading(head)
