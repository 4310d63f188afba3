"""What servers get: names, shapes and types of the tensors, and the trainer's weights checked and made into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.fp8 import cast_specs, cast_weights
from areal_x.engine.transfer.shared_buffers import TensorSpec

__all__ = ["TensorLayout"]


class TensorLayout:
    """Fixed when a transport is made, from the weights that it will be given.

    Args:
        named_tensors: names, shapes and types of the trainer's weights; tied tensors once, under any of their names.
        dtype: type that servers compute in. Default: each tensor's own.
        quantization: ``fp8`` or ``fp8_block``: linear layers are sent in eight bits.
    """

    def __init__(
        self,
        named_tensors: Iterable[tuple[str, torch.Tensor]],
        dtype: torch.dtype | None = None,
        quantization: str | None = None,
    ) -> None:
        self._quantization = quantization
        self._sources: dict[str, tuple[int, ...]] = {}
        kinds: list[TensorSpec] = []
        for name, tensor in named_tensors:
            if name in self._sources:
                raise EngineError(f"weights for servers name {name!r} twice")
            self._sources[name] = tuple(tensor.shape)
            kinds.append(TensorSpec(name, tuple(tensor.shape), dtype or tensor.dtype))
        self.specs: tuple[TensorSpec, ...] = tuple(kinds if quantization is None else cast_specs(kinds, quantization))
        """Tensors as servers get them."""

    @property
    def num_bytes(self) -> int:
        """Size of one copy of the weights as servers get them."""
        return sum(spec.num_bytes for spec in self.specs)

    def prepared(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Mapping[str, torch.Tensor]:
        """The tensors of ``specs``, quantized where they are to be; types that only need a cast are left as they are.

        Raises:
            EngineError: a tensor is missing, unknown, of another shape, or not finite where it is quantized.
        """
        tensors = dict(named_tensors)
        for name, tensor in tensors.items():
            shape = self._sources.get(name)
            if shape is None:
                raise EngineError(f"weight {name!r} is not part of what servers get")
            if shape != tuple(tensor.shape):
                raise EngineError(f"weight {name!r} has shape {tuple(tensor.shape)}, servers expect {shape}")
        missing = [name for name in self._sources if name not in tensors]
        if missing:
            raise EngineError(f"weight {missing[0]!r} was not written ({len(missing)} missing)")
        if self._quantization is not None:
            return dict(cast_weights(tensors.items(), self._quantization))
        return tensors
