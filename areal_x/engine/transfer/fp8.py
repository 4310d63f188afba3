"""Weights in eight bits for servers that compute in FP8, cast from the trainer's at each publication.

Only the linear layers of the decoder are cast; embeddings, norms, biases and the output head keep their type, and so do
tied embeddings. Names and shapes are those of quantized checkpoints: beside ``x.weight`` (float8_e4m3fn) lies
``x.weight_scale`` (one float32: the true weight is their product), or for blocks of 128 x 128 ``x.weight_scale_inv``
(one float32 for each block, the last ones cut; in spite of its name a factor, too).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import torch

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.shared_buffers import TensorSpec

__all__ = [
    "BLOCK",
    "MAX_FP8",
    "block_absmax",
    "cast_rows",
    "cast_specs",
    "cast_tensor",
    "cast_weights",
    "dequantize",
    "is_linear",
    "quantization_config",
    "scale_name",
    "scales_of",
]

BLOCK = 128
MAX_FP8 = 448.0
"""The largest finite value of float8_e4m3fn."""
_TINY = torch.finfo(torch.float32).tiny
_LINEAR = re.compile(r"(.+\.)?layers\.\d+\.(.+\.)?[a-z_]*proj\.weight")
_QUANTIZATIONS = ("fp8", "fp8_block")


def is_linear(name: str, shape: Sequence[int]) -> bool:
    """Whether this is the weight of a linear layer of the decoder."""
    return len(shape) == 2 and _LINEAR.fullmatch(name) is not None


def _check(names: Iterable[tuple[str, Sequence[int]]], quantization: str) -> None:
    if quantization not in _QUANTIZATIONS:
        raise EngineError(f"quantization is {quantization!r}; it must be one of {', '.join(_QUANTIZATIONS)}")
    found = list(names)
    for name, _ in found:
        if ".experts." in name:
            raise EngineError(f"weight {name!r} is of a mixture of experts, which {quantization} does not cover")
    if not any(is_linear(name, shape) for name, shape in found):
        raise EngineError(f"{quantization} finds no linear layer among these weights (layers.N. ... _proj.weight)")


def scale_name(name: str, quantization: str) -> str:
    """Name of the tensor that holds a weight's scales."""
    return name + ("_scale_inv" if quantization == "fp8_block" else "_scale")


def cast_specs(specs: Sequence[TensorSpec], quantization: str) -> list[TensorSpec]:
    """What ``cast_weights`` makes of tensors of these names, shapes and types.

    Raises:
        EngineError: no linear layer is among them, or the kind of model or of quantization is not known.
    """
    _check(((spec.name, spec.shape) for spec in specs), quantization)
    cast: list[TensorSpec] = []
    for spec in specs:
        if not is_linear(spec.name, spec.shape):
            cast.append(spec)
            continue
        blocks = tuple(-(-size // BLOCK) for size in spec.shape) if quantization == "fp8_block" else ()
        cast.append(TensorSpec(spec.name, spec.shape, torch.float8_e4m3fn))
        cast.append(TensorSpec(scale_name(spec.name, quantization), blocks, torch.float32))
    return cast


def cast_weights(
    named_tensors: Iterable[tuple[str, torch.Tensor]], quantization: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each linear layer's weight in eight bits, followed by its scales; all other tensors as they are.

    Raises:
        EngineError: as ``cast_specs``, or a value is infinite or no number; the message names the tensor.
    """
    tensors = list(named_tensors)
    _check(((name, tensor.shape) for name, tensor in tensors), quantization)
    for name, tensor in tensors:
        if is_linear(name, tensor.shape):
            weight, scales = cast_tensor(name, tensor.detach(), quantization)
            yield name, weight
            yield scale_name(name, quantization), scales
        else:
            yield name, tensor


def cast_tensor(name: str, tensor: torch.Tensor, quantization: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One matrix in eight bits and its scales. A block (or tensor) of zeros gets scale 1.

    Raises:
        EngineError: a value is infinite or no number.
    """
    values = tensor.float()
    scales = scales_of(name, block_absmax(values) if quantization == "fp8_block" else values.abs().amax())
    return cast_rows(values, 0, scales), scales


def scales_of(name: str, largest: torch.Tensor) -> torch.Tensor:
    """Scales of a matrix whose blocks (or which as a whole) have these largest absolute values.

    Raises:
        EngineError: a value is infinite or no number.
    """
    if not bool(torch.isfinite(largest).all()):
        raise EngineError(f"weight {name!r} has values that are infinite or no number; it cannot be cast to FP8")
    return torch.where(largest > 0, (largest / MAX_FP8).clamp_min(_TINY), 1.0)


def cast_rows(rows: torch.Tensor, first_row: int, scales: torch.Tensor) -> torch.Tensor:
    """Consecutive rows of a matrix in eight bits, by the scales of the whole matrix."""
    quotients = rows.float() / _spread(scales, first_row, rows.shape)
    return quotients.clamp_(-MAX_FP8, MAX_FP8).to(torch.float8_e4m3fn)


def block_absmax(rows: torch.Tensor, first_row: int = 0, total_rows: int | None = None) -> torch.Tensor:
    """The largest absolute value of each 128 x 128 block, those at the lower and right edge cut.

    Args:
        rows: consecutive rows of a matrix, which may begin and end within a block.
        first_row: place of the first one.
        total_rows: of the matrix. Blocks of which ``rows`` has nothing are 0. Default: ``rows`` is all of it.
    """
    total = len(rows) if total_rows is None else total_rows
    block_rows, block_columns = -(-total // BLOCK), -(-rows.shape[1] // BLOCK)
    result = rows.new_zeros(block_rows, block_columns)
    if not rows.numel():
        return result
    first, last = first_row // BLOCK, -(-(first_row + len(rows)) // BLOCK)
    padded = rows.new_zeros((last - first) * BLOCK, block_columns * BLOCK)
    above = first_row - first * BLOCK
    padded[above : above + len(rows), : rows.shape[1]] = rows
    result[first:last] = padded.abs_().view(last - first, BLOCK, block_columns, BLOCK).amax((1, 3))
    return result


def _spread(scales: torch.Tensor, first_row: int, shape: torch.Size) -> torch.Tensor:
    """Scale of each element of consecutive rows."""
    if not scales.ndim:
        return scales
    first, last = first_row // BLOCK, -(-(first_row + shape[0]) // BLOCK)
    above = first_row - first * BLOCK
    rows = scales[first:last].repeat_interleave(BLOCK, 0)[above : above + shape[0]]
    return rows.repeat_interleave(BLOCK, 1)[:, : shape[1]]


def dequantize(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 matrix that a server computes with."""
    return weight.float() * _spread(scales, 0, weight.shape)


def quantization_config(quantization: str, names: Iterable[tuple[str, Sequence[int]]]) -> dict[str, object]:
    """What ``config.json`` says of a checkpoint cast this way, given the names and shapes of all its weights."""
    kept = sorted(
        name.removesuffix(".weight")
        for name, shape in names
        if len(shape) == 2 and name.endswith(".weight") and not is_linear(name, shape)
    )
    config: dict[str, object] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "modules_to_not_convert": sorted({*kept, "lm_head"}),
    }
    if quantization == "fp8_block":
        config["weight_block_size"] = [BLOCK, BLOCK]
    return config
