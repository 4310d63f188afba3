"""Packed, padded and one-by-one passes give the same loss and the same gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from areal_x.api.config import AlgorithmConfig, ModelConfig, TrainConfig
from areal_x.api.records import TrainBatch
from areal_x.engine.train.fsdp_engine import FSDPEngine

GROUPS = [1, 3, 4, 2, 5]
TEMPERATURE = 0.8


def plain_loss(model: torch.nn.Module, batch: TrainBatch, rows: list[list[int]]) -> torch.Tensor:
    """The decoupled objective by the plain formula, over right-padded batches of the sequences in ``rows``."""
    total = torch.zeros((), dtype=torch.float64)
    offsets = batch.offsets
    for members in rows:
        width = max(int(batch.lengths[member]) for member in members)
        ids = torch.zeros(len(members), width, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        for row, member in enumerate(members):
            tokens = batch.input_ids[offsets[member] : offsets[member + 1]]
            ids[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
            attention[row, : len(tokens)] = 1
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits / TEMPERATURE
        logprobs = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
        for row, member in enumerate(members):
            span = slice(offsets[member] + 1, offsets[member + 1])
            mask = torch.from_numpy(batch.loss_mask[span])
            mine = logprobs[row, : int(batch.lengths[member]) - 1][mask]
            behaviour = torch.from_numpy(batch.logprobs[span])[mask]
            advantages = torch.from_numpy(batch.advantages[span])[mask]
            weight = torch.exp(mine.detach() - behaviour).clamp(max=5.0)
            total = total - (torch.exp(mine - mine.detach()) * advantages * weight).sum()
    return total / int(batch.loss_mask.sum())


def packed_loss(engine: FSDPEngine, batch: TrainBatch) -> float:
    """The engine's loss; gradients are left in the parameters, divided by the tokens as a step divides them."""
    engine.discard()
    engine.accumulate(batch)
    totals = engine.updates.totals
    assert totals is not None and totals.update_share == batch.loss_mask.sum()
    for parameter in engine.model.parameters():
        if parameter.grad is not None:
            parameter.grad.div_(totals.update_share)
    return totals.update_loss.item() / totals.update_share.item()


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat(
        [parameter.grad.double().flatten() for parameter in model.parameters() if parameter.grad is not None]
    )


def relative_l2(first: torch.Tensor, second: torch.Tensor) -> float:
    return ((first - second).norm() / second.norm()).item()


def make_engine(path: Path, dtype: str = "float32", **train: object) -> FSDPEngine:
    return FSDPEngine(path, TrainConfig(**train), AlgorithmConfig(), ModelConfig(dtype=dtype), temperature=TEMPERATURE)


@pytest.mark.parametrize("budget", [16384, 60, 8])
@pytest.mark.parametrize(
    ("architecture", "tied"),
    [
        ("qwen3", True),
        ("qwen3", False),
        ("llama", True),
        ("llama", False),
        ("gpt2", True),
        ("qwen3-sliding", True),
        ("gemma2", True),
        ("gemma3", True),
        ("granite", False),
        ("cohere", True),
    ],
)
def test_packed_equals_padded_equals_one_by_one(
    make_model, make_batch, architecture: str, tied: bool, budget: int
) -> None:
    """Rotary models keep parts in float32 whatever their type, so float64 gains little; both stay within 1e-6."""
    path = make_model(architecture, tied)
    batch = make_batch(GROUPS)
    engine = make_engine(path, micro_batch_tokens=budget, logprob_chunk_tokens=7)
    loss = packed_loss(engine, batch)
    packed = gradient(engine.model)
    everything = list(range(len(batch)))
    for rows in ([everything], [[member] for member in everything]):
        plain = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
        expected = plain_loss(plain, batch, rows)
        expected.backward()
        assert abs(loss - expected.item()) <= 1e-6
        assert relative_l2(packed, gradient(plain)) <= 1e-6


