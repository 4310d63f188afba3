"""Runs from beginning to end: PPO with its critic, and a reference that keeps the policy near, in the loss and in the
reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_runs import TINY, read_rows, values
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, Qwen3Config

from areal_x.api.errors import ConfigError
from areal_x.launch.checked import checked_config
from areal_x.launch.compose import ConfigSource
from areal_x.trainer.main import run_session
from areal_x.trainer.models_beside import check_made_model

REWARD = '''
def sevens(prompt, completions, gift=0.0, **kwargs):
    """The share of 7 in a completion, and a gift that the prompt alone decides: its first digit."""
    return completions.count("7") / max(1, len(completions)) + gift * int(prompt[0]) / 9
'''
DECOUPLED = """
from areal_x.api.advantage_api import Advantages
from areal_x.engine.train.advantages import gae


def decoupled(samples):
    policy, critic = gae(samples, gae_lambda=0.9), gae(samples, whiten=False)
    return Advantages(policy.values, critic.returns)
"""
SETTINGS = (
    "reward.fn=sevens.py:sevens",
    "train.batch_size=64",
    "train.warmup_steps=0",
    "train.lr_schedule=constant",
    "rollout.num_slots=64",
    "rollout.max_staleness=0",
    "evaluation.limit=2",
    "checkpoint.every_steps=0",
)


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *overrides: str) -> list[dict[str, Any]]:
    """Rows of the metrics of one run in this process."""
    (folder / "sevens.py").write_text(REWARD)
    monkeypatch.chdir(folder)
    given = [*TINY, *SETTINGS, f"name={name}", *overrides]
    assert run_session("train", checked_config("train", ConfigSource.named("quickstart"), given)) == 0
    return read_rows(folder / "runs" / name / "metrics.jsonl")


def test_ppo_learns_and_its_critic_foretells_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = ("train.learning_rate=3e-3", "critic.learning_rate=1e-2", "train.total_steps=14")
    warm = ("sft.enabled=true", "sft.steps=1", "sft.batch_size=8", "sft.learning_rate=1e-4")
    offload = ("critic.offload=true", "rollout.group_size=1", "reward.kwargs.gift=1")
    rows = run(tmp_path, monkeypatch, "ppo", "algorithm=ppo", *rates, *warm, *offload)
    rewards, explained = values(rows, "reward/mean"), values(rows, "critic/explained_variance")
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.3
    # Zero at first, as the new head is: then it finds what the prompt decides.
    assert abs(explained[0]) < 1e-6 and np.mean(explained[-4:]) > np.mean(explained[:4]) + 0.05
    assert set(values(rows, "critic/skipped_steps")) == {0.0}
    assert min(values(rows, "critic/grad_norm")) > 0 and set(values(rows, "critic/learning_rate")) == {1e-2}


def test_a_function_of_ones_own_has_a_critic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(DECOUPLED)
    rates = ("train.learning_rate=3e-3", "critic.learning_rate=1e-2", "train.total_steps=12")
    own = ("algorithm.advantage=mine.py:decoupled", "critic.enabled=true", "reward.kwargs.gift=1")
    rows = run(tmp_path, monkeypatch, "own", *rates, *own)
    explained = values(rows, "critic/explained_variance")
    assert abs(explained[0]) < 1e-6 and np.mean(explained[-4:]) > np.mean(explained[:4]) + 0.05


def test_a_reference_keeps_the_policy_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ("algorithm=grpo", "train.learning_rate=1e-2", "train.total_steps=9", "reference.offload=true")
    strengths = {
        "free": ("algorithm.kl_coefficient=1e-9",),
        "loss": ("algorithm.kl_coefficient=1",),
        "reward": ("algorithm.kl_coefficient=0.3", "algorithm.kl_in=reward", "algorithm.kl_estimator=k1"),
    }
    found = {}
    for name, own in strengths.items():
        rows = run(tmp_path, monkeypatch, name, *shared, *own)
        found[name] = np.mean(values(rows, "train/reference_kl")[-3:])
    assert found["free"] > 0.3
    assert found["loss"] < 0.5 * found["free"] and found["reward"] < 0.5 * found["free"]


def test_models_that_do_not_fit_are_refused_before_anything_starts(tmp_path: Path) -> None:
    def refused(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            checked_config("train", ConfigSource.named("quickstart"), [*TINY, *overrides])
        return str(caught.value)

    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    decoder = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    kinds = AutoModelForSequenceClassification, AutoModelForCausalLM
    kinds[0].from_config(Qwen3Config(**sizes, **decoder, num_labels=3)).save_pretrained(tmp_path / "three")
    kinds[0].from_config(BertConfig(**sizes, num_attention_heads=2, num_labels=1)).save_pretrained(tmp_path / "bert")
    kinds[1].from_config(Qwen3Config(**sizes, **decoder)).save_pretrained(tmp_path / "other")
    kinds[1].from_config(Qwen3Config(**sizes | {"vocab_size": 24}, **decoder)).save_pretrained(tmp_path / "policy")
    for name, problem in (("none", ""), ("three", "tells 3 classes apart"), ("bert", "no linear head named score")):
        message = refused("algorithm=ppo", f"critic.path={tmp_path}/{name}", "rollout.group_size=1")
        assert message.startswith(f"critic.path={tmp_path}/{name}") and problem in message
    mismatch = ("algorithm=ppo", f"critic.path={tmp_path}/other", f"model.path={tmp_path}/policy")
    assert "20 tokens and the policy" in refused(*mismatch, "model.init=null")
    # A policy that the run makes itself is compared once it is there.
    config = checked_config("train", ConfigSource.named("quickstart"), [*TINY, *mismatch[:2]])
    check_made_model(config, f"{tmp_path}/other")
    with pytest.raises(ConfigError, match=r"critic\.path=.*20 tokens and the policy"):
        check_made_model(config, f"{tmp_path}/policy")
    mismatch = ("algorithm.kl_coefficient=0.1", f"reference.path={tmp_path}/other", f"model.path={tmp_path}/policy")
    assert refused(*mismatch, "model.init=null").startswith(f"reference.path={tmp_path}/other")
    assert "reference.ema_decay" in refused("algorithm.kl_coefficient=0.1", "reference.ema_decay=1.5")
    lora = ("train.lora.rank=4", "algorithm.kl_coefficient=0.1", "sft.enabled=true")
    assert "has not learnt the warm start" in refused(*lora)
    assert "reference.ema_decay=0.5" in refused(*lora[:2], "reference.ema_decay=0.5")
