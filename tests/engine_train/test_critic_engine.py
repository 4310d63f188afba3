"""The critic: what its values mean, that cutting and offload change nothing, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
)
from transformers.models.auto.modeling_auto import _BaseAutoModelClass

from areal_x.api.config import AlgorithmConfig, CriticConfig, ModelConfig, TrainConfig
from areal_x.api.errors import ConfigError, EngineError
from areal_x.api.records import NOT_GENERATED, TrainBatch
from areal_x.engine.critic.critic_engine import CriticEngine
from areal_x.engine.critic.value_loss import value_loss
from areal_x.engine.train.sharding import local_rows

CPU = ModelConfig(device="cpu")


def save_with_head(causal: Path, path: Path, kind: type[_BaseAutoModelClass], num_labels: int = 1) -> Path:
    """A model with a random head on the body of ``causal``."""
    torch.manual_seed(1)
    model = kind.from_pretrained(causal, num_labels=num_labels, dtype=torch.float32)
    with torch.no_grad():
        model.score.weight.normal_()
        if model.score.bias is not None:
            model.score.bias.fill_(0.3)
    model.save_pretrained(path)
    return path


def make_critic(path: Path, budget: int = 64, critic: CriticConfig | None = None, **algorithm: Any) -> CriticEngine:
    train = TrainConfig(micro_batch_tokens=budget, weight_decay=0.1)
    critic = critic or CriticConfig(learning_rate=1e-2)
    return CriticEngine(path, critic, train, AlgorithmConfig(**algorithm), CPU)


def with_targets(batch: TrainBatch, seed: int = 0) -> TrainBatch:
    generator = np.random.default_rng(seed)
    values, returns = generator.standard_normal((2, len(batch.input_ids))).astype(np.float32)
    return dataclasses.replace(batch, values=0.1 * values, returns=returns)


@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_a_value_is_the_head_at_the_row_before_its_token(make_model, make_batch, tmp_path: Path, kind: Any) -> None:
    path = save_with_head(make_model(), tmp_path / "critic", kind)
    engine = make_critic(path, critic=CriticConfig(path=str(path)))
    batch = make_batch([3, 2])
    own = kind.from_pretrained(path, dtype=torch.float32).eval()
    found = engine.values(batch)
    for start, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        ids = torch.from_numpy(batch.input_ids[start:end].astype(np.int64))[None]
        with torch.no_grad():
            states = own.base_model(input_ids=ids).last_hidden_state[0]
            expected = own.score(states).squeeze(-1).numpy()
        for place in range(start, end):
            told = expected[place - start - 1] if batch.loss_mask[place] else 0.0
            assert found[place] == pytest.approx(told, abs=1e-5)
    # Tokens that are too old to be trained have a value, too: returns run through them.
    versions = np.full(len(batch.input_ids), NOT_GENERATED, np.int32)
    old = int(np.flatnonzero(batch.loss_mask)[0])
    versions[old] = 3
    batch.loss_mask[old] = False
    assert engine.values(batch)[old] == 0
    assert engine.values(dataclasses.replace(batch, versions=versions))[old] == pytest.approx(found[old], abs=1e-6)


def test_a_new_head_begins_at_zero_and_learns_on_the_body_of_the_policy(make_model, make_batch) -> None:
    path = make_model()
    engine = make_critic(path)
    batch = make_batch([4, 4])
    assert not engine.values(batch).any()
    body = AutoModelForCausalLM.from_pretrained(path).model
    mine = engine.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    torch.testing.assert_close(mine, body.get_parameter("layers.0.mlp.up_proj.weight"))
    returns = (batch.input_ids % 2).astype(np.float32)
    losses = []
    for _ in range(25):
        batch = dataclasses.replace(batch, values=engine.values(batch), returns=returns)
        metrics = engine.train_step(batch)
        losses.append(metrics["critic/loss"])
    assert losses[-1] < 0.4 * losses[0]
    assert metrics["critic/skipped_steps"] == 0 and metrics["critic/grad_norm"] > 0
    assert metrics["critic/learning_rate"] == 1e-2
    assert 0 <= metrics["critic/clip_fraction"] <= 1


def test_its_loss_is_the_mean_over_trained_tokens_however_they_are_cut(make_model, make_batch, tmp_path) -> None:
    path = save_with_head(make_model(), tmp_path / "critic", AutoModelForSequenceClassification)
    batch = with_targets(make_batch([5, 3, 4], seed=3))
    engines = [make_critic(path, budget) for budget in (16, 60, 10_000)]
    mask = batch.loss_mask
    told, targets, before = (
        torch.from_numpy(np.asarray(array)[mask]) for array in (engines[0].values(batch), batch.returns, batch.values)
    )
    expected = value_loss(told, targets, before, 0.2)[0].item() / mask.sum()
    found = [engine.train_step(batch) for engine in engines]
    for metrics in found:
        assert metrics["critic/loss"] == pytest.approx(expected, abs=1e-5)
        assert metrics["critic/grad_norm"] == pytest.approx(found[0]["critic/grad_norm"], rel=1e-4)
    values = [engine.values(batch) for engine in engines]
    np.testing.assert_allclose(values[0], values[1], atol=2e-4)
    np.testing.assert_allclose(values[0], values[2], atol=2e-4)


def test_offload_gives_the_same_bits(make_model, make_batch, tmp_path: Path) -> None:
    path = save_with_head(make_model(), tmp_path / "critic", AutoModelForSequenceClassification)
    kept, moved = (
        make_critic(path, critic=CriticConfig(learning_rate=1e-2, offload=offload), num_mini_batches=2, num_epochs=2)
        for offload in (False, True)
    )
    for step in range(3):
        batch = with_targets(make_batch([4, 4, 2], seed=step), seed=step)
        assert np.array_equal(kept.values(batch), moved.values(batch))
        first, second = (engine.train_step(batch) for engine in (kept, moved))
        assert first | {"critic/seconds": 0.0} == second | {"critic/seconds": 0.0}
        assert sum(parameter.untyped_storage().nbytes() for parameter in moved.model.parameters()) == 0
        moments = [value for state in moved.optimizer.state.values() for value in state.values()]
        assert moments and sum(value.untyped_storage().nbytes() for value in moments) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offload_frees_a_gpu(make_model, make_batch, group_of_one: None) -> None:
    """In bfloat16, where one rank's weights are sharded tensors, too."""
    path, batch = make_model(), with_targets(make_batch([4, 4]))
    train, algorithm, model = TrainConfig(micro_batch_tokens=64), AlgorithmConfig(), ModelConfig(device="cuda")
    kept, moved = (
        CriticEngine(path, CriticConfig(learning_rate=1e-2, offload=offload), train, algorithm, model)
        for offload in (False, True)
    )
    for _ in range(3):
        assert kept.train_step(batch)["critic/loss"] == moved.train_step(batch)["critic/loss"]
        np.testing.assert_array_equal(kept.values(batch), moved.values(batch))
        rows = [local_rows(parameter)[0] for parameter in moved.packed.parameters()]
        assert sum(part.untyped_storage().nbytes() for part in rows) == 0


