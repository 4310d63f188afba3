"""Two ranks train as one does, and neither ever holds the whole model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_probes import measured_policy
from transformers import AutoModelForCausalLM, BloomConfig, Qwen3Config

from areal_x.api.config import AlgorithmConfig, LoraConfig, ModelConfig, TrainConfig
from areal_x.api.engine_api import TrainEngine
from areal_x.api.errors import ConfigError, EngineError
from areal_x.engine.ranks.local_ranks import LocalRanks
from areal_x.engine.ranks.rank_context import ONE_RANK
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.ranked_engine import RankedTrainEngine

HUB_NAME = "someone/tiny"
SAME_ON_ANY_NUMBER_OF_RANKS = (
    "loss",
    "policy_loss",
    "grad_norm",
    "sequence_ratio_mean",
    "sequence_ratio_max",
    "behaviour_masked_fraction",
    "behaviour_second_moment",
    "stale_fraction",
    "stale_weight_mean",
    "mismatch_mean",
    "mismatch_max",
    "own_mean",
    "reference_kl",
    "entropy",
    "ratio_mean",
    "behaviour_weight_max",
    "clip_fraction_low",
    "trained_tokens",
    "batch_tokens",
    "skipped_steps",
    "learning_rate",
)


OWN_LOSS = """
from areal_x.engine.train.objective.tokens import TokenLoss

