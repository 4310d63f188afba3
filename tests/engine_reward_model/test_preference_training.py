"""Training of a reward model, against transformers' own forward pass over one sequence at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from preference_models import MODEL, PAD, VOCABULARY, make_engine, random_pairs, save_causal, save_reward_model
from transformers import AutoModelForSequenceClassification

from areal_x.api.errors import ConfigError, EngineError
from areal_x.engine.reward_model.preference_batch import PreferenceBatch, deal_pairs, join_pairs, plan_pairs
from areal_x.engine.reward_model.preference_loss import held_out_metrics, preference_loss


def naive_scores(path: Path, batch: PreferenceBatch) -> tuple[torch.Tensor, torch.nn.Module]:
    """One forward pass of transformers' own model for each sequence, without packing, padding or shared prefixes."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    starts = np.cumsum(batch.lengths) - batch.lengths
    sequences = [
        torch.from_numpy(batch.input_ids[start : start + length].astype(np.int64))[None]
        for start, length in zip(starts, batch.lengths, strict=True)
    ]
    return torch.stack([model(input_ids=ids).logits[0, 0] for ids in sequences]), model


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("budget", [4096, 60])
def test_loss_and_gradients_equal_a_naive_unpacked_implementation(
    architecture: str, budget: int, tmp_path: Path
) -> None:
    path = save_reward_model(tmp_path / "model", architecture)
    batch = random_pairs(9, seed=1)
    scores, naive = naive_scores(path, batch)
    chosen, rejected = scores.view(-1, 2).unbind(1)
    expected = -torch.log(torch.sigmoid(chosen - rejected)).mean()
    expected.backward()
    engine = make_engine(path, budget=budget)
    plan = plan_pairs(batch, budget)
    assert (len(plan) > 1) == (budget == 60)
    losses = [preference_loss(engine.packed(planned.micro_batch))[0] for planned in plan]
    loss = sum(losses) / len(batch)
    loss.backward()
    assert abs((loss - expected).item()) <= 1e-6
    gradients = {name: parameter.grad for name, parameter in engine.model.named_parameters()}
    for name, parameter in naive.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(engine.scores(batch), scores.detach().numpy(), atol=2e-6)


def test_an_answer_that_begins_like_the_other_is_scored_at_its_own_end(tmp_path: Path) -> None:
    path = save_reward_model(tmp_path / "model", "qwen3")
    batch = join_pairs(
        [
            (np.array([5, 6, 7], np.int32), np.array([5, 6, 7, 8], np.int32)),
            (np.array([5, 9], np.int32), np.array([5], np.int32)),
            (np.array([3, 4], np.int32), np.array([5, 6], np.int32)),
        ]
    )
    assert batch.pair_costs().tolist() == [4, 2, 4]
    expected, _ = naive_scores(path, batch)
    np.testing.assert_allclose(make_engine(path).scores(batch), expected.detach().numpy(), atol=2e-6)


def test_pairs_are_dealt_evenly_and_stay_whole() -> None:
    costs = np.random.default_rng(0).integers(10, 100, 50)
    for num_parts in (1, 2, 3):
        dealt = deal_pairs(costs, 300, num_parts)
        assert len({len(bins) for bins in dealt}) == 1
        assert sorted(np.concatenate([pairs for bins in dealt for pairs in bins])) == list(range(50))
        loads = [costs[pairs].sum() for bins in dealt for pairs in bins]
        assert max(loads) <= 300 and max(loads) <= 1.1 * np.mean(loads)
    assert [len(bins) for bins in deal_pairs(np.array([7]), 300, 4)] == [1, 1, 1, 1]
    assert [[len(pairs) for pairs in bins] for bins in deal_pairs(np.array([900, 900]), 300, 1)] == [[1, 1]]


def test_a_new_head_is_the_same_for_one_seed_and_scores_begin_near_even(tmp_path: Path) -> None:
    path = save_causal(tmp_path / "model", "qwen3")
    first, again, other = (make_engine(path, seed=seed) for seed in (1, 1, 2))
    batch = random_pairs(40, seed=0)
    assert np.array_equal(first.scores(batch), again.scores(batch))
    assert not np.array_equal(first.scores(batch), other.scores(batch))
    assert 0.1 < first.scores(batch).std() < 3
    assert first.model.config.num_labels == 1 and first.model.config.pad_token_id == PAD


def test_accuracy_rises_on_pairs_that_can_be_learnt(tmp_path: Path) -> None:
    """The chosen answer holds a token that the rejected one does not, at any place."""
    engine = make_engine(save_causal(tmp_path / "model", "qwen3"), steps=60, learning_rate=5e-3)
    held_out = random_pairs(200, seed=99, learnable=True)
    before = held_out_metrics(engine.scores(held_out), held_out.lengths)
    steps = [engine.train_step(random_pairs(32, seed=seed, learnable=True)) for seed in range(60)]
    after = held_out_metrics(engine.scores(held_out), held_out.lengths)
    assert before["rm/held_out_accuracy"] < 0.75
    assert after["rm/held_out_accuracy"] >= 0.9
    assert steps[-1]["rm/loss"] < 0.3 and steps[-1]["rm/margin"] > 1
    assert steps[-1]["rm/computed_tokens"] < steps[-1]["rm/tokens"]
    assert steps[0]["rm/learning_rate"] < steps[1]["rm/learning_rate"] > steps[-1]["rm/learning_rate"]