def test_several_mini_batches_are_as_many_updates(make_model, make_batch) -> None:
    engine = make_critic(make_model(), num_mini_batches=3, num_epochs=2)
    batch = with_targets(make_batch([2, 2, 2]))
    engine.train_step(batch)
    steps = {int(state["step"].item()) for state in engine.optimizer.state.values()}
    assert steps == {6}


def test_a_step_that_is_not_finite_changes_nothing(make_model, make_batch) -> None:
    engine = make_critic(make_model())
    batch = with_targets(make_batch([4]))
    before = [parameter.detach().clone() for parameter in engine.packed.parameters()]
    assert batch.returns is not None
    batch.returns[np.flatnonzero(batch.loss_mask)[0]] = np.nan
    metrics = engine.train_step(batch)
    assert metrics["critic/skipped_steps"] == metrics["critic/nonfinite_losses"] == 1
    assert "critic/loss" not in metrics
    batch.loss_mask[:] = False
    assert engine.train_step(batch)["critic/skipped_steps"] == 1
    for parameter, old in zip(engine.packed.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_the_body_of_a_warm_start_comes_in_and_the_head_stays(make_model, tmp_path: Path) -> None:
    engine = make_critic(make_model("llama"), critic=CriticConfig(offload=True))
    torch.manual_seed(5)
    warm = AutoModelForCausalLM.from_config(engine.model.config.__class__(**engine.model.config.to_dict()))
    warm.save_pretrained(tmp_path / "warm")
    engine.load_body(tmp_path / "warm")
    engine._home.fetch()
    for name, weight in warm.model.named_parameters():
        assert torch.equal(engine.model.get_parameter(f"model.{name}"), weight)
    assert not engine.model.score.weight.any()


def test_what_cannot_be_a_critic(make_model, make_batch, tmp_path: Path) -> None:
    causal = make_model()
    three = save_with_head(causal, tmp_path / "three", AutoModelForSequenceClassification, num_labels=3)
    with pytest.raises(ConfigError, match=r"critic.path=.*three.*tells 3 classes apart"):
        make_critic(three)
    bert = BertConfig(vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    AutoModelForSequenceClassification.from_config(
        bert,
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match=r"critic.path=.*bert"):
        make_critic(tmp_path / "bert")
    engine = make_critic(causal)
    with pytest.raises(EngineError, match=r"the critic needs returns of .* tokens, not none"):
        engine.train_step(make_batch([2]))
    short = dataclasses.replace(with_targets(make_batch([2])), values=np.zeros(1, np.float32))
    with pytest.raises(EngineError, match=r"needs values of .* tokens, not 1"):
        engine.train_step(short)
    bad = with_targets(make_batch([2]))
    bad.input_ids[0] = 31
    with pytest.raises(EngineError, match="outside the vocabulary"):
        engine.values(bad)
