"""The reference: which weights it has, how it follows the policy, and that offload changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from areal_x.api.config import AlgorithmConfig, LoraConfig, ModelConfig, ReferenceConfig, TrainConfig
from areal_x.api.errors import ConfigError, EngineError
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.moved_tensors import MovedTensors

CPU = ModelConfig(device="cpu")
KL = AlgorithmConfig(kl_coefficient=0.1)


def make_engine(
    path: Path, reference: ReferenceConfig | None = None, algorithm: AlgorithmConfig = KL, **train: object
) -> FSDPEngine:
    settings = TrainConfig(**{"micro_batch_tokens": 64, "learning_rate": 1e-2} | train)  # type: ignore[arg-type]
    return FSDPEngine(path, settings, algorithm, CPU, reference=reference)


def weights_of_reference(engine: FSDPEngine) -> list[torch.Tensor]:
    assert engine.reference is not None
    with engine.reference.weights() as weights:
        return [weight.clone() for weight in weights.values()]


def weights_of_policy(engine: FSDPEngine) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in engine.policy.parameters()]


def is_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_by_default_it_is_the_policy_before_the_first_step(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([4, 4])
    engine = make_engine(path)
    before = engine.logprobs(batch)
    np.testing.assert_array_equal(engine.reference_logprobs(batch), before)
    engine.train_step(batch)
    np.testing.assert_array_equal(engine.reference_logprobs(batch), before)
    assert np.abs(engine.logprobs(batch) - before).max() > 1e-3
    engine.update_reference()
    np.testing.assert_array_equal(engine.reference_logprobs(batch), before)
    assert engine.reference is not None and not engine.reference.has_moved


def test_after_a_warm_start_it_is_the_policy_as_that_left_it(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([4, 4])
    engine, own = make_engine(path), make_engine(path, ReferenceConfig(path=str(path)))
    before = engine.reference_logprobs(batch)
    for each in (engine, own):
        each.sft_step(batch)
        each.reset_optimizer(1e-3, "constant", 0, 10)
    assert is_equal(weights_of_reference(engine), weights_of_policy(engine))
    assert engine.reference is not None and engine.reference.has_moved
    np.testing.assert_array_equal(engine.reference_logprobs(batch), engine.logprobs(batch))
    np.testing.assert_array_equal(own.reference_logprobs(batch), before)


def test_a_mean_of_earlier_policies_by_hand(make_model, make_batch) -> None:
    engine = make_engine(make_model(), ReferenceConfig(ema_decay=0.75))
    expected = weights_of_reference(engine)
    for step in range(3):
        engine.train_step(make_batch([4, 4], seed=step))
        engine.update_reference()
        expected = [old + 0.25 * (new - old) for old, new in zip(expected, weights_of_policy(engine), strict=True)]
        for found, wanted in zip(weights_of_reference(engine), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_a_decay_of_zero_copies_the_policy(make_model, make_batch) -> None:
    engine = make_engine(make_model("gpt2"), ReferenceConfig(ema_decay=0.0))
    engine.train_step(make_batch([4, 4]))
    assert not is_equal(weights_of_reference(engine), weights_of_policy(engine))
    engine.update_reference()
    assert is_equal(weights_of_reference(engine), weights_of_policy(engine))


def test_offload_gives_the_same_bits(make_model, make_batch) -> None:
    path = make_model()
    kept, moved = (make_engine(path, ReferenceConfig(offload=offload, ema_decay=0.5)) for offload in (False, True))
    for step in range(3):
        batch = make_batch([4, 3], seed=step)
        for engine in (kept, moved):
            assert engine.reference is not None and engine.reference.module is not None
            metrics = engine.train_step(batch)
            engine.update_reference()
        assert metrics["train/reference_kl"] >= 0
        np.testing.assert_array_equal(kept.reference_logprobs(batch), moved.reference_logprobs(batch))
        assert moved.reference is not None and moved.reference.module is not None
        assert sum(p.untyped_storage().nbytes() for p in moved.reference.module.parameters()) == 0
    assert is_equal(weights_of_policy(kept), weights_of_policy(moved))
    assert is_equal(weights_of_reference(kept), weights_of_reference(moved))


def test_a_checkpoint_holds_a_reference_that_has_moved(make_model, make_batch, tmp_path: Path) -> None:
    path, batch = make_model(), make_batch([4, 4])
    reference = ReferenceConfig(ema_decay=0.5, offload=True)
    engine = make_engine(path, reference)
    engine.train_step(batch)
    engine.update_reference()
    engine.begin_checkpoint(tmp_path / "state")
    engine.end_checkpoint()
    other = make_engine(path, reference)
    other.restore_checkpoint(tmp_path / "state")
    assert is_equal(weights_of_reference(engine), weights_of_reference(other))
    for each in (engine, other):
        each.train_step(batch)
        each.update_reference()
    assert is_equal(weights_of_reference(engine), weights_of_reference(other))


def test_what_cannot_be_a_reference(make_model, make_batch, tmp_path: Path) -> None:
    path, batch = make_model(), make_batch([2])
    with pytest.raises(ConfigError, match=r"reference\.path=.*nowhere cannot be the reference"):
        make_engine(path, ReferenceConfig(path=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match=r"reference\.ema_decay=0\.5: .* cannot follow .*"):
        make_engine(path, ReferenceConfig(path=str(make_model("llama")), ema_decay=0.5))
    with pytest.raises(EngineError, match="there is no reference model"):
        make_engine(path, algorithm=AlgorithmConfig()).reference_logprobs(batch)
    another = make_engine(path, ReferenceConfig(path=str(make_model("llama"))))
    assert another.facts.num_reference_parameters not in (0, another.facts.num_parameters)
    assert make_engine(path, lora=LoraConfig(rank=2)).facts.num_reference_parameters == 0


def test_tensors_leave_and_come_back_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.arange(10.0), torch.arange(6).view(2, 3)
    view = first[2:5]
    late: list[torch.Tensor] = []
    home = MovedTensors(lambda: [first, view, second, *late], torch.device("cpu"))
    for round_ in range(3):
        home.release()
        home.release()
        assert first.untyped_storage().nbytes() == second.untyped_storage().nbytes() == 0
        home.fetch()
        home.wait()
        assert first.tolist() == [10.0 * round_ + i for i in range(10)]
        assert view.tolist() == first[2:5].tolist() and second.tolist() == [[0, 1, 2], [3, 4, 5]]
        first += 10
        late.append(torch.full((1000,), float(round_)))
        assert [tensor[0].item() for tensor in late] == list(range(round_ + 1))
    nothing = MovedTensors(list, torch.device("cpu"))
    nothing.release()
    nothing.wait()


def test_a_disk_without_room_is_an_error_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", no_room)
    values = torch.ones(4)
    with pytest.raises(EngineError, match=r"offload: .*No space left.*set TMPDIR"):
        MovedTensors(lambda: [values], torch.device("cpu")).release()
    assert values.tolist() == [1.0] * 4


def test_its_model_may_be_another_one(make_model, make_batch) -> None:
    other, batch = make_model("llama"), make_batch([4])
    engine = make_engine(make_model(), ReferenceConfig(path=str(other)))
    expected = FSDPEngine(other, TrainConfig(), AlgorithmConfig(), CPU).logprobs(batch)
    np.testing.assert_allclose(engine.reference_logprobs(batch), expected, atol=1e-6)
    causal = AutoModelForCausalLM.from_pretrained(other)
    assert engine.facts.num_reference_parameters == sum(p.numel() for p in causal.parameters())
