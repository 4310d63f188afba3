"""Adapters on tiny real models: what is trained, what is published, what the reference is, and what is saved."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from areal_x.api.config import AlgorithmConfig, LoraConfig, ModelConfig, ReferenceConfig, TrainConfig
from areal_x.api.errors import ConfigError, EngineError
from areal_x.api.records import TrainBatch
from areal_x.engine.cpu_linear import OneDnnLinear
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.lora import ADAPTER_FOLDER, adapted_layers, adapters_off
from areal_x.engine.transfer.lora import LoraTransport

QWEN_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def make_engine(path: Path, algorithm: AlgorithmConfig | None = None, rank: int = 4, **train: object) -> FSDPEngine:
    lora = LoraConfig(rank=rank, alpha=train.pop("alpha", 8.0), targets=train.pop("targets", []))
    train = {"micro_batch_tokens": 64, "learning_rate": 1e-2, "lora": lora} | train
    return FSDPEngine(path, TrainConfig(**train), algorithm or AlgorithmConfig(), ModelConfig(device="cpu"))


def weights(engine: FSDPEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.named_weights()}


def trained(path: Path, batch: TrainBatch, steps: int = 3, **changes: object) -> FSDPEngine:
    engine = make_engine(path, **changes)
    for _ in range(steps):
        engine.train_step(batch)
    return engine


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2"])
def test_published_weights_are_those_of_peft_s_own_merge(make_model, make_batch, tmp_path, architecture: str) -> None:
    path = make_model(architecture)
    engine = trained(path, make_batch([4, 4]))
    engine.save(tmp_path / "saved")
    base = AutoModelForCausalLM.from_pretrained(path)
    before = {name: tensor.clone() for name, tensor in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, tmp_path / "saved" / ADAPTER_FOLDER).merge_and_unload()
    expected = dict(merged.named_parameters())
    published = weights(engine)
    assert list(published) == list(before)
    changed = set()
    for name, tensor in published.items():
        assert (tensor - expected[name]).abs().max() <= 1e-6, name
        if not torch.equal(tensor, before[name]):
            changed.add(name.removesuffix(".weight").rpartition(".")[2])
    assert changed == (QWEN_LINEAR if architecture != "gpt2" else {"c_attn", "c_proj", "c_fc"})
    assert all(
        torch.equal(tensor, again) for tensor, again in zip(published.values(), weights(engine).values(), strict=True)
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_peft_s_own(make_model, make_batch, checkpointing: bool) -> None:
    """The same adapters on a plain model, with the loss written out, get the same gradients."""
    path, batch = make_model(), make_batch([3])
    engine = make_engine(path, gradient_checkpointing=checkpointing)
    with torch.no_grad():
        for _, layer in adapted_layers(engine.model):
            layer.lora_B["default"].weight.normal_(std=0.1)
    settings = PeftConfig(r=4, lora_alpha=8.0, target_modules=sorted(QWEN_LINEAR))
    plain = get_peft_model(AutoModelForCausalLM.from_pretrained(path), settings)
    plain.load_state_dict(
        {name.replace(".weight", ".default.weight"): tensor for name, tensor in engine.named_adapters()}, strict=False
    )
    loss = torch.zeros(())
    for first, last in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        ids = torch.from_numpy(batch.input_ids[first:last]).long()
        own = torch.log_softmax(plain(input_ids=ids[None]).logits[0, :-1], -1).gather(1, ids[1:, None])[:, 0]
        mask = torch.from_numpy(batch.loss_mask[first + 1 : last])
        loss = loss - own[mask].sum()
    loss.backward()
    expected = {name: tensor.grad for name, tensor in plain.named_parameters() if tensor.grad is not None}
    batch.advantages[:] = 1
    batch.logprobs = np.where(batch.loss_mask, engine.logprobs(batch), 0).astype(np.float32)
    engine.accumulate(batch)
    got = {name: parameter.grad for name, parameter in engine.model.named_parameters() if parameter.grad is not None}
    assert got.keys() == {name.removeprefix("base_model.model.") for name in expected}
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name.removeprefix("base_model.model.")], gradient, rtol=1e-4, atol=1e-5)


def test_only_adapters_are_trained_and_the_loss_falls(make_model, make_batch) -> None:
    engine = make_engine(make_model(), rank=8)
    batch = make_batch([4, 4])
    frozen = {name: p.clone() for name, p in engine.model.named_parameters() if not p.requires_grad}
    assert frozen and not any(".lora_" in name for name in frozen)
    losses = [engine.sft_step(batch)["sft/loss"] for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0]
    now = dict(engine.model.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in frozen.items())
    assert all(now[name].dtype == torch.float32 for name in now if ".lora_" in name)
    assert all(now[name].abs().sum() > 0 for name in now if ".lora_B." in name)


def test_a_fresh_policy_is_the_base_bitwise(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([4])
    engine, base = make_engine(path), make_engine(path, rank=0)
    assert all(torch.equal(a, b) for a, b in zip(weights(engine).values(), weights(base).values(), strict=True))
    np.testing.assert_array_equal(engine.logprobs(batch), base.logprobs(batch))


def test_the_reference_is_the_base_bitwise(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([4, 4])
    engine = trained(path, batch, algorithm=AlgorithmConfig(kl_coefficient=0.1))
    expected = make_engine(path, rank=0).logprobs(batch)
    with adapters_off(engine.model):
        np.testing.assert_array_equal(engine.logprobs(batch), expected)
    assert np.abs(engine.logprobs(batch) - expected).max() > 1e-3
    assert all(parameter.requires_grad for name, parameter in engine.model.named_parameters() if ".lora_" in name)


def test_the_kl_term_is_that_of_a_second_model(make_model, make_batch) -> None:
    path, batch = make_model(), make_batch([4, 4])
    algorithm, train = AlgorithmConfig(kl_coefficient=0.1), TrainConfig(learning_rate=1e-2, lora=LoraConfig(rank=4))
    own = FSDPEngine(path, train, algorithm, ModelConfig(device="cpu"))
    second = FSDPEngine(path, train, algorithm, ModelConfig(device="cpu"), reference=ReferenceConfig(path=str(path)))
    found = [(own.train_step(batch), second.train_step(batch)) for _ in range(4)]
    assert found[0][0]["train/reference_kl"] == 0 < found[-1][0]["train/reference_kl"]
    for ours, theirs in found:
        for name in ("train/reference_kl", "train/loss", "train/grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name


def test_faster_layers_stay_below_the_adapters(make_model) -> None:
    layers = dict(adapted_layers(make_engine(make_model()).model))
    assert len(layers) == 2 * len(QWEN_LINEAR)
    for layer in layers.values():
        assert all(isinstance(part, OneDnnLinear) for part in (layer.base_layer, layer.lora_A["default"]))


def test_saved_and_loaded(make_model, make_batch, tmp_path) -> None:
    path, batch = make_model(), make_batch([4, 4])
    engine = trained(path, batch)
    expected = weights(engine)
    engine.save(tmp_path / "saved")
    merged = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "saved").named_parameters())
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
    again = make_engine(path)
    again.load(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(weights(again).values(), expected.values(), strict=True))
    np.testing.assert_array_equal(again.logprobs(batch), engine.logprobs(batch))
    assert again.train_step(batch)["train/skipped_steps"] == 0
    # Without its adapter, what was saved becomes the base.
    shutil.rmtree(tmp_path / "saved" / ADAPTER_FOLDER)
    again.load(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(weights(again).values(), expected.values(), strict=True))
    with adapters_off(again.model):
        assert np.abs(again.logprobs(batch) - engine.logprobs(batch)).max() < 1e-4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rank": 2}, "train.lora.rank must be what it was trained with"),
        ({"targets": ["q_proj"]}, "train.lora.targets must be what it was trained with"),
    ],
)
def test_another_adapter_does_not_load(make_model, make_batch, tmp_path, changes, expected: str) -> None:
    path = make_model()
    trained(path, make_batch([4])).save(tmp_path / "saved")
    engine = make_engine(path, **changes)
    before = weights(engine)
    with pytest.raises(EngineError, match=expected):
        engine.load(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(weights(engine).values(), before.values(), strict=True))


def test_an_adapter_of_another_base_does_not_load(make_model, make_batch, tmp_path) -> None:
    path = make_model()
    trained(path, make_batch([4])).save(tmp_path / "saved")
    other = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(0.01)
    other.save_pretrained(tmp_path / "other")
    engine = make_engine(tmp_path / "other")
    before = weights(engine)
    with pytest.raises(EngineError, match="is of another base"):
        engine.load(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(weights(engine).values(), before.values(), strict=True))
    (tmp_path / "saved" / ADAPTER_FOLDER / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(EngineError, match="cannot be read"):
        engine.load(tmp_path / "saved")


def test_the_transport_takes_what_the_engine_publishes(make_model, make_batch, tmp_path) -> None:
    engine = trained(make_model(), make_batch([4]), targets=["q_proj", "down_proj"])
    facts = engine.adapter_facts
    assert (facts.rank, facts.alpha, facts.target_modules) == (4, 8.0, ("down_proj", "q_proj"))
    transport = LoraTransport(engine.named_adapters(), facts, directory=tmp_path / "weights")
    transport.write(1, engine.named_adapters())
    folder = Path(transport.load_order()["path"])
    base = AutoModelForCausalLM.from_pretrained(facts.base_model)
    merged = dict(PeftModel.from_pretrained(base, folder).merge_and_unload().named_parameters())
    for name, tensor in engine.named_weights():
        assert (tensor - merged[name]).abs().max() <= 1e-6, name
    transport.close()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_prog"], "train.lora.targets: 'q_prog' is no linear layer of this model .* q_proj"),
        (["lm_head"], "'lm_head' is no linear layer of this model below its output layer"),
        (["q_proj", "embed_tokens"], "'embed_tokens' is no linear layer"),
        (["nothing_like_it_at_all"], "did you mean down_proj, gate_proj, k_proj"),
    ],
)
def test_targets_that_match_nothing_are_refused(make_model, targets: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make_engine(make_model(tied=False), targets=targets)


def test_a_missing_library_names_its_extra_in_programs_too(make_model, monkeypatch) -> None:
    path = make_model()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'areal-x\[lora\]'"):
        make_engine(path)
