"""Weights in eight bits: which tensors, how exact, what is refused, and the checkpoint that a server starts with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transport_weights import weights

from areal_x.api.errors import EngineError
from areal_x.engine.init_model import init_model
from areal_x.engine.transfer.fp8 import (
    BLOCK,
    MAX_FP8,
    block_absmax,
    cast_specs,
    cast_tensor,
    cast_weights,
    dequantize,
    is_linear,
)
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.quantized_checkpoint import write_quantized_checkpoint
from areal_x.engine.transfer.shared_buffers import TensorSpec

QUANTIZATIONS = ["fp8", "fp8_block"]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (8, 8), True),
        ("model.layers.11.mlp.gate_up_proj.weight", (8, 8), True),
        ("layers.3.mlp.down_proj.weight", (8, 8), True),
        ("model.layers.0.self_attn.q_proj.bias", (8,), False),
        ("model.layers.0.self_attn.q_norm.weight", (8,), False),
        ("model.layers.0.input_layernorm.weight", (8,), False),
        ("model.layers.0.mlp.gate.weight", (8, 8), False),
        ("model.embed_tokens.weight", (8, 8), False),
        ("lm_head.weight", (8, 8), False),
        ("vision_proj.weight", (8, 8), False),
        ("model.layers.0.mlp.experts.gate_up_proj", (2, 8, 8), False),
    ],
)
def test_only_linear_layers_of_the_decoder(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert is_linear(name, shape) is expected


@pytest.mark.parametrize(
    ("quantization", "scale", "blocks"), [("fp8", "_scale", ()), ("fp8_block", "_scale_inv", (2, 1))]
)
def test_scales_follow_their_weight_and_the_rest_stays(quantization: str, scale: str, blocks: tuple[int, ...]) -> None:
    cast = dict(cast_weights(weights(1), quantization))
    name = "model.layers.1.self_attn.q_proj.weight"
    assert cast[name].dtype == torch.float8_e4m3fn and cast[name].shape == (130, 40)
    assert cast[name + scale].dtype == torch.float32 and tuple(cast[name + scale].shape) == blocks
    assert list(cast).index(name + scale) == list(cast).index(name) + 1
    before = dict(weights(1))
    kept = {key: value for key, value in before.items() if not is_linear(key, value.shape)}
    assert all(torch.equal(cast[key], value) and cast[key].dtype == value.dtype for key, value in kept.items())
    assert len(cast) == len(before) + (len(before) - len(kept))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_layout_is_known_before_any_weights(quantization: str) -> None:
    specs = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in weights(1)]
    found = [TensorSpec(name, tuple(t.shape), t.dtype) for name, t in cast_weights(weights(1), quantization)]
    assert cast_specs(specs, quantization) == found


matrices = st.tuples(
    st.integers(1, 300), st.integers(1, 300), st.floats(-30, 30), st.floats(0, 6), st.integers(0, 2**31)
)


def matrix(rows: int, columns: int, log_size: float, spread: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    return values * torch.exp(spread * torch.randn(rows, columns, generator=generator)) * 2.0**log_size


@settings(deadline=None, max_examples=60)
@given(matrices, st.sampled_from(QUANTIZATIONS), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_error_of_each_value_is_bounded(
    kind: tuple[int, int, float, float, int], quantization: str, dtype: torch.dtype
) -> None:
    values = matrix(*kind).to(dtype)
    weight, scales = cast_tensor("w", values, quantization)
    assert weight.dtype == torch.float8_e4m3fn and bool(torch.isfinite(weight.float()).all())
    assert bool((scales > 0).all()) and bool(torch.isfinite(scales).all())
    found = dequantize(weight, scales)
    if quantization == "fp8":
        largest = values.float().abs().amax().expand(values.shape)
    else:
        largest = block_absmax(values.float()).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        largest = largest[: values.shape[0], : values.shape[1]]
    # Three bits of mantissa: half a step is 1/16 of the value; below 2**-6 of a scale, half of 2**-9 of it.
    bound = torch.maximum(values.float().abs() / 16, largest / MAX_FP8 * 2.0**-10)
    assert bool(((found - values.float()).abs() <= bound * (1 + 1e-5)).all())


@settings(deadline=None, max_examples=30)
@given(matrices, st.sampled_from(QUANTIZATIONS))
def test_casting_what_was_cast_changes_nothing(kind: tuple[int, int, float, float, int], quantization: str) -> None:
    once = dequantize(*cast_tensor("w", matrix(*kind), quantization))
    torch.testing.assert_close(dequantize(*cast_tensor("w", once, quantization)), once, rtol=1e-5, atol=0)


def test_blocks_are_scaled_apart() -> None:
    values = torch.ones(130, 260)
    values[:128, 128:256] = 1e-3
    weight, scales = cast_tensor("w", values, "fp8_block")
    assert scales.shape == (2, 3)
    torch.testing.assert_close(scales * MAX_FP8, torch.tensor([[1, 1e-3, 1], [1, 1, 1]]))
    torch.testing.assert_close(dequantize(weight, scales), values)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("values", [torch.zeros(129, 5), torch.full((3, 3), 1e-44), torch.full((3, 3), 3e38)])
def test_the_smallest_and_largest_values(values: torch.Tensor, quantization: str) -> None:
    weight, scales = cast_tensor("w", values, quantization)
    found = dequantize(weight, scales)
    assert bool(torch.isfinite(found).all()) and bool((scales > 0).all())
    torch.testing.assert_close(found, values, rtol=1 / 16, atol=1e-38)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_values_that_are_none_are_refused_by_name(quantization: str, bad: float) -> None:
    named = dict(weights(1))
    name = "model.layers.1.mlp.down_proj.weight"
    named[name][39, 256] = bad
    with pytest.raises(EngineError, match=f"'{name}' has values that are infinite or no number"):
        dict(cast_weights(named.items(), quantization))


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(EngineError, match="'int4'; it must be one of fp8, fp8_block"):
        TensorLayout(weights(1), quantization="int4")
    with pytest.raises(EngineError, match="finds no linear layer"):
        TensorLayout([("lm_head.weight", torch.zeros(3, 3))], quantization="fp8")
    expert = [*weights(1), ("model.layers.0.mlp.experts.0.up_proj.weight", torch.zeros(3, 3))]
    with pytest.raises(EngineError, match="mixture of experts"):
        TensorLayout(expert, quantization="fp8")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_quantized_checkpoint_holds_the_model(tmp_path: Path, quantization: str, tied: bool) -> None:
    source = init_model(
        tmp_path / "model", tokenizer="characters", hidden_size=64, num_layers=2, tie_word_embeddings=tied
    )
    write_quantized_checkpoint(source, tmp_path / "fp8", quantization)
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    said = config["quantization_config"]
    assert (said["quant_method"], said["activation_scheme"]) == ("fp8", "dynamic")
    assert said.get("weight_block_size") == ([128, 128] if quantization == "fp8_block" else None)
    assert {"lm_head", "model.embed_tokens"} <= set(said["modules_to_not_convert"])
    assert (tmp_path / "fp8" / "tokenizer.json").is_file() and config["dtype"] == "bfloat16"
    found = load_file(tmp_path / "fp8" / "model.safetensors")
    assert ("lm_head.weight" in found) is not tied
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for name, tensor in model.named_parameters():
        if is_linear(name, tensor.shape):
            scales = found[name + ("_scale_inv" if quantization == "fp8_block" else "_scale")]
            torch.testing.assert_close(dequantize(found[name], scales), tensor.detach(), rtol=1 / 15, atol=1e-4)
        else:
            assert torch.equal(found[name], tensor.detach().bfloat16())


def test_a_checkpoint_without_weights_or_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="has no safetensors files"):
        write_quantized_checkpoint(tmp_path, tmp_path / "out", "fp8")
    source = init_model(tmp_path / "model", tokenizer="characters", hidden_size=64, num_layers=1)
    (source / "config.json").unlink()
    with pytest.raises(EngineError, match=r"has no config\.json"):
        write_quantized_checkpoint(source, tmp_path / "out", "fp8")
    (source / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{truncated")
    with pytest.raises(EngineError, match="cannot be read"):
        write_quantized_checkpoint(source, tmp_path / "out", "fp8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
