"""Algorithms, filters, checkpoints and models beside the policy that cannot work: refused by key, value and fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.config import EvaluationSetConfig, ExperimentConfig, RewardPartConfig
from areal_x.api.config_checks import check_config
from areal_x.api.errors import ConfigError
from areal_x.api.filter_checks import FILTERS
from areal_x.launch.objective_functions import built_in_arguments, check_objective_function
from areal_x.rollout.filters import BUILT_IN_FILTERS

SETS = {"gsm8k": EvaluationSetConfig(path="openai/gsm8k")}
RANGE = {"rollout.filter": "reward_range"}
GAE = {"algorithm.advantage": "gae"}
KL = {"algorithm.kl_coefficient": 0.1}
ALONE = {"rollout.group_size": 1}


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    """A configuration that passes."""
    config = ExperimentConfig(name="run", runs_dir=str(tmp_path / "runs"))
    config.data.path = "arithmetic"
    config.model.init = {"tokenizer": "characters", "hidden_size": 32}
    config.evaluation.every_steps = 10
    return config


def assign(config: ExperimentConfig, values: dict[str, Any]) -> None:
    for key, value in values.items():
        *sections, name = key.split(".")
        target: Any = config
        for section in sections:
            target = getattr(target, section)
        assert hasattr(target, name), key
        setattr(target, name, value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # Names.
        ({"algorithm.advantage": "grup"}, "algorithm.advantage=grup: did you mean group?"),
        ({"algorithm.advantage": "mine.py:f"}, "no such file: mine.py"),
        ({"algorithm.policy_loss": "cip"}, "policy_loss=cip: did you mean clip?"),
        ({"algorithm.policy_loss": "mine.py"}, "with the name of what to take"),
        ({"algorithm.correction": "truncated"}, "correction=truncated: must be one of decoupled, icepop, m2po"),
        ({"algorithm.correction": "mine.py:f"}, "no such file: mine.py"),
        ({"algorithm.aggregation": "tokens"}, "did you mean token?"),
        ({"algorithm.kl_estimator": "k4"}, "kl_estimator=k4: must be one of k1, k2, k3"),
        ({"algorithm.kl_in": "advantage"}, "kl_in=advantage: must be one of loss, reward"),
        ({"algorithm.correction": "none", "algorithm.correction_kwargs": {"high": 2}}, "correction=none takes none"),
        # Ranges.
        ({"algorithm.clip_low": -0.1}, "clip_low=-0.1: must be from 0 to 1"),
        ({"algorithm.clip_high": -0.1}, "clip_high=-0.1: must be 0 or more"),
        ({"algorithm.dual_clip": 1.0}, "dual_clip=1.0: bounds"),
        ({"algorithm.dual_clip": float("nan")}, "must be above 1, such as 3"),
        ({"algorithm.dual_clip": 3.0, "algorithm.policy_loss": "gspo"}, "policy_loss=clip, and it is gspo"),
        ({"algorithm.entropy_coefficient": -1.0}, "must be 0 or more"),
        ({"algorithm.kl_coefficient": float("inf")}, "kl_coefficient=inf: must be 0 or more"),
        ({"algorithm.discount": 1.1}, "discount=1.1: must be from 0 to 1"),
        ({"algorithm.gae_lambda": -0.1}, "gae_lambda=-0.1: must be from 0 to 1"),
        ({"algorithm.num_epochs": 0}, "num_epochs=0: must be 1 or more"),
        ({"algorithm.loss_length": 0, "algorithm.aggregation": "constant"}, "loss_length=0: must be 1 or more"),
        ({"algorithm.loss_length": 64}, "is used by algorithm.aggregation=constant, and it is token"),
        # A sample alone in its group.
        (ALONE, "a group of one has no baseline"),
        (ALONE | {"algorithm.baseline": "none"}, "algorithm.scale_by=group_std compares samples of one prompt"),
        (ALONE | {"algorithm.advantage": "raft"}, "algorithm.advantage=raft compares samples"),
        (ALONE | {"algorithm.advantage": "reinforce_pp_baseline"}, "advantage=reinforce_pp_baseline compares"),
        # Models beside the policy.
        ({"critic.offload": True}, "critic.offload=True: is used by algorithm.advantage=gae (algorithm=ppo)"),
        ({"critic.path": "models/value"}, "is used by algorithm.advantage=gae"),
        ({"critic.enabled": True}, "algorithm.advantage=group looks at no values; leave it out"),
        (GAE | {"critic.learning_rate": -1.0}, "critic.learning_rate=-1.0: must be 0 or more"),
        (GAE | {"critic.lr_schedule": "step"}, "critic.lr_schedule=step: must be one of"),
        (GAE | {"critic.clip": 0.0}, "critic.clip=0.0: must be above 0"),
        (GAE | {"critic.policy_starts_after": 100, "train.total_steps": 100}, "the policy would never be trained"),
        (GAE | {"critic.path": "./nope"}, "critic.path=./nope: no such folder"),
        ({"reference.offload": True}, "is used by algorithm.kl_coefficient, which is 0; set it above 0"),
        ({"reference.ema_decay": 0.9}, "is used by algorithm.kl_coefficient"),
        (KL | {"reference.ema_decay": 1.0}, "reference.ema_decay=1.0: must be from 0 to below 1"),
        (KL | {"reference.ema_decay": -0.5}, "must be from 0 to below 1"),
        (KL | {"reference.update_every_steps": 4}, "set reference.ema_decay, too"),
        (KL | {"reference.update_every_steps": 0}, "must be 1 or more"),
        (KL | {"reference.path": "./nope"}, "reference.path=./nope: no such folder"),
        # Filters.
        ({"rollout.filter": "nonzero_varience"}, "rollout.filter=nonzero_varience: did you mean nonzero_variance?"),
        ({"rollout.filter": "mine.py:f"}, "no such file: mine.py"),
        ({"rollout.filter_kwargs": {"low": 0}}, "there is no filter; set rollout.filter"),
        (RANGE, "keeps everything without bounds"),
        (RANGE | {"rollout.filter_kwargs": {"low": "a"}}, "filter_kwargs.low=a: must be a finite number"),
        (RANGE | {"rollout.filter_kwargs": {"low": 0.5, "high": 0.5}}, "low=0.5: rejects everything: it must be below"),
        (RANGE | {"rollout.filter_kwargs": {"low": 0.8, "high": 0.2}}, "rejects everything"),
        (
            RANGE | {"rollout.filter_kwargs": {"low": 1}, "reward.clip": [0.0, 1.0]},
            "low=1: rejects everything: rewards",
        ),
        (RANGE | {"rollout.filter_kwargs": {"high": -1}, "reward.clip": [0.0, 1.0]}, "high=-1: rejects everything"),
        ({"rollout.early_filter": "reward_range"}, "needs bounds"),
        ({"rollout.max_redraws": -1}, "max_redraws=-1: must be 0 or more"),
        ({"train.max_skipped_in_a_row": 0}, "max_skipped_in_a_row=0: must be 1 or more"),
        # Checkpoints.
        ({"checkpoint.every_steps": -1}, "checkpoint.every_steps=-1: must be 0 or more"),
        ({"checkpoint.keep_last": 0}, "checkpoint.keep_last=0: must be 1 or more"),
        ({"checkpoint.keep_best": 0}, "must be 1 or more"),
        ({"checkpoint.export_every_steps": -1}, "must be 0 or more"),
        ({"checkpoint.max_failures_in_a_row": 0}, "must be 1 or more"),
        ({"checkpoint.best_is": "high"}, "did you mean highest?"),
        ({"checkpoint.best_metric": "reward/mean"}, "must be a metric of an evaluation, such as eval/gsm8k/accuracy"),
        ({"checkpoint.best_metric": "eval/gsm8k"}, "must be a metric of an evaluation"),
        ({"checkpoint.best_metric": "eval/a/accuracy", "checkpoint.every_steps": 0}, "no checkpoints are written"),
        ({"checkpoint.best_metric": "eval/a/accuracy", "evaluation.every_steps": 0}, "before and after the run only"),
        ({"checkpoint.best_metric": "eval/gsm/accuracy", "evaluation.sets": SETS}, "=gsm: did you mean gsm8k?"),
        ({"resume": "true"}, "resume=true: did you mean auto?"),
        ({"resume": "Never"}, "resume=Never: did you mean never?"),
        ({"resume": ""}, "must be never, auto, or the directory"),
    ],
)
def test_a_bad_algorithm_is_refused(config: ExperimentConfig, values: dict[str, Any], expected: str) -> None:
    assign(config, values)
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        GAE,
        GAE | ALONE,
        GAE | {"critic.clip": None, "critic.offload": True},
        GAE | {"critic.enabled": True},
        ALONE | {"algorithm.baseline": "none", "algorithm.scale_by": "none"},
        ALONE | {"algorithm.advantage": "reinforce_pp"},
        ALONE | {"algorithm.advantage": "raft", "algorithm.advantage_kwargs": {"threshold": 0.5}},
        KL | {"algorithm.kl_in": "reward"},
        KL | {"reference.ema_decay": 0.0, "reference.update_every_steps": 10},
        {"algorithm.advantage": "package.module:advantage"},
        {"algorithm.aggregation": "constant"},
        {"algorithm.dual_clip": 3.0},
        {"rollout.filter": "nonzero_variance", "rollout.filter_kwargs": {"key": "accuracy"}, "rollout.max_redraws": 0},
        RANGE | {"rollout.filter_kwargs": {"low": 1, "inclusive": True}, "reward.clip": [0.0, 1.0]},
        RANGE | {"rollout.filter_kwargs": {"low": 5, "key": "score"}, "reward.clip": [0.0, 1.0]},
        {"checkpoint.best_metric": "eval/gsm8k/pass@4", "evaluation.sets": SETS},
        {"resume": "auto"},
        {"resume": "runs/mine"},
    ],
)
def test_a_good_algorithm_passes(config: ExperimentConfig, values: dict[str, Any]) -> None:
    assign(config, values)
    check_config(config)


def test_a_filter_looks_at_a_reward_that_is_there(config: ExperimentConfig) -> None:
    config.reward.rewards = {"accuracy": RewardPartConfig(), "format": RewardPartConfig(fn="format")}
    config.rollout.filter = "nonzero_variance"
    for key in ("accuracy", "format", "reward"):
        config.rollout.filter_kwargs = {"key": key}
        check_config(config)
    config.rollout.filter_kwargs = {"key": "acuracy"}
    with pytest.raises(ConfigError, match=r"rollout\.filter_kwargs\.key=acuracy: did you mean accuracy\?"):
        check_config(config)


def test_a_filter_that_rejects_every_group_of_one(config: ExperimentConfig) -> None:
    assign(config, GAE | ALONE | {"rollout.filter": "nonzero_variance"})
    with pytest.raises(ConfigError, match="rejects everything: a sample alone in its group"):
        check_config(config)


def test_filters_have_the_names_that_the_checks_know() -> None:
    assert tuple(BUILT_IN_FILTERS) == FILTERS


def write_model(
    folder: Path, architecture: str = "Qwen3ForCausalLM", size: int = 4, vocabulary: dict[str, int] | None = None
) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], "vocab_size": size}))
    tokenizer = {"model": {"vocab": vocabulary or {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<end>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return str(folder)


@pytest.mark.parametrize(
    "architecture", ["Qwen3ForSequenceClassification", "LlamaForTokenClassification", "BertForMaskedLM", "Qwen3Model"]
)
def test_a_policy_needs_a_head_that_writes(config: ExperimentConfig, tmp_path: Path, architecture: str) -> None:
    config.model.path = write_model(tmp_path / "policy", architecture)
    with pytest.raises(ConfigError, match=rf"model\.path=.*architecture is {architecture}, .*causal language model"):
        check_config(config)


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "Qwen3ForCausalLM", "Mine"])
def test_heads_that_write_pass(config: ExperimentConfig, tmp_path: Path, architecture: str) -> None:
    config.model.path = write_model(tmp_path / "policy", architecture)
    check_config(config)


@pytest.mark.parametrize(("section", "use"), [("reference", KL), ("critic", GAE)])
def test_models_beside_the_policy_read_its_tokens(
    config: ExperimentConfig, tmp_path: Path, section: str, use: dict[str, Any]
) -> None:
    config.model.path = write_model(tmp_path / "policy")
    assign(config, use | {f"{section}.path": write_model(tmp_path / "same")})
    check_config(config)
    assign(config, {f"{section}.path": write_model(tmp_path / "larger", size=5)})
    with pytest.raises(ConfigError, match=rf"{section}\.path=.*it has 5 tokens and the policy .* has 4"):
        check_config(config)
    assign(config, {f"{section}.path": write_model(tmp_path / "other", vocabulary={"a": 1, "b": 0})})
    with pytest.raises(ConfigError, match=rf"{section}\.path=.*its token 'a' is 1, and 0 in the policy"):
        check_config(config)


def test_a_reference_writes_and_a_critic_need_not(config: ExperimentConfig, tmp_path: Path) -> None:
    path = write_model(tmp_path / "value", "Qwen3ForTokenClassification")
    assign(config, GAE | {"critic.path": path})
    check_config(config)
    assign(config, KL | {"reference.path": path})
    with pytest.raises(ConfigError, match=r"reference\.path=.*ForTokenClassification"):
        check_config(config)


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"algorithm.policy_loss_kwargs": {"tau": 1}}, "policy_loss", "clip has no such argument; it takes none"),
        ({"algorithm.policy_loss_kwargs": {"clip_low": 1}}, "policy_loss", "is a field of its own; set algorithm.clip"),
        (
            {"algorithm.policy_loss": "sapo", "algorithm.policy_loss_kwargs": {"tau": 1}},
            "policy_loss",
            "sapo has no such argument; it takes tau_neg, tau_pos",
        ),
        ({"algorithm.correction_kwargs": {"cap": 5}}, "correction", "decoupled has no such argument; it takes high"),
        ({"algorithm.policy_loss": "mine.py:loss"}, "policy_loss", "needs the argument share; set"),
        (
            {"algorithm.correction": "mine.py:weigh", "algorithm.correction_kwargs": {"cap": 5}},
            "correction",
            "it takes low",
        ),
        ({"algorithm.correction": "mine.py:nothing"}, "correction", "nothing"),
    ],
)
def test_functions_of_the_objective_take_their_arguments(
    config: ExperimentConfig,
    values: dict[str, Any],
    field: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mine.py").write_text("def loss(tokens, share):\n    ...\n\ndef weigh(tokens, low=0.5):\n    ...\n")
    monkeypatch.chdir(tmp_path)
    assign(config, values)
    with pytest.raises(ConfigError) as caught:
        check_objective_function(config.algorithm, field)
    assert expected in str(caught.value) and f"algorithm.{field}" in str(caught.value)


def test_arguments_are_those_of_the_functions() -> None:
    import inspect

    from areal_x.engine.train.objective import corrections, losses

    for module, functions in ((losses, losses.LOSSES), (corrections, corrections.CORRECTIONS)):
        found = built_in_arguments(module.__name__.rpartition(".")[2])
        for name, function in functions.items():
            assert found[name] == list(inspect.signature(function).parameters)[1:]
