"""What the files of a reward model say of it, read without loading anything: its head, sizes and type of numbers.

``config.json`` names the architecture; the first bytes of each ``.safetensors`` file are a JSON table of its tensors
(https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from areal_x.api.check_values import bad_value
from areal_x.api.errors import ConfigError

__all__ = ["RewardModelFiles", "read_reward_model_files"]

Head = Literal["sequence", "token"]
_HEADS: dict[str, Head] = {"ForSequenceClassification": "sequence", "ForTokenClassification": "token"}
_HEAD_WEIGHTS = ("score.weight", "classifier.weight")
_DEFAULT_LABELS = 2
"""transformers writes the labels down only where there are not two."""
_LONGEST_HEADER = 100 * 2**20


@dataclass(frozen=True)
class RewardModelFiles:
    """A checkpoint that can score. ``weights``: the safetensors files, in order."""

    folder: Path
    head: Head
    weights: tuple[Path, ...]
    num_parameters: int
    vocabulary_size: int
    max_positions: int | None
    """Longest sequence of the model, where it has a limit."""
    pad_token_id: int | None
    """What transformers takes for padding when it looks for the last token of a sequence."""


def read_reward_model_files(key: str, folder: Path) -> RewardModelFiles:
    """Read and check the checkpoint in ``folder``.

    Args:
        key: what the configuration calls it, for messages.

    Raises:
        ConfigError: it has another head than one score, or no weights that can be mapped.
    """
    config = _read_config(key, folder)
    nested = config.get("text_config")
    text: dict[str, Any] = nested if isinstance(nested, dict) else config
    head = _head_of(key, folder, config)
    tables = {path: _read_header(key, path) for path in _weight_files(key, folder)}
    shapes = {name: entry["shape"] for table in tables.values() for name, entry in table.items()}
    _check_head_weights(key, folder, shapes)
    vocabulary, positions = text.get("vocab_size"), text.get("max_position_embeddings", text.get("n_positions"))
    pad = config.get("pad_token_id", text.get("pad_token_id"))
    if not isinstance(vocabulary, int):
        raise bad_value(key, folder, "config.json has no vocab_size")
    return RewardModelFiles(
        folder=folder,
        head=head,
        weights=tuple(tables),
        num_parameters=sum(math.prod(shape) for shape in shapes.values()),
        vocabulary_size=vocabulary,
        max_positions=positions if isinstance(positions, int) else None,
        pad_token_id=pad if isinstance(pad, int) else None,
    )


def _read_config(key: str, folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if folder.is_file():
        raise bad_value(key, folder, "is a file; name the folder that holds config.json")
    if not path.is_file():
        what = "the folder has no config.json, so it is not a model in Hugging Face format"
        raise bad_value(key, folder, what if folder.is_dir() else "no such folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise bad_value(key, folder, f"config.json is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise bad_value(key, folder, "config.json is no JSON object")
    return config


def _head_of(key: str, folder: Path, config: dict[str, Any]) -> Head:
    architecture = (config.get("architectures") or ["none"])[0]
    head = next((head for ending, head in _HEADS.items() if architecture.endswith(ending)), None)
    if head is None:
        generates = architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
        fix = (
            "which writes text: train a reward model from it (areal-x train-rm), or let it judge (reward.fn=judge)"
            if generates
            else "a reward model is a ForSequenceClassification or ForTokenClassification model of one label"
        )
        raise bad_value(key, folder, f"its architecture is {architecture}, {fix}")
    labels = config.get("id2label")
    num_labels = len(labels) if isinstance(labels, dict) else config.get("num_labels", _DEFAULT_LABELS)
    if num_labels != 1:
        raise bad_value(key, folder, f"its head has {num_labels} labels; a reward model has one (num_labels=1)")
    return head


def _weight_files(key: str, folder: Path) -> list[Path]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        others = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        fix = (
            "save it once more with save_pretrained, which writes safetensors" if others else "its weights are missing"
        )
        raise bad_value(key, folder, f"there is no model.safetensors; {fix}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise bad_value(key, folder, f"{index.name} is no table of weights: {error}") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise bad_value(key, folder, f"{index.name} names {missing[0]}, which is not there; copy the folder again")
    return [folder / name for name in names]


def _read_header(key: str, path: Path) -> dict[str, Any]:
    """The table of tensors by name."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_LONGEST_HEADER, path.stat().st_size):
                raise ValueError(f"a header of {length} bytes")
            table = json.loads(file.read(length))
        table.pop("__metadata__", None)
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in table.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{key}: {path} is no safetensors file ({error}); copy it again") from error
    if end > path.stat().st_size:
        raise ConfigError(f"{key}: {path} ends after {path.stat().st_size} of {end} bytes; copy it again")
    checked: dict[str, Any] = table
    return checked


def _check_head_weights(key: str, folder: Path, shapes: dict[str, list[int]]) -> None:
    found = [name for name in shapes if name.endswith(_HEAD_WEIGHTS)]
    if not found:
        fix = "its score would be random; name a model that was trained as a reward model"
        raise bad_value(key, folder, f"holds no weights of a head ({' or '.join(_HEAD_WEIGHTS)}): {fix}")
    rows = shapes[found[0]][0]
    if rows != 1:
        raise bad_value(key, folder, f"{found[0]} has {rows} rows; a reward model gives one score")
