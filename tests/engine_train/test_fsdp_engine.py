"""The engine on tiny real models: first step, mini-batches, repeatability, odd batches, warm start, saving."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from areal_x.api.config import AlgorithmConfig, ModelConfig, TrainConfig
from areal_x.api.errors import ConfigError, EngineError
from areal_x.api.records import TrainBatch
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.mini_batches import deal_mini_batches


def make_engine(path: Path, algorithm: AlgorithmConfig | None = None, **train: object) -> FSDPEngine:
    train = {"micro_batch_tokens": 64, "learning_rate": 1e-3} | train
    return FSDPEngine(path, TrainConfig(**train), algorithm or AlgorithmConfig(), ModelConfig(device="cpu"))


def weights(engine: FSDPEngine) -> torch.Tensor:
    return torch.cat([tensor.flatten().clone() for _, tensor in engine.named_weights()])


def test_first_step_on_fresh_weights(make_model, make_batch) -> None:
    engine = make_engine(make_model(), AlgorithmConfig(kl_coefficient=0.1))
    batch = make_batch([4, 4, 4])
    batch.logprobs = np.where(batch.loss_mask, engine.logprobs(batch), 0).astype(np.float32)
    stats = engine.train_step(batch)
    assert stats["train/ratio_mean"] == 1.0
    assert stats["train/behaviour_difference_max"] <= 1e-5
    assert stats["train/reference_kl"] == 0.0
    assert stats["train/behaviour_weight_max"] == pytest.approx(1.0, abs=1e-5)
    assert stats["train/skipped_steps"] == 0
    assert stats["train/trained_tokens"] == batch.loss_mask.sum()
    assert stats["train/grad_norm"] > 0
    assert 0 < stats["train/entropy"] <= math.log(31)
    assert engine.train_step(batch)["train/reference_kl"] > 0


def test_mini_batches_clip_around_the_policy_before_the_step(make_model, make_batch) -> None:
    algorithm = AlgorithmConfig(num_mini_batches=2, clip_low=0.05, clip_high=0.05)
    engine = make_engine(make_model(), algorithm, learning_rate=3e-2)
    batch = make_batch([4, 4, 4, 4])
    batch.logprobs = np.where(batch.loss_mask, engine.logprobs(batch), 0).astype(np.float32)
    stats = engine.train_step(batch)
    assert stats["train/ratio_mean"] != 1.0
    assert stats["train/clip_fraction_low"] + stats["train/clip_fraction_high"] > 0
    assert stats["train/behaviour_weight_max"] == pytest.approx(1.0, abs=1e-5)


def test_mini_batches_cover_every_sequence_once_and_keep_groups(make_batch) -> None:
    batch = make_batch([1, 5, 2, 3, 4])
    parts = deal_mini_batches(batch.group_ids, 3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(batch)))
    groups = [set(batch.group_ids[part].tolist()) for part in parts]
    assert len(groups) == 3 and sum(map(len, groups)) == len(set(batch.group_ids.tolist()))


def test_metrics_do_not_depend_on_micro_batches(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([3, 3, 3, 3])
    small, large = (make_engine(path, micro_batch_tokens=budget).train_step(batch) for budget in (20, 4096))
    assert small["train/num_micro_batches"] > large["train/num_micro_batches"] == 1
    for name in small.keys() - {"train/num_micro_batches", "train/seconds", "train/computed_tokens"}:
        assert small[name] == pytest.approx(large[name], rel=2e-4, abs=1e-6), name


def gradients(engine: FSDPEngine) -> torch.Tensor:
    return torch.cat(
        [parameter.grad.flatten() for parameter in engine.model.parameters() if parameter.grad is not None]
    )


def cut(batch: TrainBatch, bounds: list[int]) -> list[TrainBatch]:
    """Parts of a batch, cut at these sequences."""
    parts = []
    for first, last in itertools.pairwise([0, *bounds, len(batch)]):
        tokens = slice(batch.offsets[first], batch.offsets[last])
        values = (batch.input_ids, batch.loss_mask, batch.logprobs, batch.advantages)
        part = TrainBatch(*(value[tokens] for value in values), batch.lengths[first:last], batch.group_ids[first:last])
        part.versions = None if batch.versions is None else batch.versions[tokens]
        part.proximal = None if batch.proximal is None else batch.proximal[tokens]
        parts.append(part)
    return parts


@pytest.mark.parametrize(
    ("algorithm", "bounds"),
    [
        ({"kl_coefficient": 0.1}, [5]),
        ({"aggregation": "sequence", "policy_loss": "gspo"}, [1, 2, 9]),
        ({"aggregation": "constant", "loss_length": 9, "correction": "sequence_mask"}, list(range(1, 12))),
        ({"entropy_coefficient": 0.1, "policy_loss": "sapo", "aggregation": "sequence"}, list(range(1, 12))),
    ],
)
def test_a_step_in_parts_is_the_whole_step(make_model, make_batch, algorithm: dict, bounds: list[int]) -> None:
    path, batch = make_model(), make_batch([4, 4, 4])
    batch.versions = np.arange(len(batch.input_ids), dtype=np.int32) % 3
    if "policy_loss" in algorithm:
        batch.proximal = batch.logprobs + 0.1
    whole, parted = (make_engine(path, AlgorithmConfig(**algorithm), micro_batch_tokens=m) for m in (4096, 40))
    whole.version = parted.version = 2
    batch.loss_mask[: batch.offsets[1]] = False  # the first part of one cut has nothing to train
    whole.accumulate(batch)
    for part in cut(batch, bounds):
        parted.accumulate(part)
    expected, got = gradients(whole).double(), gradients(parted).double()
    assert ((got - expected).norm() / expected.norm()).item() <= 1e-6
    metrics = parted.apply()
    for name, value in whole.apply().items():
        if name not in {"train/seconds", "train/num_micro_batches", "train/computed_tokens"}:
            assert metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert 0 < metrics["train/stale_fraction"] < 1
    assert ("policy_loss" in algorithm) or metrics["train/ratio_mean"] == 1.0
    torch.testing.assert_close(weights(parted), weights(whole), rtol=1e-4, atol=1e-5)


def test_a_forgotten_or_broken_part_leaves_no_gradient(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([4, 4])
    fresh, used = make_engine(path), make_engine(path)
    used.accumulate(make_batch([4], seed=1))
    used.discard()
    assert all(parameter.grad is None for parameter in used.model.parameters())
    used.accumulate(make_batch([4], seed=1))
    broken = make_batch([2], seed=2)
    broken.input_ids[0] = 1000
    with pytest.raises(EngineError):
        used.accumulate(broken)
    assert all(parameter.grad is None for parameter in used.model.parameters())
    used.accumulate(make_batch([4], seed=1))
    metrics, expected = used.train_step(batch), fresh.train_step(batch)  # a whole step begins anew
    assert metrics["train/trained_tokens"] == expected["train/trained_tokens"]
    assert torch.equal(weights(used), weights(fresh))


def test_one_bad_part_skips_the_whole_step(make_model, make_batch) -> None:
    engine, batch = make_engine(make_model()), make_batch([3, 3])
    before = weights(engine)
    good, bad = cut(batch, [3])
    bad.advantages[:] = 3e38  # the loss overflows
    engine.accumulate(good)
    engine.accumulate(bad)
    assert engine.apply()["train/skipped_steps"] == 1
    assert engine.apply()["train/skipped_steps"] == 1  # nothing was accumulated
    assert torch.equal(weights(engine), before)


def test_two_trainings_are_bitwise_equal(make_model, make_batch) -> None:
    path = make_model()
    runs = []
    for _ in range(2):
        engine = make_engine(path)
        losses = [engine.train_step(make_batch([4, 4, 2], seed=step))["train/loss"] for step in range(4)]
        runs.append((losses, weights(engine)))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_warm_start_then_reinforcement_learning(make_model, make_batch) -> None:
    """The same engine object learns a fixed batch, then gets a fresh optimiser and raises the rewarded tokens."""
    engine = make_engine(make_model(), learning_rate=2e-3)
    batch = make_batch([2, 2, 2, 2])
    engine.reset_optimizer(1e-2, "cosine", warmup_steps=2, total_steps=25)
    losses = [engine.sft_step(batch)["sft/loss"] for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]
    assert len(engine.optimizer.state) > 0
    engine.reset_optimizer(2e-3, "constant", warmup_steps=0, total_steps=10)
    assert len(engine.optimizer.state) == 0 and engine.learning_rate == 2e-3
    before = engine.logprobs(batch)
    batch.advantages = np.where(batch.input_ids % 2 == 0, 1, -1).astype(np.float32)
    batch.logprobs = np.where(batch.loss_mask, before, 0).astype(np.float32)
    for _ in range(3):
        engine.train_step(batch)
    change = (engine.logprobs(batch) - before)[batch.loss_mask]
    assert (change * batch.advantages[batch.loss_mask]).mean() > 0


def test_sft_loss_is_the_mean_over_all_masked_tokens(make_model, make_batch) -> None:
    engine = make_engine(make_model())
    batch = make_batch([1, 2, 3])
    expected = -engine.logprobs(batch)[batch.loss_mask].astype(np.float64).mean()
    assert engine.sft_step(batch)["sft/loss"] == pytest.approx(expected, abs=1e-6)


def test_learning_rate_follows_the_schedule(make_model, make_batch) -> None:
    engine = make_engine(make_model(), learning_rate=1e-3, lr_schedule="linear", warmup_steps=2, total_steps=4)
    batch = make_batch([2])
    rates = [engine.train_step(batch)["train/learning_rate"] for _ in range(5)]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4, 0])


def subset(batch: TrainBatch, mask: np.ndarray) -> TrainBatch:
    return TrainBatch(batch.input_ids, mask, batch.logprobs, batch.advantages, batch.lengths, batch.group_ids)


@pytest.mark.parametrize("mini_batches", [1, 2])
def test_nothing_to_train_takes_no_step(make_model, make_batch, mini_batches: int) -> None:
    engine = make_engine(make_model(), AlgorithmConfig(num_mini_batches=mini_batches))
    before = weights(engine)
    batch = make_batch([2, 2])
    stats = engine.train_step(subset(batch, np.zeros(len(batch.input_ids), dtype=bool)))
    assert stats["train/skipped_steps"] == mini_batches and stats["train/trained_tokens"] == 0
    assert "train/loss" not in stats and "train/grad_norm" not in stats
    assert torch.equal(weights(engine), before)
    assert engine.sft_step(subset(batch, np.zeros(len(batch.input_ids), dtype=bool)))["sft/skipped_steps"] == 1


def test_a_loss_that_is_not_finite_is_skipped_and_counted(make_model, make_batch) -> None:
    engine = make_engine(make_model())
    before = weights(engine)
    batch = make_batch([3, 3])
    batch.advantages[:] = 3e38
    stats = engine.train_step(batch)
    assert stats["train/skipped_steps"] == 1
    assert all(math.isfinite(value) for value in stats.values())
    assert torch.equal(weights(engine), before)
    assert engine.train_step(make_batch([3, 3]))["train/skipped_steps"] == 0
    assert not torch.equal(weights(engine), before)


def test_odd_batches(make_model) -> None:
    """A single token, a sequence above the budget, one trained token, a wholly masked sequence."""
    generator = np.random.default_rng(0)
    lengths = np.array([1, 100, 2, 5], dtype=np.int32)
    size = int(lengths.sum())
    mask = np.zeros(size, dtype=bool)
    mask[2:101] = True
    mask[102] = True
    batch = TrainBatch(
        generator.integers(0, 31, size).astype(np.int32),
        mask,
        np.full(size, -3.4, dtype=np.float32),
        np.ones(size, dtype=np.float32),
        lengths,
        np.arange(4, dtype=np.int64),
    )
    engine = make_engine(make_model(), micro_batch_tokens=16)
    logprobs = engine.logprobs(batch)
    starts = np.cumsum(lengths) - lengths
    assert (logprobs[starts] == 0).all() and (np.delete(logprobs, starts) < 0).all()
    stats = engine.train_step(batch)
    assert stats["train/trained_tokens"] == 100 and stats["train/computed_tokens"] == 100
    assert stats["train/num_micro_batches"] == 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("input_ids", 31, "token id 31 lies outside the vocabulary of 31"),
        ("loss_mask", True, "first token of sequence 0"),
        ("lengths", 99, "lengths add up"),
    ],
)
def test_bad_batches_are_named(make_model, make_batch, field: str, value: object, message: str) -> None:
    engine = make_engine(make_model())
    batch = make_batch([2])
    getattr(batch, field)[0] = value
    with pytest.raises(EngineError, match=message):
        engine.train_step(batch)


def test_saved_policy_loads_anywhere(make_model, make_batch, tmp_path: Path) -> None:
    path = make_model()
    engine, batch = make_engine(path), make_batch([3])
    engine.train_step(batch)
    engine.save(tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert plain.config._attn_implementation == "sdpa"
    length = int(batch.lengths[0])
    ids = torch.from_numpy(batch.input_ids[:length].astype(np.int64))
    expected = torch.log_softmax(plain(ids[None]).logits[0, :-1], -1).gather(1, ids[1:, None])[:, 0]
    trained = engine.logprobs(batch)
    np.testing.assert_allclose(trained[1:length], expected.detach().numpy(), atol=1e-5)
    other = make_engine(path)
    assert not np.allclose(other.logprobs(batch), trained, atol=1e-6)
    other.load(tmp_path / "saved")
    np.testing.assert_array_equal(other.logprobs(batch), trained)
    with pytest.raises(EngineError, match="missing"):
        other.load(tmp_path / "missing")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_that_are_trained_keep_float32(make_model, make_batch, dtype: str) -> None:
    train = TrainConfig(micro_batch_tokens=64, learning_rate=1e-6, warmup_steps=0, weight_decay=0.0)
    engine = FSDPEngine(
        make_model(), train, AlgorithmConfig(kl_coefficient=0.1), ModelConfig(dtype=dtype, device="cpu")
    )
    assert engine.reference is not None and engine.reference.module is not None
    assert engine.reference.module.model.dtype == torch.float32
    assert {tensor.dtype for _, tensor in engine.named_weights()} == {torch.float32}
    name = "model.layers.0.mlp.up_proj.weight"
    before = dict(engine.named_weights())[name].clone()
    engine.train_step(make_batch([4, 4]))
    after = dict(engine.named_weights())[name]
    # The first step of Adam moves each weight by the learning rate, which a weight of 16 bits would not notice.
    assert (after != before).float().mean() > 0.9


def test_loading_throws_accumulated_gradients_away(make_model, make_batch) -> None:
    path = make_model()
    engine = make_engine(path)
    engine.accumulate(make_batch([3]))
    engine.load(path)
    assert all(parameter.grad is None for parameter in engine.model.parameters())
    assert engine.apply()["train/skipped_steps"] == 1


@pytest.mark.parametrize("tied", [True, False])
def test_named_weights_give_tied_ones_once(make_model, tied: bool) -> None:
    names = [name for name, _ in make_engine(make_model(tied=tied)).named_weights()]
    assert "model.embed_tokens.weight" in names
    assert ("lm_head.weight" in names) is not tied
    assert len(names) == len(set(names))


def test_models_and_values_that_cannot_work_are_named(make_model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        make_engine(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="temperature: 0"):
        FSDPEngine(make_model(), TrainConfig(), AlgorithmConfig(), ModelConfig(), temperature=0.0)
    with pytest.raises(ConfigError, match=r"model\.dtype"):
        FSDPEngine(make_model(), TrainConfig(), AlgorithmConfig(), ModelConfig(dtype="int8"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=31, num_key_value_heads=1, head_dim=8, final_logit_softcapping=-30.0, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gemma2")
    with pytest.raises(ConfigError, match="final_logit_softcapping=-30"):
        make_engine(tmp_path / "gemma2")
