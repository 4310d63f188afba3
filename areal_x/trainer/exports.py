"""Models in Hugging Face format: of a run at any step, and of any checkpoint."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, GenerationConfig

from areal_x.api.errors import CheckpointError, ConfigError, EngineError
from areal_x.engine.train.state_export import export_state
from areal_x.engine.transfer.safetensors_folder import copy_model_files
from areal_x.trainer.checkpoint_files import (
    MANIFEST,
    described,
    is_checkpoint,
    open_checkpoint,
    read_json,
    sync_directory,
    write_json_atomically,
)
from areal_x.trainer.checkpoint_store import EXPORT, PARTIAL

__all__ = [
    "EXPORTS",
    "MODEL_FILES",
    "POLICY_STATE",
    "export_checkpoint",
    "exported_model",
    "write_export",
    "write_model_files",
]

EXPORTS = "exports"
"""Folder of a run with models in Hugging Face format, ``step_000012`` and so on."""
MODEL_FILES = "model"
"""Folder of a checkpoint: configuration and tokenizer of the policy."""
POLICY_STATE = "policy"
"""Folder of a checkpoint: what ``TrainEngine.begin_checkpoint`` wrote."""
_SOURCE = "exported_from.json"


def write_model_files(folder: Path, model_path: Path | str, tokenizer: Any, trust_remote_code: bool = False) -> None:
    """Write what makes a model but its weights: configuration, tokenizer, and code where there is some.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if Path(model_path).is_dir():
            copy_model_files(model_path, folder)
        else:
            AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code).save_pretrained(folder)
            _save_generation_config(model_path, folder)
        tokenizer.save_pretrained(folder)
    except (OSError, EngineError) as error:
        raise CheckpointError(f"checkpoint {folder.parent}: {error}") from error


def write_export(folder: Path, save: Callable[[Path], None], tokenizer: Any) -> Path:
    """Write a model as a whole or not at all; an older one of this name is replaced.

    Args:
        save: writes the model to the directory that it is given, as ``TrainEngine.save``.

    Raises:
        CheckpointError: it cannot be written; nothing of it stays behind.
    """

    def write(aside: Path) -> None:
        save(aside)
        tokenizer.save_pretrained(aside)

    return _write_whole(folder, write)


def export_checkpoint(
    checkpoint: Path, output: Path, *, base_model: Path | str | None = None, trust_remote_code: bool = False
) -> Path:
    """Write the policy of a checkpoint and its tokenizer to the new directory ``output``.

    Args:
        base_model: the model below adapters. Default: where it was when they were trained.

    Raises:
        CheckpointError: the checkpoint is not whole, or the model cannot be written.
        ConfigError: ``output`` is there already.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} is there already; give the name of a new directory")
    open_checkpoint(checkpoint)

    def write(aside: Path) -> None:
        base = base_model or _base_of_run(checkpoint)
        export_state(
            checkpoint / POLICY_STATE,
            checkpoint / MODEL_FILES,
            aside,
            base_model=base,
            trust_remote_code=trust_remote_code,
        )
        copy_model_files(checkpoint / MODEL_FILES, aside, skip=("config.json",))
        write_json_atomically(aside / _SOURCE, _source(checkpoint))

    return _write_whole(output, write)


def exported_model(path: Path | str, *, trust_remote_code: bool = False) -> Path | None:
    """The model in a checkpoint, where ``path`` is one: exported beside it once, or to a temporary directory where that
    cannot be written. ``None`` where ``path`` is something else, such as a model.

    Raises:
        CheckpointError: the checkpoint is not whole, or the model cannot be written.
    """
    checkpoint = Path(path)
    if not is_checkpoint(checkpoint):
        return None
    beside = checkpoint.with_name(checkpoint.name + EXPORT)
    if _is_of(beside, checkpoint):
        return beside
    if os.access(checkpoint.parent, os.W_OK):
        shutil.rmtree(beside, ignore_errors=True)
        return export_checkpoint(checkpoint, beside, trust_remote_code=trust_remote_code)
    folder = Path(tempfile.mkdtemp(prefix="areal_x-export-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return export_checkpoint(checkpoint, folder / checkpoint.name, trust_remote_code=trust_remote_code)


def _write_whole(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write a directory aside, bring it to the disk and give it its name."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}{PARTIAL}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        for file in (path for path in aside.rglob("*") if path.is_file()):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        sync_directory(folder.parent)
    except (OSError, SafetensorError, EngineError) as error:
        text = described(error) if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"the model could not be written to {folder}: {text}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _save_generation_config(model_path: Path | str, folder: Path) -> None:
    try:
        GenerationConfig.from_pretrained(model_path).save_pretrained(folder)
    except OSError:
        return  # Many models have none.


def _base_of_run(checkpoint: Path) -> Path | None:
    """The model that the checkpoint's run made for itself, wherever the run's directory is now."""
    initial = checkpoint.resolve().parent.parent / "initial_model"
    recorded = Path(str(read_json(checkpoint / POLICY_STATE / "state.json").get("model_path")))
    return initial if recorded.name == initial.name and not recorded.exists() and initial.is_dir() else None


def _source(checkpoint: Path) -> dict[str, Any]:
    manifest = read_json(checkpoint / MANIFEST)
    return {"checkpoint": str(checkpoint), "step": manifest["step"], "checksum": manifest["checksum"]}


def _is_of(exported: Path, checkpoint: Path) -> bool:
    """Whether a directory was exported from this very checkpoint; another may have had its name."""
    try:
        found: Any = read_json(exported / _SOURCE)
        return bool(found["checksum"] == _source(checkpoint)["checksum"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
