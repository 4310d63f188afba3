"""Training of a reward model from beginning to end: pairs, model, steps, held-out accuracy, and what is written."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoConfig, AutoTokenizer

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError
from areal_x.api.records import FloatArray
from areal_x.engine.init_model import init_model
from areal_x.engine.placement import Placement
from areal_x.engine.ranks.rank_group import RankGroup, device_of_rank
from areal_x.engine.reward_model.preference_batch import PreferenceBatch
from areal_x.engine.reward_model.preference_engine import PreferenceEngine
from areal_x.engine.reward_model.preference_loss import held_out_metrics
from areal_x.observe.display import RunDisplay
from areal_x.observe.run_writer import RunWriter
from areal_x.rollout.preferences import Preferences, load_preferences
from areal_x.trainer.given import Given
from areal_x.trainer.open_run import open_files
from areal_x.trainer.preference_data import EncodedPairs, encode_pairs, ensure_padding
from areal_x.trainer.ranks import RANK_LOGS
from areal_x.trainer.trainer_thread import TrainerThread

__all__ = ["RankedPreferences", "Trainee", "run_reward_training"]

ROLE = "preferences"
FACTORY = "areal_x.engine.reward_model.preference_engine:make_preference_engine"
PRINTED_STEPS = 10
SHOWN = ("loss", "accuracy", "margin")
OUTPUT = "reward_model"


class Trainee(Protocol):
    """A reward model that is trained, here or on ranks; see ``PreferenceEngine``."""

    def train_step(self, batch: PreferenceBatch) -> dict[str, float]: ...

    def scores(self, batch: PreferenceBatch) -> FloatArray: ...

    def save(self, path: Path) -> None: ...


class RankedPreferences:
    """A ``PreferenceEngine`` on each rank, which all do the same calls; what the first one says is of all."""

    def __init__(self, group: RankGroup, arguments: dict[str, Any]) -> None:
        self._group = group
        model = arguments["model"]
        own = dataclasses.replace(model, device=device_of_rank(model.device))
        group.build(ROLE, FACTORY, arguments | {"model": own})

    def train_step(self, batch: PreferenceBatch) -> dict[str, float]:
        metrics: dict[str, float] = self._group.call(ROLE, "train_step", batch)[0]
        return metrics

    def scores(self, batch: PreferenceBatch) -> FloatArray:
        scores: FloatArray = self._group.call(ROLE, "scores", batch)[0]
        return scores

    def save(self, path: Path) -> None:
        self._group.call(ROLE, "save", path)


async def run_reward_training(config: ExperimentConfig, given: Given) -> None:
    """Train a reward model on the pairs of ``preferences``; writes it with its tokenizer."""
    thread = TrainerThread()
    preferences = await thread.call(load_preferences, config)
    with contextlib.ExitStack() as stack:
        async with open_files(config, config.preferences.steps, thread) as (directory, writer, display):
            display.phase("loading the model")
            path = await thread.call(_base_model, config, directory, preferences)
            tokenizer = await thread.call(_load_tokenizer, config, path)
            train, held_out = await thread.call(_encode, config, preferences, tokenizer, path)
            _tell_data(display, preferences, train, held_out)
            padding = ensure_padding(tokenizer, [train, held_out])
            arguments = _engine_arguments(config, path, tokenizer, padding)
            model = await thread.call(_start, config, given.placement, directory, arguments, stack)
            run = _Run(config, thread, writer, display, model, held_out)
            before = await run.measure(0)
            await run.train(train)
            after = await run.measure(config.preferences.steps)
            await thread.call(model.save, directory / OUTPUT)
            tokenizer.save_pretrained(directory / OUTPUT)
            run.write_scores(directory / "held_out_scores.jsonl")
    for name in ("accuracy", "loss"):
        print(f"held-out {name:<10} {before[f'rm/held_out_{name}']:.3f} -> {after[f'rm/held_out_{name}']:.3f}")
    print(f"wrote {directory / OUTPUT}; use it with reward_model.path={directory / OUTPUT}")


def _base_model(config: ExperimentConfig, directory: Path, preferences: Preferences) -> str:
    """``model.path``, or a new model whose tokenizer is made from the pairs."""
    if config.model.path is not None:
        return config.model.path
    options = config.model.init or {}
    return str(init_model(directory / "initial_model", texts=_texts(preferences), seed=config.seed, **options))


def _texts(preferences: Preferences) -> Iterator[str]:
    for pair in itertools.chain(preferences.train, preferences.held_out):
        for part in (pair.prompt, pair.chosen, pair.rejected):
            if isinstance(part, str):
                yield part
            else:
                yield from (str(message["content"]) for message in part)


def _load_tokenizer(config: ExperimentConfig, path: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.path={path}: its tokenizer could not be loaded: {reason}") from error


def _encode(
    config: ExperimentConfig, preferences: Preferences, tokenizer: Any, path: str
) -> tuple[EncodedPairs, EncodedPairs]:
    known = AutoConfig.from_pretrained(path, trust_remote_code=config.model.trust_remote_code)
    positions = getattr(known, "max_position_embeddings", None) or config.preferences.max_length
    train, held_out = (
        encode_pairs(
            pairs,
            tokenizer,
            chat_template=config.preferences.chat_template,
            max_length=min(config.preferences.max_length, positions),
            left_out=preferences.left_out,
        )
        for pairs in (preferences.train, preferences.held_out)
    )
    return train, held_out


def _tell_data(display: RunDisplay, preferences: Preferences, train: EncodedPairs, held_out: EncodedPairs) -> None:
    display.print(f"{len(train)} pairs to train on, {len(held_out)} held out")
    for reason, count in sorted(preferences.left_out.items()):
        display.print(f"{count} pairs left out: {reason}")


def _engine_arguments(config: ExperimentConfig, path: str, tokenizer: Any, pad_token_id: int) -> dict[str, Any]:
    return {
        "path": path,
        "train": config.train,
        "preferences": config.preferences,
        "model": config.model,
        "pad_token_id": pad_token_id,
        "num_tokens": len(tokenizer),
        "seed": config.seed,
    }


def _start(
    config: ExperimentConfig,
    placement: Placement,
    directory: Path,
    arguments: dict[str, Any],
    stack: contextlib.ExitStack,
) -> Trainee:
    """The reward model, in this process or on the ranks of ``train.num_ranks``, which end with ``stack``."""
    group = placement.start_ranks(config.train, config.model.device, directory / RANK_LOGS)
    if group is None:
        return PreferenceEngine(**arguments)
    stack.callback(group.close)
    return RankedPreferences(group, arguments)


class _Run:
    """The steps, and measuring on held-out pairs."""

    def __init__(
        self,
        config: ExperimentConfig,
        thread: TrainerThread,
        writer: RunWriter,
        display: RunDisplay,
        model: Trainee,
        held_out: EncodedPairs,
    ) -> None:
        self._config, self._thread, self._writer, self._display = config, thread, writer, display
        self._model, self._held_out = model, held_out
        self._batch = held_out.first(config.evaluation.limit)
        self._scores: FloatArray | None = None

    async def train(self, pairs: EncodedPairs) -> None:
        """All steps, with held-out accuracy every ``evaluation.every_steps``."""
        preferences, every = self._config.preferences, self._config.evaluation.every_steps
        printed = max(1, preferences.steps // PRINTED_STEPS)
        batches = pairs.batches(preferences.batch_size, self._config.seed)
        for step, batch in enumerate(itertools.islice(batches, preferences.steps), start=1):
            metrics = await self._thread.call(self._model.train_step, batch)
            self._writer.write_step({"step": step, **metrics})
            if step % printed == 0:
                shown = [f"{name} {metrics[f'rm/{name}']:.3f}" for name in SHOWN if f"rm/{name}" in metrics]
                self._display.print(f"step {step}/{preferences.steps}: {', '.join(shown) or 'skipped: not finite'}")
            if every and step % every == 0 and step < preferences.steps:
                await self.measure(step)

    async def measure(self, step: int) -> dict[str, float]:
        """Metrics of the held-out pairs, written and shown."""
        self._scores = await self._thread.call(self._model.scores, self._batch)
        metrics = held_out_metrics(self._scores, self._batch.lengths)
        self._writer.write_step({"step": step, **metrics})
        self._display.print(
            f"step {step}: held-out accuracy {metrics['rm/held_out_accuracy']:.3f}, loss "
            f"{metrics['rm/held_out_loss']:.4f} on {len(self._batch)} pairs"
        )
        return metrics

    def write_scores(self, path: Path) -> None:
        """One line for each held-out pair, the most wrongly judged first, for a look at what the model likes."""
        assert self._scores is not None
        scores, lengths = self._scores.reshape(-1, 2), self._batch.lengths.reshape(-1, 2)
        with path.open("w", encoding="utf-8") as file:
            for index in (scores[:, 0] - scores[:, 1]).argsort(kind="stable"):
                pair = self._held_out.pairs[index]
                record = {
                    "place": pair.place,
                    "prompt": pair.prompt,
                    "chosen": pair.chosen,
                    "rejected": pair.rejected,
                    "chosen_score": float(scores[index, 0]),
                    "rejected_score": float(scores[index, 1]),
                    "chosen_tokens": int(lengths[index, 0]),
                    "rejected_tokens": int(lengths[index, 1]),
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
