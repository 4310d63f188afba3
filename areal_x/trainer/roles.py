"""Builds the roles of a run from its configuration, and takes them down again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from areal_x.api.config import ExperimentConfig, SamplingConfig
from areal_x.api.records import IntArray, SamplingParams
from areal_x.api.reward_base import Reward
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.engine.init_model import init_model
from areal_x.engine.ranks.rank_group import RankGroup
from areal_x.engine.servers.text_tokenizer import TextTokenizer
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.ranked_engine import RankedTrainEngine
from areal_x.rollout.dataset import Items, load_dataset_items
from areal_x.rollout.filters import load_group_filter
from areal_x.rollout.finish_group import GroupFilter
from areal_x.trainer.given import Given
from areal_x.trainer.held_out import HeldOut, load_held_out
from areal_x.workflow.build import build_workflow
from areal_x.workflow.texts import text_decoder

__all__ = [
    "Data",
    "PolicyEngine",
    "load_data",
    "load_early_filter",
    "load_filter",
    "load_supervised",
    "load_tokenizer",
    "make_train_engine",
    "make_workflow",
    "prepare_model",
    "sampling_params",
    "token_texts",
]

PolicyEngine = FSDPEngine | RankedTrainEngine
"""What trains, here or on ranks."""


@dataclass(frozen=True)
class Data:
    """Training items, and held-out sets (there may be none)."""

    train: Items
    held_out: list[HeldOut]


def load_data(config: ExperimentConfig) -> Data:
    """Read all data before anything heavy starts, so that a bad line costs no minutes."""
    train = load_dataset_items(config.data, "train")
    return Data(train, load_held_out(config))


def load_supervised(config: ExperimentConfig, data: Data) -> Items:
    """Items of the warm start: ``sft.path``, or the training items."""
    if config.sft.path is None:
        return data.train
    data_config = dataclasses.replace(config.data, path=config.sft.path, name=None)
    return load_dataset_items(data_config, "train", columns=[config.sft.completion_key])


def prepare_model(config: ExperimentConfig, run_dir: Path, data: Data) -> str:
    """The model to load: ``model.path``, or a new one made by ``model.init`` from the run's own data and seed."""
    if config.model.path is not None:
        return config.model.path
    options = config.model.init or {}
    texts = (value for item in data.train for value in item.values() if isinstance(value, str))
    return str(init_model(run_dir / "initial_model", texts=texts, seed=config.seed, **options))


def load_tokenizer(config: ExperimentConfig, model_path: str | None) -> Any:
    """The tokenizer beside the model; for an endpoint, which takes text, one whose ids are bytes."""
    if config.rollout.engine == "openai":
        return TextTokenizer()
    return AutoTokenizer.from_pretrained(model_path, trust_remote_code=config.model.trust_remote_code)


def sampling_params(sampling: SamplingConfig) -> SamplingParams:
    """The record that travels with each request."""
    return SamplingParams(
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
    )


def make_workflow(
    config: ExperimentConfig, tokenizer: Any, reward: Reward, sampling: SamplingConfig, given: Given | None = None
) -> RolloutWorkflow:
    """The given or configured workflow with its own sampling parameters; an instance that is given is used as it is."""
    own = None if given is None else given.workflow
    if isinstance(own, RolloutWorkflow):
        return own
    available = {
        "reward_fn": reward,
        "tokenizer": tokenizer,
        "sampling": sampling_params(sampling),
        "prompt_key": config.data.prompt_key,
        "system_prompt": config.data.system_prompt,
        "chat_template": config.data.chat_template,
    }
    return build_workflow(own or config.workflow.path, available, config.workflow.kwargs)


def make_train_engine(config: ExperimentConfig, model_path: str, ranks: RankGroup | None = None) -> PolicyEngine:
    """The policy to train, in this process or on ``ranks``. Its log-probabilities are those of the temperature that
    samples are drawn at."""
    sampling = config.rollout.sampling
    length = config.algorithm.loss_length
    algorithm = dataclasses.replace(config.algorithm, loss_length=sampling.max_new_tokens if length is None else length)
    arguments = (model_path, config.train, algorithm, config.model)
    options: dict[str, Any] = {
        "temperature": sampling.temperature,
        "reference": config.reference,
        "seed": config.seed,
    }
    if ranks is None:
        return FSDPEngine(*arguments, **options)
    return RankedTrainEngine(ranks, *arguments, **options)


def load_filter(config: ExperimentConfig, given: Given | None = None) -> GroupFilter | None:
    """The filter of complete groups, if any."""
    rollout = config.rollout
    if given is not None and given.group_filter is not None:
        return given.group_filter
    if rollout.filter is None:
        return None
    return load_group_filter(rollout.filter, rollout.filter_kwargs, "rollout.filter")


def load_early_filter(config: ExperimentConfig) -> GroupFilter | None:
    """The filter of groups that reward models have not scored yet, if any."""
    name = config.rollout.early_filter
    return None if name is None else load_group_filter(name, {}, "rollout.early_filter")


def token_texts(tokenizer: Any) -> Callable[[IntArray], list[str]]:
    """A function that gives the text of each token of a sequence."""
    text_of = text_decoder(tokenizer)

    def decode(ids: IntArray) -> list[str]:
        return [str(text_of([token])) for token in ids.tolist()]

    return decode
