"""Several updates of one batch, and what is computed before the first of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from areal_x.api.config import AlgorithmConfig, ModelConfig, TrainConfig
from areal_x.api.errors import ConfigError, EngineError
from areal_x.api.records import NOT_GENERATED
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.mini_batches import deal_mini_batches


def make_engine(path: Path, seed: int = 0, train: dict[str, object] | None = None, **algorithm: object) -> FSDPEngine:
    options = {"micro_batch_tokens": 64, "learning_rate": 1e-3} | (train or {})
    model = ModelConfig(device="cpu")
    return FSDPEngine(path, TrainConfig(**options), AlgorithmConfig(**algorithm), model, seed=seed)


def weights(engine: FSDPEngine) -> torch.Tensor:
    return torch.cat([tensor.flatten().clone() for _, tensor in engine.named_weights()])


def num_updates(engine: FSDPEngine) -> int:
    return int(next(iter(engine.optimizer.state.values()))["step"])


def test_groups_are_dealt_out_in_an_order_of_seed_step_and_epoch() -> None:
    groups = np.repeat(np.arange(100, 112), 2)

    def dealt(*order_of: int) -> list[list[int]]:
        return [part.tolist() for part in deal_mini_batches(groups, 3, order_of or None)]

    in_order = dealt()
    assert in_order == [list(range(start, start + 8)) for start in (0, 8, 16)]
    orders = [dealt(1, 0, 0), dealt(1, 0, 1), dealt(1, 1, 0), dealt(2, 0, 0), in_order]
    assert all(first != second for i, first in enumerate(orders) for second in orders[:i])
    assert dealt(1, 0, 1) == orders[1]
    for parts in orders:
        assert sorted(itertools.chain(*parts)) == list(range(24)) and [len(part) for part in parts] == [8, 8, 8]
        assert all(len(set(groups[part].tolist())) == 4 for part in parts)
    assert deal_mini_batches(np.zeros(0, np.int64), 3, (0,))[0].tolist() == []


def test_each_epoch_makes_an_update_of_each_mini_batch(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([2, 2, 2, 2])
    engine = make_engine(path, num_mini_batches=3, num_epochs=2)
    stats = engine.train_step(batch)
    assert num_updates(engine) == 6 and stats["train/skipped_steps"] == 0
    assert stats["train/trained_tokens"] == 2 * batch.loss_mask.sum()
    assert stats["train/ratio_mean"] != 1 and engine.optimizer.num_steps == 1
    few = make_engine(path, num_mini_batches=3, num_epochs=2)
    few.train_step(make_batch([3]))
    assert num_updates(few) == 2


def test_the_order_is_of_the_seed(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([1] * 8)
    ends = []
    for seed, shuffle in ((1, True), (1, True), (2, True), (1, False), (2, False)):
        engine = make_engine(path, seed, num_mini_batches=4, shuffle=shuffle)
        engine.train_step(batch)
        ends.append(weights(engine))
    same = [[torch.equal(first, second) for second in ends] for first in ends]
    assert same[0] == [True, True, False, False, False] and same[3] == [False, False, False, True, True]


def test_the_policy_at_the_start_of_the_step_stays_the_anchor(make_model, make_batch) -> None:
    """The second pass compares with the first one's start; a behaviour policy that is the same gives weights of 1."""
    engine = make_engine(make_model(), num_epochs=2, train={"learning_rate": 3e-2})
    batch = make_batch([4, 4])
    batch.logprobs = np.where(batch.loss_mask, engine.logprobs(batch), 0).astype(np.float32)
    stats = engine.train_step(batch)
    assert stats["train/behaviour_weight_max"] == pytest.approx(1.0, abs=1e-5)
    assert stats["train/clip_fraction_low"] + stats["train/clip_fraction_high"] > 0


