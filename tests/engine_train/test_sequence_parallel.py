"""Two ranks that share each micro-batch compute what one rank computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_gradients import plain_attention
from transformers import LlamaConfig

from areal_x.api.config import AlgorithmConfig, ModelConfig, TrainConfig
from areal_x.api.errors import ConfigError
from areal_x.engine.ranks.local_ranks import LocalRanks
from areal_x.engine.ranks.rank_context import ONE_RANK
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.packing import plan_micro_batches
from areal_x.engine.train.sequence_parallel import check_heads, share_rows


@pytest.fixture(scope="module")
def ranks() -> Iterator[LocalRanks]:
    here = str(Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]))
        group = LocalRanks(2, sequence_parallel=2, timeout_seconds=400)
    try:
        yield group
    finally:
        group.close()


OF_SEQUENCES = {"policy_loss": "gspo", "aggregation": "sequence", "correction": "sequence_mask"}


@pytest.mark.parametrize(
    ("architecture", "budget", "completion", "algorithm"),
    [
        ("qwen3", 16384, (1, 20), {}),
        ("qwen3", 60, (40, 90), {}),
        ("qwen3-sliding", 100, (1, 20), {}),
        ("gemma2", 8, (1, 20), {}),
        ("qwen3", 100, (1, 20), OF_SEQUENCES | {"correction_kwargs": {"ratio": "geometric", "high": 1.5}}),
        ("qwen3", 8, (40, 90), OF_SEQUENCES | {"entropy_coefficient": 0.1}),
    ],
)
def test_two_ranks_that_share_rows_give_the_gradients_of_one(
    ranks: LocalRanks, make_model, make_batch, architecture: str, budget: int, completion: tuple[int, int], algorithm
) -> None:
    """Grouped heads (4 over 2), shared prefixes as trees and apart, windows, caps, rows that 2 does not divide; sums
    over sequences that lie on both ranks."""
    path = make_model(architecture)
    batch = make_batch([1, 3, 4, 2, 5], completion=completion)
    if algorithm:
        batch.proximal = batch.logprobs + 0.1 * np.random.default_rng(0).standard_normal(len(batch.logprobs)).astype(
            "f"
        )
    train = TrainConfig(micro_batch_tokens=budget, logprob_chunk_tokens=7)
    arguments = {"model_path": path, "algorithm": AlgorithmConfig(**algorithm), "model": ModelConfig(device="cpu")}
    alone = FSDPEngine(**arguments, train=train, temperature=0.8)
    alone.accumulate(batch)
    totals = alone.updates.totals
    assert totals is not None
    shared = TrainConfig(micro_batch_tokens=budget, logprob_chunk_tokens=7, num_ranks=2, sequence_parallel=2)
    ranks.build("policy", "rank_gradients:GradientPolicy", {**arguments, "train": shared, "temperature": 0.8})
    (loss, first_rows, gradients), (other_loss, other_rows, _) = ranks.call("policy", "gradients", batch)
    assert loss == other_loss
    assert abs(loss / totals.update_loss.item() - 1) <= 1e-5
    assert first_rows == other_rows
    assert (
        totals.num_computed_tokens <= first_rows + other_rows <= totals.num_computed_tokens + totals.num_micro_batches
    )
    expected = {name: value.grad.numpy() for name, value in alone.model.named_parameters() if value.grad is not None}
    assert gradients.keys() == expected.keys()
    largest = max(np.linalg.norm(value) for value in expected.values())
    for name, value in expected.items():
        assert np.linalg.norm(gradients[name] - value) <= 1e-5 * max(np.linalg.norm(value), 1e-3 * largest), name
    first, second = ranks.call("policy", "logprobs", batch)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, alone.logprobs(batch), atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (6, 3)])
@pytest.mark.parametrize("num_rows", [1, 8, 9])
def test_heads_are_exchanged_for_rows_and_back(ranks: LocalRanks, num_rows: int, heads: int, kv_heads: int) -> None:
    """As many heads of keys as ranks, fewer, and a number that ranks do not divide."""
    generator = np.random.default_rng(0)
    shapes = [(num_rows, count, 4) for count in (heads, kv_heads, kv_heads, heads)]
    *states, upstream = [generator.standard_normal(shape) for shape in shapes]
    ranks.build("exchange", "rank_gradients:Exchange", {})
    parts = ranks.call("exchange", "attend", *states, upstream)
    tensors = [torch.from_numpy(part).requires_grad_() for part in states]
    output = plain_attention(*tensors)
    expected = [output, *torch.autograd.grad(output, tensors, torch.from_numpy(upstream))]
    for found, wanted in zip(zip(*parts, strict=True), expected, strict=True):
        joined = np.concatenate(found)
        np.testing.assert_allclose(joined[:num_rows], wanted.detach().numpy(), atol=1e-12)
        assert not joined[num_rows:].any()


def test_one_rank_keeps_its_micro_batches(make_batch) -> None:
    batch = make_batch([3])
    (micro_batch,) = plan_micro_batches(batch, batch.loss_mask, 1000)
    assert share_rows(micro_batch, ONE_RANK) is micro_batch


def test_heads_that_cannot_be_divided_are_named() -> None:
    config = LlamaConfig(hidden_size=48, num_attention_heads=12, num_key_value_heads=4)
    for size in (1, 2, 3, 12):
        check_heads(config, size)
    with pytest.raises(ConfigError, match=r"train\.sequence_parallel: 8 .* 12 attention heads .* 1, 2, 3, 4, 6, 12"):
        check_heads(config, 8)