def loss(tokens):
    mean = tokens.sequence_mean(tokens.logprobs)
    return TokenLoss(-tokens.advantages * tokens.logprobs - 0.1 * mean * tokens.logprobs, {"own_mean": mean})
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def ranks(hub: Path) -> Iterator[LocalRanks]:
    with pytest.MonkeyPatch.context() as patch:
        here = str(Path(__file__).parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("HF_HUB_CACHE", str(hub))
        patch.setenv("HF_HUB_OFFLINE", "1")
        group = LocalRanks(2, timeout_seconds=400)
    try:
        yield group
    finally:
        group.close()


def settings(
    path: Path | str, algorithm: AlgorithmConfig | None = None, **train: object
) -> tuple[Path | str, TrainConfig, AlgorithmConfig, ModelConfig]:
    # Adam divides by the gradient's size: where that is rounding alone, a whole step of this rate may differ.
    options = {"micro_batch_tokens": 64, "learning_rate": 2e-4} | train
    return path, TrainConfig(**options), algorithm or AlgorithmConfig(), ModelConfig(device="cpu")


def keywords(path: Path | str, **train: object) -> dict[str, object]:
    return dict(zip(("model_path", "train", "algorithm", "model"), settings(path, **train), strict=True))


def weights(engine: TrainEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.named_weights()}


def difference(engine: TrainEngine, other: TrainEngine) -> float:
    ours, theirs = weights(engine), weights(other)
    assert list(ours) == list(theirs)
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def assert_same_metrics(found: dict[str, float], expected: dict[str, float], tolerance: float = 1e-5) -> None:
    for name in (f"train/{name}" for name in SAME_ON_ANY_NUMBER_OF_RANKS):
        assert (name in found) == (name in expected), name
        assert found.get(name, 0.0) == pytest.approx(expected.get(name, 0.0), rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize(
    ("architecture", "tied", "algorithm", "train"),
    [
        ("qwen3", True, AlgorithmConfig(kl_coefficient=0.1), {}),
        ("qwen3-sliding", False, AlgorithmConfig(num_mini_batches=3), {"weight_decay": 0.1}),
        ("llama", False, AlgorithmConfig(), {"gradient_checkpointing": True}),
        ("gemma2", True, AlgorithmConfig(kl_coefficient=0.1, num_mini_batches=2), {"max_grad_norm": 0.1}),
        ("qwen3", True, AlgorithmConfig(policy_loss="gspo", aggregation="sequence", num_epochs=2), {}),
        ("qwen3", True, AlgorithmConfig(correction="m2po", entropy_coefficient=0.05), {}),
        (
            "llama",
            True,
            AlgorithmConfig(aggregation="constant", loss_length=7, correction="sequence_mask", policy_loss="OWN"),
            {},
        ),
        (
            "qwen3",
            True,
            AlgorithmConfig(kl_coefficient=0.1, kl_estimator="k2", num_mini_batches=2, num_epochs=2),
            {"lora": LoraConfig(rank=2)},
        ),
    ],
)
def test_two_ranks_are_one(
    ranks: LocalRanks,
    make_model,
    make_batch,
    tmp_path: Path,
    architecture: str,
    tied: bool,
    algorithm: AlgorithmConfig,
    train: dict,
) -> None:
    path = make_model(architecture, tied)
    if algorithm.policy_loss == "OWN":
        (tmp_path / "own_loss.py").write_text(OWN_LOSS)
        algorithm = dataclasses.replace(algorithm, policy_loss=f"{tmp_path}/own_loss.py:loss")
    one, two = (
        FSDPEngine(*settings(path, algorithm, **train)),
        RankedTrainEngine(ranks, *settings(path, algorithm, **train)),
    )
    assert one.facts == two.facts
    assert difference(one, two) == 0
    for seed, groups in enumerate(([4, 3, 1, 5], [1, 7], [2, 2, 2])):
        batch = make_batch(groups, seed=seed)
        batch.versions = np.arange(len(batch.input_ids), dtype=np.int32) % 3
        one.version = two.version = 2
        assert_same_metrics(two.train_step(batch), one.train_step(batch))
    assert difference(one, two) <= 1e-5
    np.testing.assert_allclose(two.logprobs(batch), one.logprobs(batch), atol=1e-5)
    assert difference(one, FSDPEngine(*settings(path))) > 3e-4


def test_steps_in_parts_and_the_warm_start_are_the_same(ranks: LocalRanks, make_model, make_batch) -> None:
    path = make_model()
    one, two = FSDPEngine(*settings(path)), RankedTrainEngine(ranks, *settings(path))
    for engine in (one, two):
        engine.accumulate(make_batch([9], seed=5))
        engine.discard()
        for seed in range(3):
            engine.accumulate(make_batch([1, 2], seed=seed))
    assert_same_metrics(two.apply(), one.apply())
    supervised, also = (engine.sft_step(make_batch([3])) for engine in (one, two))
    assert also["sft/loss"] == pytest.approx(supervised["sft/loss"], abs=1e-5)
    assert also["sft/tokens"] == supervised["sft/tokens"]
    assert difference(one, two) <= 1e-5


def test_a_rank_without_work_keeps_step(ranks: LocalRanks, make_model, make_batch) -> None:
    """One sequence for two ranks; then nothing to train at all."""
    path = make_model()
    one, two = FSDPEngine(*settings(path)), RankedTrainEngine(ranks, *settings(path))
    single, masked = make_batch([1]), make_batch([3])
    masked.loss_mask[:] = False
    for batch in (single, masked, make_batch([2])):
        assert_same_metrics(two.train_step(batch), one.train_step(batch))
    assert difference(one, two) <= 1e-5


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(ranks: LocalRanks, make_model, make_batch) -> None:
    path = make_model()
    fresh, two = FSDPEngine(*settings(path)), RankedTrainEngine(ranks, *settings(path))
    batch = make_batch([4, 4])
    # One token of one sequence, which only one rank has.
    batch.advantages[np.flatnonzero(batch.loss_mask)[-1]] = 3e38
    batch.logprobs[np.flatnonzero(batch.loss_mask)[-1]] = -30.0
    assert two.train_step(batch)["train/skipped_steps"] == 1
    assert difference(fresh, two) == 0
    assert ranks.call("policy", "train_step", make_batch([4, 4]))[1]["train/skipped_steps"] == 0
    fresh.train_step(batch)
    fresh.train_step(make_batch([4, 4]))
    assert difference(FSDPEngine(*settings(path)), two) > 0
    assert difference(fresh, two) <= 1e-5


def test_bad_batches_are_refused_alike_and_ranks_go_on(ranks: LocalRanks, make_model, make_batch) -> None:
    two = RankedTrainEngine(ranks, *settings(make_model()))
    batch = make_batch([2])
    batch.input_ids[0] = 31
    with pytest.raises(EngineError, match="token id 31 lies outside"):
        two.train_step(batch)
    assert two.train_step(make_batch([2]))["train/skipped_steps"] == 0


def test_bfloat16_on_two_ranks_is_near_one(ranks: LocalRanks, make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([4, 4])
    one = FSDPEngine(*settings(path))
    two = RankedTrainEngine(ranks, *settings(path, mixed_precision="bfloat16"))
    assert difference(one, two) == 0
    exact, rounded = one.logprobs(batch), two.logprobs(batch)
    assert 1e-4 < np.abs(exact - rounded).max() < 0.2
    first, second = two.train_step(batch), one.train_step(batch)
    assert first["train/grad_norm"] == pytest.approx(second["train/grad_norm"], rel=0.05)
    assert {tensor.dtype for tensor in weights(two).values()} == {torch.float32}
    assert 0 < difference(one, two) < 6e-4


def test_saved_by_two_ranks_loads_anywhere(ranks: LocalRanks, make_model, make_batch, tmp_path: Path) -> None:
    path, batch = make_model(tied=False), make_batch([3, 3])
    ranks.build("policy", "rank_probes:measured_policy", keywords(path))
    ranks.call("policy", "train_step", batch)
    trained = ranks.call("policy", "logprobs", batch)[0]
    saved = tmp_path / "a" / "saved"
    ranks.call("policy", "save_small_files", saved, 8000)
    files = sorted(file.name for file in saved.iterdir())
    assert "model.safetensors.index.json" in files and sum(name.endswith(".safetensors") for name in files) > 3
    assert all(file.stat().st_size < 16000 for file in saved.glob("*.safetensors"))
    plain = AutoModelForCausalLM.from_pretrained(saved)
    assert plain.config.architectures == ["Qwen3ForCausalLM"]
    one = FSDPEngine(*settings(saved))
    np.testing.assert_allclose(one.logprobs(batch), trained, atol=1e-5)
    assert np.abs(FSDPEngine(*settings(path)).logprobs(batch) - trained).max() > 2e-4
    # Again over what is there, as one file; and back into other ranks.
    ranks.call("policy", "save", saved)
    assert not (saved / "model.safetensors.index.json").exists()
    two = RankedTrainEngine(ranks, *settings(path))
    two.accumulate(batch)
    two.load(saved)
    assert difference(one, two) == 0
    assert two.apply()["train/skipped_steps"] == 1
    with pytest.raises(EngineError, match="nowhere"):
        two.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EngineError, match="could not be written"):
        two.save(tmp_path / "file" / "saved")
    np.testing.assert_allclose(two.logprobs(batch), trained, atol=1e-5)


def test_no_rank_ever_holds_the_whole_model(ranks: LocalRanks, make_batch, tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=31,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "deep")
    whole = sum(parameter.nbytes for parameter in model.parameters())
    ranks.build("policy", "rank_probes:measured_policy", keywords(tmp_path / "deep"))
    for rows in ranks.call("policy", "row_bytes"):
        assert rows <= 0.51 * whole
    for peak in ranks.call("policy", "peak_of_loading"):
        assert rows <= peak < 0.8 * whole
    # Gradients are another half of the model.
    for peak in ranks.call("policy", "peak_of_training", make_batch([2])):
        assert 2 * rows <= peak < 1.4 * whole
    alone = measured_policy(ONE_RANK, **keywords(tmp_path / "deep"))
    assert alone.peak_bytes >= whole


def test_hub_names_are_read_from_the_snapshot(ranks: LocalRanks, hub: Path, make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([2])
    snapshot = hub / f"models--{HUB_NAME.replace('/', '--')}" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    path.rename(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    two = RankedTrainEngine(ranks, *settings(HUB_NAME))
    np.testing.assert_allclose(two.logprobs(batch), FSDPEngine(*settings(snapshot)).logprobs(batch), atol=1e-5)
    with pytest.raises(ConfigError, match="someone/other could not be loaded"):
        RankedTrainEngine(ranks, *settings("someone/other"))


def test_what_cannot_be_trained_is_refused_by_all_ranks_alike(ranks: LocalRanks, make_model, tmp_path: Path) -> None:
    path = make_model()
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has no model\.safetensors"):
        RankedTrainEngine(ranks, *settings(path))
    config = BloomConfig(vocab_size=31, hidden_size=16, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "bloom")
    for make in (
        lambda: FSDPEngine(*settings(tmp_path / "bloom")),
        lambda: RankedTrainEngine(ranks, *settings(tmp_path / "bloom")),
    ):
        with pytest.raises(ConfigError, match="packed"):
            make()