def test_given_log_probabilities_are_used(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([3, 3])
    engine = make_engine(path, kl_coefficient=0.1)
    own = engine.logprobs(batch)
    batch.proximal = (own - np.log(1.1)).astype(np.float32)
    batch.reference = own.copy()
    stats = engine.train_step(batch)
    assert stats["train/ratio_mean"] == pytest.approx(1.1, abs=1e-4)
    assert stats["train/reference_kl"] == pytest.approx(0, abs=1e-6)


def test_kl_in_the_reward_needs_no_reference_here(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([3, 3])
    engine = make_engine(path, kl_coefficient=0.1, kl_in="reward")
    assert "train/reference_kl" not in engine.train_step(batch)
    batch.reference = engine.logprobs(batch) - np.float32(0.5)
    assert engine.train_step(batch)["train/reference_kl"] == pytest.approx(np.exp(-0.5) - 0.5, abs=1e-4)


@pytest.mark.parametrize("mini_batches", [1, 2])
def test_m2po_masks_over_the_whole_batch(make_model, make_batch, mini_batches: int) -> None:
    path, batch = make_model(), make_batch([3, 3, 3, 3])
    found = []
    for budget in (20, 4096):
        algorithm = {"correction": "m2po", "num_mini_batches": mini_batches}
        engine = make_engine(path, train={"micro_batch_tokens": budget}, **algorithm)
        drift = np.abs(engine.logprobs(batch) - batch.logprobs)[batch.loss_mask].astype(np.float64)
        kept = np.ones(len(drift), bool)
        while (drift[kept] ** 2).mean() > 0.04:
            kept[np.argmax(np.where(kept, drift, -1))] = False
        stats = engine.train_step(batch)
        assert 0.05 < (~kept).mean() < 0.95
        assert stats["train/behaviour_masked_fraction"] == pytest.approx((~kept).mean(), abs=1e-6)
        assert stats["train/behaviour_second_moment"] == pytest.approx((drift**2).mean(), rel=1e-4)
        found.append(weights(engine))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_lag_is_counted_from_the_engine_s_version(make_model, make_batch) -> None:
    engine, batch = make_engine(make_model()), make_batch([3, 3])
    assert engine.train_step(batch)["train/stale_fraction"] == 0
    engine.version = 7
    batch.versions = np.where(batch.loss_mask, 7, NOT_GENERATED).astype(np.int32)
    trained = np.flatnonzero(batch.loss_mask)
    batch.versions[trained[::4]] = 5
    stats = engine.train_step(batch)
    assert stats["train/stale_fraction"] == pytest.approx(len(trained[::4]) / len(trained))
    assert stats["train/mismatch_mean"] != stats["train/behaviour_difference_mean"]
    batch.versions[trained] = 6
    stats = engine.train_step(batch)
    assert stats["train/stale_fraction"] == 1 and not any(name.startswith("train/mismatch") for name in stats)


def test_the_entropy_bonus_raises_entropy(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([4, 4])
    entropies = []
    for coefficient in (0.0, 1.0):
        engine = make_engine(path, entropy_coefficient=coefficient)
        entropies.append([engine.train_step(batch)["train/entropy"] for _ in range(6)])
    assert entropies[0][0] == pytest.approx(entropies[1][0], abs=1e-6)
    assert entropies[1][-1] > entropies[0][-1] + 0.05


def test_metrics_that_change_their_names_are_refused(make_model, make_batch, tmp_path: Path) -> None:
    source = tmp_path / "fickle.py"
    source.write_text(
        "from areal_x.engine.train.objective.tokens import TokenLoss\n"
        "def loss(tokens):\n"
        "    name = f'of_{len(tokens.logprobs)}'\n"
        "    return TokenLoss(-tokens.logprobs, {name: tokens.advantages})\n"
    )
    engine = make_engine(make_model(), train={"micro_batch_tokens": 20}, policy_loss=f"{source}:loss")
    with pytest.raises(EngineError, match="metrics of the loss change from one micro-batch to the next"):
        engine.train_step(make_batch([3, 3]))


def test_a_loss_that_is_not_there_is_told_when_the_engine_is_made(make_model) -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.policy_loss='nothing\.py:loss'"):
        make_engine(make_model(), policy_loss="nothing.py:loss")