def test_the_saved_model_scores_as_transformers_does(tmp_path: Path) -> None:
    """Padded to one batch, too: transformers then looks for the padding's id to find each last token."""
    engine = make_engine(save_causal(tmp_path / "model", "qwen3"))
    batch = random_pairs(6, seed=3)
    engine.train_step(batch)
    scores = engine.scores(batch)
    engine.save(tmp_path / "saved")
    alone, model = naive_scores(tmp_path / "saved", batch)
    np.testing.assert_allclose(scores, alone.detach().numpy(), atol=2e-6)
    padded = torch.full((len(batch.lengths), int(batch.lengths.max())), PAD)
    starts = np.cumsum(batch.lengths) - batch.lengths
    for row, (start, length) in enumerate(zip(starts, batch.lengths, strict=True)):
        padded[row, :length] = torch.from_numpy(batch.input_ids[start : start + length].astype(np.int64))
    together = model(input_ids=padded, attention_mask=(padded != PAD).long()).logits[:, 0]
    np.testing.assert_allclose(scores, together.detach().numpy(), atol=2e-6)
    again = make_engine(tmp_path / "saved", seed=5)
    np.testing.assert_array_equal(again.scores(batch), scores)


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    engine = make_engine(save_causal(tmp_path / "model", "qwen3"))
    batch = random_pairs(4, seed=0)
    with torch.no_grad():
        kept = engine.model.score.weight.clone()
        engine.model.score.weight[0, 0] = math.inf
    broken = {name: value.clone() for name, value in engine.model.named_parameters()}
    metrics = engine.train_step(batch)
    assert metrics["rm/skipped_steps"] == 1 and "rm/loss" not in metrics
    assert all(torch.equal(value, broken[name]) for name, value in engine.model.named_parameters())
    with torch.no_grad():
        engine.model.score.weight.copy_(kept)
    assert engine.train_step(batch)["rm/skipped_steps"] == 0


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("mixed_precision", ["float32", "bfloat16"])
def test_a_growing_vocabulary_gets_rows(mixed_precision: str, tmp_path: Path) -> None:
    """One rank loads alike, whatever it computes in."""
    path = save_causal(tmp_path / "model", "qwen3")
    grown = {"num_tokens": VOCABULARY + 1, "pad_token_id": VOCABULARY}
    engine = make_engine(path, mixed_precision=mixed_precision, **grown)
    assert np.isfinite(engine.train_step(random_pairs(4, seed=0))["rm/grad_norm"])
    assert engine.model.get_input_embeddings().weight.shape[0] == VOCABULARY + 1
    engine.save(tmp_path / "saved")
    assert make_engine(tmp_path / "saved").model.config.vocab_size == VOCABULARY + 1


def test_models_with_another_head_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tells 3 classes apart"):
        make_engine(save_reward_model(tmp_path / "three", "qwen3", num_labels=3))
    with pytest.raises(ConfigError, match=r"no linear head named score|causal language model"):
        make_engine(save_reward_model(tmp_path / "bert", "bert"))
    with pytest.raises(ConfigError, match="does not load"):
        make_engine(tmp_path / "nothing")


def test_bad_batches_are_refused(tmp_path: Path) -> None:
    engine = make_engine(save_causal(tmp_path / "model", "qwen3"))
    ids = np.array([1, 2, 3, 4], np.int32)
    with pytest.raises(EngineError, match="each pair is two sequences"):
        engine.train_step(PreferenceBatch(ids, np.array([2, 1, 1], np.int32)))
    with pytest.raises(EngineError, match="sequence 1 is empty"):
        engine.train_step(PreferenceBatch(ids, np.array([4, 0], np.int32)))
    with pytest.raises(EngineError, match="tokenizer is another model's"):
        engine.scores(PreferenceBatch(ids + VOCABULARY, np.array([2, 2], np.int32)))


def test_held_out_metrics_see_length() -> None:
    scores = np.array([2, 1, 0, 3, 5, 5], np.float32)
    metrics = held_out_metrics(scores, np.array([4, 6, 8, 2, 3, 3], np.int32))
    assert metrics["rm/held_out_accuracy"] == pytest.approx(0.5)
    assert metrics["rm/longer_chosen"] == 0.5 and metrics["rm/longer_preferred"] == 0.0
    assert metrics["rm/held_out_loss"] == pytest.approx(np.mean([np.log1p(np.exp(-1)), np.log1p(np.exp(3)), np.log(2)]))
    assert MODEL.device == "cpu"
