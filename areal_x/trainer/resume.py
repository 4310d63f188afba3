"""Where a run goes on: the directory, the newest good checkpoint in it, and what may have changed since.

    resume=never                    a new directory
    resume=auto                     NAME, NAME-2, ...: the last of them that has a good checkpoint; else as never
    resume=runs/NAME                that run's newest good checkpoint, which must be there
    resume=runs/NAME/checkpoints/X  that checkpoint; later ones are removed

Everything is found and checked before any process starts. Nothing is changed before ``cut_back``: files of the run go
back to what they held at the checkpoint, so that one lineage of weights is left.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from areal_x.api.config import CheckpointConfig, ExperimentConfig
from areal_x.api.errors import CheckpointError, ConfigError
from areal_x.observe.file_positions import FilePositions, check_positions
from areal_x.observe.file_positions import cut_back as cut_files
from areal_x.observe.redaction import redact_yaml
from areal_x.observe.run_files import read_lines
from areal_x.rollout.data_stream import DataStream
from areal_x.rollout.dataset import Items
from areal_x.trainer.checkpoint_files import Checkpoint, is_checkpoint
from areal_x.trainer.checkpoint_identity import run_identity
from areal_x.trainer.checkpoint_store import CHECKPOINTS, CheckpointStore
from areal_x.trainer.run_directory import numbered_directories

__all__ = ["INITIAL_MODEL", "Resumption", "find_resumption", "plain_config"]

INITIAL_MODEL = "initial_model"
"""Folder of a run that made its model itself."""
_FREE = (
    "name", "runs_dir", "overwrite", "resume", "observe", "checkpoint", "evaluation", "cluster", "preferences", "sft",
    "rollout.server", "rollout.base_urls", "rollout.engine", "rollout.num_threads", "rollout.num_slots",
    "train.num_threads", "train.num_ranks",
)  # fmt: skip
"""May be others when a run goes on, and nothing has to be said about them."""
_FIXED = (
    "seed", "data", "model.path", "model.init", "rollout.group_size", "train.batch_size", "train.lora",
    "algorithm.advantage", "critic.enabled", "critic.path", "reference.path", "reference.ema_decay", "workflow.path",
)  # fmt: skip
"""Another value would make another run of it: other prompts, other groups, or another model."""


@dataclass(frozen=True)
class Resumption:
    """A run goes on in ``directory`` from ``checkpoint``."""

    directory: Path
    checkpoint: Checkpoint
    files: FilePositions
    changes: tuple[str, ...] = ()
    """What the configuration has changed since, one ``key=new (was old)`` each."""

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.checkpoint.step

    @property
    def version(self) -> int:
        """Of the weights."""
        return int(self.checkpoint.facts["version"])

    def is_over(self, total_steps: int) -> bool:
        """Whether the run did all its steps and wrote all that comes after them."""
        info = next(read_lines(self.directory / "run.json"), {})
        return self.step >= total_steps and info.get("status") == "finished"

    def check_data(self, items: Items, config: ExperimentConfig) -> None:
        """Whether the run goes on with the data that it drew from; call it before ``cut_back``.

        Raises:
            DataError: they are others now.
            CheckpointError: the checkpoint does not say where the run stood in them.
        """
        state = self.checkpoint.facts.get("stream")
        if not isinstance(state, dict):
            raise CheckpointError(f"checkpoint {self.checkpoint.path} lacks the place in the data; use another one")
        DataStream(items, seed=config.seed, shuffle=config.data.shuffle).load_state_dict(state)

    def cut_back(self, config: CheckpointConfig) -> None:
        """Remove what is of later weights: checkpoints first, so that none is ever left without its lines.

        Raises:
            CheckpointError: a file cannot be changed.
        """
        store = CheckpointStore(self.directory / CHECKPOINTS, config)
        store.remove_partials()
        store.cut_after(self.step)
        cut_files(self.directory, self.files)

    def has_evaluation(self) -> bool:
        """Whether the weights of its step were measured; call it after ``cut_back``."""
        rows = read_lines(self.directory / "metrics.jsonl")
        return any(row.get("step") == self.step and any(name.startswith("eval/") for name in row) for row in rows)


def find_resumption(config: ExperimentConfig) -> Resumption | None:
    """Where ``resume`` says that the run goes on; ``None``: it starts anew. Bad checkpoints are named on the way.

    Raises:
        CheckpointError: the checkpoint that ``resume`` names is not good.
        ConfigError: what ``resume`` names is not there, or the configuration is that of another run.
    """
    if config.resume == "never":
        return None
    if config.overwrite:
        raise ConfigError(f"overwrite=true deletes the run that resume={config.resume} goes on with; leave one out")
    if config.resume == "auto":
        candidates = reversed(list(numbered_directories(config.run_dir)))
        found = next(filter(None, (_newest(directory, config) for directory in candidates)), None)
    else:
        found = _named(Path(config.resume).expanduser(), config)
    return None if found is None else _checked(found, config)


def plain_config(config: ExperimentConfig) -> dict[str, Any]:
    """The configuration as plain values without secrets, for the facts of a checkpoint."""
    text = redact_yaml(OmegaConf.to_yaml(OmegaConf.structured(config)))
    plain = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _store(directory: Path, config: ExperimentConfig) -> CheckpointStore:
    return CheckpointStore(directory / CHECKPOINTS, config.checkpoint, _identity(directory, config))


def _identity(directory: Path, config: ExperimentConfig) -> dict[str, str] | None:
    """The run's policy; ``None`` where the model that it made for itself is gone. Adapters and further models are
    compared with the configuration."""
    model_path = config.model.path or directory / INITIAL_MODEL
    if isinstance(model_path, Path) and not model_path.is_dir():
        return None
    return {"model": run_identity(config, model_path)["model"]}


def _newest(directory: Path, config: ExperimentConfig) -> Checkpoint | None:
    def name_bad(path: Path, problem: str) -> None:
        print(f"areal-x: {problem}; looking for an older one", file=sys.stderr)

    return _store(directory, config).newest_good(name_bad)


def _named(path: Path, config: ExperimentConfig) -> Checkpoint:
    if not path.is_dir():
        raise ConfigError(f"resume={path}: there is no such directory; name a run's, such as runs/quickstart")
    if is_checkpoint(path):
        return _store(path.parent.parent, config).open(path)
    directory = path.parent if path.name == CHECKPOINTS else path
    found = _newest(directory, config)
    if found is None:
        raise ConfigError(
            f"resume={path}: there is no good checkpoint in {directory / CHECKPOINTS}; resume=auto starts anew then"
        )
    return found


def _checked(checkpoint: Checkpoint, config: ExperimentConfig) -> Resumption:
    """The resumption from a good checkpoint, whose run and configuration are as they must be."""
    directory = checkpoint.path.parent.parent
    try:
        files = FilePositions.from_facts(checkpoint.facts["files"])
        before: dict[str, Any] = dict(checkpoint.facts["config"])
        int(checkpoint.facts["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {checkpoint.path} lacks {error}, which a run goes on from") from error
    check_positions(directory, files)
    if config.model.path is None and not (directory / INITIAL_MODEL).is_dir():
        raise CheckpointError(f"{directory / INITIAL_MODEL} is missing, the model that the run began with")
    changes = list(_changes(before, plain_config(config)))
    fixed = [text for key, text in changes if _is_among(key, _FIXED)]
    if fixed:
        raise ConfigError(
            f"resume: {'; '.join(fixed)}: that would be another run; go on with the value of {directory}, or start "
            "anew with resume=never"
        )
    return Resumption(directory, checkpoint, files, tuple(text for key, text in changes if not _is_among(key, _FREE)))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each key whose value is another, and how to say it."""
    old, new = dict(_flat(before)), dict(_flat(now))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield key, f"{key}={_shown(new.get(key))} (was {_shown(old.get(key))})"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif value not in (None, {}, []):
            yield f"{prefix}{key}", value


def _is_among(key: str, keys: tuple[str, ...]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)