def test_float64_agrees_far_below_float32(make_model, make_batch) -> None:
    """GPT-2 computes in its own type throughout, so float64 shows that nothing but rounding differs."""
    path = make_model("gpt2")
    batch = make_batch(GROUPS)
    engine = make_engine(path, "float64", micro_batch_tokens=50)
    loss = packed_loss(engine, batch)
    plain = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float64)
    expected = plain_loss(plain, batch, [list(range(len(batch)))])
    expected.backward()
    assert abs(loss - expected.item()) <= 1e-12
    assert relative_l2(gradient(engine.model), gradient(plain)) <= 1e-12


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3-sliding", "gpt2", "gemma2"])
@pytest.mark.parametrize(("completion", "trees"), [((1, 6), True), ((60, 80), False)])
@pytest.mark.parametrize("budget", [16384, 150])
def test_shared_prefixes_change_nothing(
    make_model, make_batch, budget: int, completion: tuple[int, int], trees: bool, architecture: str
) -> None:
    """Short samples attend as one tree, long ones each over the shared prompt; both as if computed apart."""
    batch = make_batch([8, 8], prompt=(20, 30) if trees else (90, 100), completion=completion)
    path = make_model(architecture)
    shared = make_engine(path, micro_batch_tokens=budget)
    if budget == 16384:
        (micro_batch,) = shared._plan(batch, batch.loss_mask)
        assert any(bucket.mask is not None for bucket in micro_batch.attention.buckets) is trees
    shared_loss = packed_loss(shared, batch)
    shared_rows = sum(micro_batch.num_rows for micro_batch in shared._plan(batch, batch.loss_mask))
    batch.group_ids = np.arange(len(batch), dtype=np.int64)
    apart = make_engine(path, micro_batch_tokens=budget)
    apart_loss = packed_loss(apart, batch)
    apart_rows = sum(micro_batch.num_rows for micro_batch in apart._plan(batch, batch.loss_mask))
    if budget == 16384:
        assert shared_rows < 0.6 * apart_rows
    assert abs(shared_loss - apart_loss) <= 1e-6
    assert relative_l2(gradient(shared.model), gradient(apart.model)) <= 1e-6


def test_other_sequences_do_not_matter(make_model, make_batch) -> None:
    """A sequence's log-probabilities do not change when everything around it does."""
    engine = make_engine(make_model())
    first, second = make_batch([3, 2], seed=1), make_batch([4], seed=2)
    length = int(first.lengths[0])
    alone = TrainBatch(
        *(getattr(first, name)[:length] for name in ("input_ids", "loss_mask", "logprobs", "advantages")),
        first.lengths[:1],
        first.group_ids[:1],
    )
    together = TrainBatch(
        *(np.concatenate([getattr(second, name), getattr(alone, name)]) for name in ("input_ids", "loss_mask")),
        *(
            np.concatenate([getattr(second, name), getattr(alone, name)])
            for name in ("logprobs", "advantages", "lengths")
        ),
        np.concatenate([second.group_ids, alone.group_ids + 7]),
    )
    np.testing.assert_allclose(engine.logprobs(together)[-length:], engine.logprobs(alone), atol=2e-6)


def test_rows_that_are_slots_already_are_not_gathered(make_model, make_batch) -> None:
    """Lengths that need no padding: attention works on the rows as they lie."""
    engine = make_engine(make_model())
    batch = make_batch([1, 1, 1], prompt=(4, 5), completion=(13, 14))
    wanted = np.tile(np.arange(17) > 0, 3)
    (micro_batch,) = engine._plan(batch, wanted)
    assert micro_batch.attention.in_order
    joined = engine.logprobs(batch)
    for index in range(3):
        span = slice(17 * index, 17 * (index + 1))
        fields = (getattr(batch, name)[span] for name in ("input_ids", "loss_mask", "logprobs", "advantages"))
        alone = TrainBatch(*fields, batch.lengths[:1], batch.group_ids[:1])
        np.testing.assert_allclose(joined[span], engine.logprobs(alone), atol=2e-6)
