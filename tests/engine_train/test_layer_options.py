"""What one rank may do to its layers and numbers: checkpointing, bfloat16, compilation; and what is refused."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from areal_x.api.config import AlgorithmConfig, ModelConfig, TrainConfig
from areal_x.api.errors import ConfigError
from areal_x.engine.train.attention import PACKED_ATTENTION
from areal_x.engine.train.fsdp_engine import FSDPEngine


def make_engine(path: Path, algorithm: AlgorithmConfig | None = None, **train: object) -> FSDPEngine:
    options = {"micro_batch_tokens": 64, "learning_rate": 1e-3} | train
    return FSDPEngine(path, TrainConfig(**options), algorithm or AlgorithmConfig(), ModelConfig(device="cpu"))


def weights(engine: FSDPEngine) -> torch.Tensor:
    return torch.cat([tensor.flatten().clone() for _, tensor in engine.named_weights()])


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_checkpointing_changes_no_number_and_keeps_less(make_model, make_batch, architecture: str) -> None:
    path, batch = make_model(architecture), make_batch([4, 4])
    plain, frugal = make_engine(path), make_engine(path, gradient_checkpointing=True)
    kept = []
    for engine in (plain, frugal):
        (micro_batch,) = engine._plan(batch, batch.loss_mask)[:1]
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.nbytes), t)[1], lambda t: t
        ):
            engine.policy(micro_batch, 1.0)
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]
    assert plain.train_step(batch) | {"train/seconds": 0} == frugal.train_step(batch) | {"train/seconds": 0}
    assert torch.equal(weights(plain), weights(frugal))


@pytest.mark.usefixtures("group_of_one")
def test_bfloat16_on_one_rank_learns_and_keeps_float32(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([4, 4])
    engine = make_engine(path, AlgorithmConfig(kl_coefficient=0.01), mixed_precision="bfloat16")
    exact = make_engine(path).logprobs(batch)
    before = engine.logprobs(batch)
    assert 1e-4 < np.abs(before - exact).max() < 0.2
    assert {tensor.dtype for _, tensor in engine.named_weights()} == {torch.float32}
    batch.advantages = np.where(batch.input_ids % 2 == 0, 1, -1).astype(np.float32)
    batch.logprobs = np.where(batch.loss_mask, before, 0).astype(np.float32)
    start = weights(engine)
    for _ in range(3):
        assert engine.train_step(batch)["train/skipped_steps"] == 0
    change = (engine.logprobs(batch) - before)[batch.loss_mask]
    assert (change * batch.advantages[batch.loss_mask]).mean() > 0
    # Steps of 1e-3 on float32 weights: most of them lie between two numbers of bfloat16.
    moved = weights(engine)[weights(engine) != start]
    assert len(moved) > 0.9 * len(start) and (moved != moved.bfloat16().float()).float().mean() > 0.9


@pytest.mark.usefixtures("group_of_one")
def test_bfloat16_saves_loads_and_recovers(make_model, make_batch, tmp_path: Path) -> None:
    path, batch = make_model(), make_batch([4, 4])
    engine = make_engine(path, mixed_precision="bfloat16")
    engine.train_step(batch)
    engine.save(tmp_path / "saved")
    expected = engine.logprobs(batch)
    other = make_engine(path, mixed_precision="bfloat16")
    other.load(tmp_path / "saved")
    np.testing.assert_array_equal(other.logprobs(batch), expected)
    # A pass that ends half-way, as when memory runs out, leaves an engine that can be used.
    layer = other.model.base_model.layers[1]
    broken = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError("full")))
    with pytest.raises(MemoryError, match="full"):
        other.accumulate(batch)
    broken.remove()
    np.testing.assert_array_equal(other.logprobs(batch), expected)
    assert other.train_step(batch)["train/skipped_steps"] == 0


def test_compiled_layers_compute_the_same_with_one_graph_for_all_sizes(
    make_model, make_batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the compiler's front end, which cuts graphs and guards their sizes; code generation takes a minute."""
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(1)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=count))
    attention = ALL_ATTENTION_FUNCTIONS[PACKED_ATTENTION]
    path = make_model()
    plain = make_engine(path)
    try:
        compiled = make_engine(path, compile=True)
        for seed in range(4):
            batch = make_batch([3, 2 + seed], seed=seed)
            expected, found = plain.train_step(batch), compiled.train_step(batch)
            assert found["train/loss"] == pytest.approx(expected["train/loss"], abs=1e-5)
            assert found["train/grad_norm"] == pytest.approx(expected["train/grad_norm"], rel=1e-4)
            if seed == 1:
                num_graphs = len(graphs)
    finally:
        ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, attention)
        torch.compiler.reset()
    assert 0 < len(graphs) == num_graphs


def test_options_that_need_another_device_are_refused(make_model) -> None:
    with pytest.raises(ConfigError, match=r"train\.liger: .* CUDA"):
        make_engine(make_model(), liger=True)
    with pytest.raises(ConfigError, match=r"train\.cpu_offload: .* CPU"):
        make_engine(make_model(), cpu_offload=True)
    assert not dist.is_initialized()
