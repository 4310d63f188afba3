"""Adapters (LoRA) for servers that hold the base model: folders in PEFT's format, swapped in place by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.disk import FolderTransport
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.safetensors_folder import write_json
from areal_x.engine.transfer.transport import Order

__all__ = ["AdapterFacts", "LoraTransport"]

_PREFIX = "base_model.model."
_HALVES = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a server must know of an adapter beside its tensors.

    Args:
        rank: of the two factors.
        alpha: the product of the factors is scaled by alpha / rank.
        target_modules: names of the linear layers that have one, such as ``q_proj``.
        base_model: path of the model that it belongs to.
        name: what requests call it.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    base_model: str
    name: str = "policy"

    def config(self) -> dict[str, Any]:
        """The content of ``adapter_config.json``."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted(self.target_modules),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "use_dora": False,
            "use_rslora": False,
        }


class LoraTransport(FolderTransport):
    """Each version is a new adapter folder; servers swap the adapter of this name while they are paused.

    Servers do not count a swap as new weights, so whoever carries out the order stamps the version by itself, before
    the server goes on; keys and values of the adapter before are dropped by the pause, as with any other weights.

    Args:
        named_tensors: the adapter's tensors under PEFT's names (``base_model.model. ... .lora_A.weight``).
        facts: rank, alpha and modules.
        directory: where folders are written; servers must see it under the same path.
        dtype: type to write. Default: each tensor's own.
    """

    way: ClassVar[str] = "lora"

    def __init__(
        self,
        named_tensors: Iterable[tuple[str, torch.Tensor]],
        facts: AdapterFacts,
        *,
        directory: Path,
        dtype: torch.dtype | None = None,
    ) -> None:
        tensors = list(named_tensors)
        _check([(name, tuple(tensor.shape)) for name, tensor in tensors], facts)
        super().__init__(TensorLayout(tensors, dtype), directory, stem="adapter_model")
        self.facts = facts

    def add_files(self, folder: Path) -> None:
        """See ``FolderTransport.add_files``."""
        write_json(folder / "adapter_config.json", self.facts.config())

    def load_order(self) -> Order:
        """See ``WeightTransport.load_order``."""
        path = str(self._folders.newest)
        return {"way": self.way, "name": self.facts.name, "path": path, "version": self._folders.version}


def _check(named_shapes: Sequence[tuple[str, tuple[int, ...]]], facts: AdapterFacts) -> None:
    shapes = dict(named_shapes)
    if not shapes:
        raise EngineError("the adapter has no tensors")
    for name, shape in shapes.items():
        stem, half = next(((name.removesuffix(end), end) for end in _HALVES if name.endswith(end)), ("", ""))
        if not stem or not name.startswith(_PREFIX):
            raise EngineError(f"adapter tensor {name!r} is not named as {_PREFIX}<layer>{_HALVES[0]} or {_HALVES[1]}")
        if stem.rpartition(".")[2] not in facts.target_modules:
            raise EngineError(f"adapter tensor {name!r} is of none of the modules {', '.join(facts.target_modules)}")
        other = stem + _HALVES[half == _HALVES[0]]
        if other not in shapes:
            raise EngineError(f"adapter tensor {name!r} has no {other!r} beside it")
        if len(shape) != 2 or shape[half == _HALVES[1]] != facts.rank:
            raise EngineError(f"adapter tensor {name!r} has shape {shape}, which is not of rank {facts.rank}")
