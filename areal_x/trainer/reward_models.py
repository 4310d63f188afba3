"""The reward models of a run: they take turns on the trainer's devices, between a step's groups and its training.

    step n applied ──▶ fetch (begins) ┄┄ rollout goes on ┄┄▶ step n + 1's groups ──▶ score ──▶ released ──▶ train

Each model renders the conversations in its own tokens, scores all of them at once on every rank, and leaves the device
before the next one comes. A conversation that cannot be scored is an outcome of its sample; a model that cannot score
at all ends the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from areal_x.api.config import ExperimentConfig, RewardModelConfig
from areal_x.api.errors import ConfigError, EngineError
from areal_x.api.records import TURNS, TrajectoryGroup
from areal_x.api.reward_model_checks import local_folder, reward_model_key
from areal_x.api.reward_model_files import RewardModelFiles, read_reward_model_files
from areal_x.api.reward_records import RewardError, RewardOutcome
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.ranks.rank_group import RankGroup, device_of_rank
from areal_x.engine.reward_model.conversations import Conversation, ConversationRenderer
from areal_x.engine.reward_model.rendering import Messages
from areal_x.engine.reward_model.scorer import make_scorer
from areal_x.engine.reward_model.scoring_batch import (
    PartScores,
    ScoringBatch,
    aggregate,
    join_conversations,
    join_scores,
)
from areal_x.trainer.reward_sums import ScoredSample, prompt_of, samples_to_score, sum_outcomes
from areal_x.trainer.trainer_thread import TrainerThread

__all__ = ["LoopModel", "RewardModels", "Scorers", "read_reward_models"]


class Scorers(Protocol):
    """One reward model on all ranks. Calls block."""

    def fetch(self) -> None:
        """Begin to bring the weights to the devices."""
        ...

    def score(self, batch: ScoringBatch) -> list[PartScores]:
        """What each rank scored of a batch; the weights have left the devices."""
        ...

    def release(self) -> None:
        """Free the devices without a score."""
        ...


class _InProcess:
    """A scorer of this process, with one rank."""

    def __init__(self, **arguments: object) -> None:
        self._scorer = make_scorer(RankContext(), **arguments)  # type: ignore[arg-type]

    def fetch(self) -> None:
        self._scorer.fetch()

    def score(self, batch: ScoringBatch) -> list[PartScores]:
        return [self._scorer.score(batch)]

    def release(self) -> None:
        self._scorer.release()


class _OnRanks:
    """A scorer on each rank of a group."""

    def __init__(self, group: RankGroup, name: str, **arguments: object) -> None:
        self._group, self._role = group, f"reward_model/{name}"
        group.build(self._role, "areal_x.engine.reward_model.scorer:make_scorer", arguments)

    def fetch(self) -> None:
        self._group.call(self._role, "fetch")

    def score(self, batch: ScoringBatch) -> list[PartScores]:
        return self._group.call(self._role, "score", batch)

    def release(self) -> None:
        self._group.call(self._role, "release")


@dataclass
class LoopModel:
    """One reward model: its files and tokenizer at first, and after ``load`` its scorers."""

    name: str
    key: str
    config: RewardModelConfig
    files: RewardModelFiles
    renderer: ConversationRenderer
    scorers: Scorers | None = None

    def load(self, device: str, group: RankGroup | None, trust_remote_code: bool) -> None:
        """Make the scorers, in this process on ``device``, or on a group of ranks; raises ``ConfigError`` as
        ``make_scorer``."""
        arguments = {
            "key": self.key,
            "config": self.config,
            "files": self.files,
            "device": device if group is None else device_of_rank(device),
            "trust_remote_code": trust_remote_code,
        }
        self.scorers = _InProcess(**arguments) if group is None else _OnRanks(group, self.name, **arguments)


def read_reward_models(config: ExperimentConfig) -> list[LoopModel]:
    """Files and tokenizers of all reward models, before any process starts.

    Raises:
        ConfigError: one of them is missing or cannot be used as it is configured.
    """
    models = []
    for name, model in config.used_reward_models.items():
        assert model.path is not None
        key = reward_model_key(config, name)
        files = read_reward_model_files(f"{key}.path", local_folder(model.path) or _download(key, model.path))
        trust = config.model.trust_remote_code
        models.append(
            LoopModel(name, key, model, files, ConversationRenderer(key, model, files, trust_remote_code=trust))
        )
    return models


def _download(key: str, path: str) -> Path:
    """The folder of a model of the hub, from the cache where it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        return Path(snapshot_download(path, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        text = str(error).splitlines()[0]
        raise ConfigError(f"{key}.path={path}: no such folder here, and the hub does not give it: {text}") from error


class RewardModels:
    """Scores groups and sums the rewards.

    Args:
        models: loaded.
        thread: the trainer's, where they work while nothing trains.
        on_span: called with (name, start, end) of each model's work, ``time.monotonic()`` seconds.
        has_rule: false: there is no rule reward.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        models: Sequence[LoopModel],
        thread: TrainerThread,
        on_span: Callable[[str, float, float], None],
        *,
        has_rule: bool = True,
    ) -> None:
        self._data = config.data
        self._has_rule = has_rule
        self._models = models
        self._weights = {model.name: model.config.weight for model in models}
        self._thread = thread
        self._on_span = on_span
        self._metrics: dict[str, float] = {}

    async def prefetch(self) -> None:
        """Begin to bring the first model's weights to the device, while the rest of the groups are generated."""
        scorers = self._models[0].scorers
        assert scorers is not None
        await self._thread.call(scorers.fetch)

    async def score(
        self, groups: Sequence[TrajectoryGroup], *, for_evaluation: bool = False, key: str | None = None
    ) -> list[RewardOutcome]:
        """Score what the rule rewards have scored, and put the sums in their place.

        Args:
            for_evaluation: seconds and tokens are no metrics of a step.
            key: the reward or part that gives the value. Default: the sum.

        Returns:
            Every score of every model, to be counted.

        Raises:
            EngineError: a model took longer than its ``timeout_seconds``.
            Exception: what kept a model from scoring at all.
        """
        samples = samples_to_score(groups)
        metrics: dict[str, float] = {}
        outcomes: dict[str, list[RewardOutcome]] = {}
        for model in self._models:
            started = time.monotonic()
            outcomes[model.name] = await self._run(model, samples, metrics)
            ended = time.monotonic()
            self._on_span(model.name, started, ended)
            _add(metrics, "perf/reward_model_seconds", ended - started)
            if len(self._models) > 1:
                _add(metrics, f"perf/reward_model_seconds/{model.name}", ended - started)
        if not for_evaluation:
            for name, value in metrics.items():
                _add(self._metrics, name, value)
        for place, sample in enumerate(samples):
            scores = {name: results[place] for name, results in outcomes.items()}
            sample.set_outcome(sum_outcomes(sample.rule, scores, self._weights, has_rule=self._has_rule, key=key))
        return [outcome for results in outcomes.values() for outcome in results]

    def take_metrics(self) -> dict[str, float]:
        """Seconds and tokens of all scoring of training since the last call."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    async def _run(
        self, model: LoopModel, samples: Sequence[ScoredSample], metrics: dict[str, float]
    ) -> list[RewardOutcome]:
        """One model's outcomes, in the order of the samples."""
        seconds, loop = model.config.timeout_seconds, asyncio.get_running_loop()
        deadline = asyncio.timeout(None)

        def begin() -> None:
            with contextlib.suppress(RuntimeError):  # Cancelled before it began.
                deadline.reschedule(loop.time() + seconds)

        def work() -> list[RewardOutcome]:
            loop.call_soon_threadsafe(begin)  # Until now the thread may have trained.
            return self._score_all(model, samples, metrics)

        try:
            async with deadline:
                return await self._thread.call(work)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise EngineError(
                f"{model.key}: scoring {len(samples)} samples took longer than "
                f"{model.key}.timeout_seconds={seconds:g}; raise it, or lower train.batch_size"
            ) from error

    def _score_all(
        self, model: LoopModel, samples: Sequence[ScoredSample], metrics: dict[str, float]
    ) -> list[RewardOutcome]:
        """Render, score, and say how it ended for each sample. Runs on the trainer's thread."""
        started_at = time.monotonic()
        found = self._render(model, samples)
        outcomes = [RewardOutcome("error", error=str(one)) if isinstance(one, RewardError) else None for one in found]
        conversations = [one for one in found if not isinstance(one, RewardError)]
        rendered = [place for place, outcome in enumerate(outcomes) if outcome is None]
        scores: list[list[float]] = []
        assert model.scorers is not None
        if not rendered:
            model.scorers.release()
        else:
            batch = join_conversations(conversations, [samples[place].group.group_id for place in rendered])
            parts = model.scorers.score(batch)
            scores = join_scores(batch, parts)
            _add(metrics, "perf/reward_model_load_seconds", max(part.load_seconds for part in parts))
            _add(metrics, "perf/reward_model_tokens", float(sum(part.num_tokens for part in parts)))
        for place, of_places in zip(rendered, scores, strict=True):
            outcomes[place] = _outcome(model, of_places)
        seconds = time.monotonic() - started_at
        finished = [outcome for outcome in outcomes if outcome is not None]
        for outcome in finished:
            outcome.started_at, outcome.seconds = started_at, seconds
        return finished

    def _render(self, model: LoopModel, samples: Sequence[ScoredSample]) -> list[Conversation | RewardError]:
        """The conversation of each sample; where it has none that can be scored, why."""
        asked: list[tuple[str | Messages, str | Messages]] = []
        for sample in samples:
            last = sample.last
            turns = last.metadata.get(TURNS) if model.config.chat_template else None
            asked.append((prompt_of(sample, self._data), turns or last.completion))
        found = model.renderer.render_all(asked)
        silent = RewardError(
            f"{model.key}: the workflow gave no text; pass prompt=... and completion=... to its Trajectory"
        )
        return [
            one if sample.last.prompt or sample.last.completion else silent
            for sample, one in zip(samples, found, strict=True)
        ]


def _add(metrics: dict[str, float], name: str, value: float) -> None:
    metrics[name] = metrics.get(name, 0.0) + value


def _outcome(model: LoopModel, scores: list[float]) -> RewardOutcome:
    """What the scores at a conversation's places say."""
    value = aggregate(scores, model.config.aggregation)
    if not math.isfinite(value):
        return RewardOutcome("error", error=f"{model.key}: the reward model gave {value}, which is no score")
    steps = scores if model.config.step_separator is not None else None
    return RewardOutcome("ok", value, step_rewards=steps)
