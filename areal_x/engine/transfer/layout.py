"""What servers get: names, shapes and types of the tensors, and the trainer's weights checked and made into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.fp8 import cast_specs, cast_weights
from areal_x.engine.transfer.shared_buffers import TensorSpec
from areal_x.engine.transfer.weight_rows import WriteOrder

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
        specs = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in named_tensors]
        self._take(specs, dtype, quantization)

    @classmethod
    def of_specs(
        cls, specs: Sequence[TensorSpec], dtype: torch.dtype | None = None, quantization: str | None = None
    ) -> TensorLayout:
        """As the constructor, for weights of these names, shapes and types."""
        layout = cls.__new__(cls)
        layout._take(specs, dtype, quantization)
        return layout

    def _take(self, specs: Sequence[TensorSpec], dtype: torch.dtype | None, quantization: str | None) -> None:
        self.quantization = quantization
        """``fp8``, ``fp8_block`` or ``None``."""
        self._sources = {spec.name: spec.shape for spec in specs}
        if len(self._sources) < len(specs):
            names = [spec.name for spec in specs]
            raise EngineError(f"weights for engines name {max(names, key=names.count)!r} twice")
        kinds = [TensorSpec(spec.name, spec.shape, dtype or spec.dtype) for spec in specs]
        self.specs: tuple[TensorSpec, ...] = tuple(kinds if quantization is None else cast_specs(kinds, quantization))
        """Tensors as servers get them."""

    @property
    def num_bytes(self) -> int:
        """Size of one copy of the weights as servers get them."""
        return sum(spec.num_bytes for spec in self.specs)

    def order(self, version: int) -> WriteOrder:
        """What ``version`` is made of."""
        return WriteOrder(version, self.specs, self.quantization)

    def checked(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The trainer's tensors, as they are.

        Raises:
            EngineError: a tensor is missing, unknown or of another shape.
        """
        tensors = dict(named_tensors)
        for name, tensor in tensors.items():
            shape = self._sources.get(name)
            if shape is None:
                raise EngineError(f"weight {name!r} is not part of what engines get")
            if shape != tuple(tensor.shape):
                raise EngineError(f"weight {name!r} has shape {tuple(tensor.shape)}, engines expect {shape}")
        missing = [name for name in self._sources if name not in tensors]
        if missing:
            raise EngineError(f"weight {missing[0]!r} was not written ({len(missing)} missing)")
        return tensors

    def prepared(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Mapping[str, torch.Tensor]:
        """The tensors of ``specs``, quantized where they are to be; types that only need a cast are left as they are.

        Raises:
            EngineError: as ``checked``, or a tensor is not finite where it is quantized.
        """
        tensors = self.checked(named_tensors)
        if self.quantization is not None:
            return dict(cast_weights(tensors.items(), self.quantization))
        return tensors
