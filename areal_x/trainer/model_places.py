"""What ``model.path`` may name beside a model: a run, its exports, or a checkpoint; and of which step the model is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_x.api.errors import ConfigError
from areal_x.observe.run_files import read_lines
from areal_x.trainer.checkpoint_files import MANIFEST, is_checkpoint

__all__ = ["ModelPlace", "find_checkpoint", "locate_model"]

_STEP = re.compile(r"step_(\d+)")
_CHECKPOINTS = "checkpoints"
_FOLDERS = ("exports", _CHECKPOINTS)
_POLICY = "policy"


@dataclass(frozen=True)
class ModelPlace:
    """A model in Hugging Face format, or a checkpoint that one can be made of, with what is known of it."""

    path: Path
    is_checkpoint: bool = False
    step: int | None = None
    version: int | None = None

    @property
    def model_files(self) -> Path:
        """Where ``config.json`` and the tokenizer are."""
        return self.path / "model" if self.is_checkpoint else self.path

    def __str__(self) -> str:
        known = [
            f"{name} {value}" for name, value in (("step", self.step), ("version", self.version)) if value is not None
        ]
        return f"{self.path} ({', '.join(known)})" if known else str(self.path)


def locate_model(path: str) -> ModelPlace | None:
    """The model that a directory names; ``None`` for what is no directory of a model or a run, such as a hub name.

    Of a run that finished it is the trained policy, of another its newest export or checkpoint; of ``exports`` or
    ``checkpoints`` the newest.

    Raises:
        ConfigError: a run's directory without any model.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return ModelPlace(folder, **_known_of_model(folder))
    if is_checkpoint(folder):
        return ModelPlace(folder, True, **_known_of_checkpoint(folder))
    if folder.name in _FOLDERS and folder.is_dir():
        return _newest([folder], folder)
    if (folder / "metrics.jsonl").is_file() or any((folder / name).is_dir() for name in _FOLDERS):
        policy = folder / _POLICY
        if (policy / "config.json").is_file() and _read(folder / "run.json").get("status") == "finished":
            return ModelPlace(policy, **_known_of_model(policy))
        return _newest([folder / name for name in _FOLDERS], folder)
    return None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a directory is, or the newest of a run or of its ``checkpoints``; else ``path`` itself."""
    folder = path if path.name == _CHECKPOINTS else path / _CHECKPOINTS
    if is_checkpoint(path):
        return path
    found = [child for child in folder.glob("step_*") if _STEP.fullmatch(child.name) and is_checkpoint(child)]
    return max(found, key=_step_of, default=path)


def _newest(folders: list[Path], asked: Path) -> ModelPlace:
    """The model of the last step; of an export and a checkpoint of one step the export."""
    found = [path for folder in folders for path in folder.glob("step_*") if _STEP.fullmatch(path.name)]
    models = [path for path in found if is_checkpoint(path) or (path / "config.json").is_file()]
    if not models:
        raise ConfigError(
            f"model.path={asked}: the run has neither a policy nor exports or checkpoints; name a model's directory"
        )
    newest = max(models, key=lambda path: (_step_of(path), not is_checkpoint(path)))
    place = locate_model(str(newest))
    assert place is not None
    return place


def _known_of_model(folder: Path) -> dict[str, Any]:
    """Step and version of a model, from its name and the run that it lies in."""
    step, run = _step_of(folder), folder.parent.parent
    if folder.name == _POLICY:
        run = folder.parent
        steps = (row.get("step") for row in read_lines(run / "metrics.jsonl"))
        step = max((step for step in steps if isinstance(step, int)), default=-1)
    if step < 0:
        return {}
    checkpoint = run / "checkpoints" / f"step_{step:06d}"
    return _known_of_checkpoint(checkpoint) if is_checkpoint(checkpoint) else {"step": step}


def _known_of_checkpoint(folder: Path) -> dict[str, Any]:
    """What a manifest says. Whether it is whole is checked when the checkpoint is read."""
    manifest = _read(folder / MANIFEST)
    facts = manifest.get("facts")
    known = {"step": manifest.get("step"), "version": facts.get("version") if isinstance(facts, dict) else None}
    return {name: value for name, value in known.items() if isinstance(value, int)}


def _step_of(path: Path) -> int:
    """The number of ``step_000012`` and of ``step_000012.export``; -1: the name has none."""
    match = _STEP.match(path.name)
    return int(match[1]) if match else -1


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
