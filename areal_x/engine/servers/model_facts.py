"""What a model's own files say of it, read without torch: what cannot be served is an error before any start."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_x.api.check_values import bad_value
from areal_x.api.errors import ConfigError

__all__ = ["ModelFacts", "check_length", "check_servable", "read_model_facts"]

VLLM_CPU_HEAD_SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What the CPU kernel of vLLM 0.32 computes. Any other size starts, looks healthy and dies at the first request."""

_NAMES = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd"),
    "num_heads": ("num_attention_heads", "n_head"),
    "max_length": ("max_position_embeddings", "n_positions"),
    "ties_embeddings": ("tie_word_embeddings",),
}
_MAX_HEADER_BYTES = 2**28
_ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A causal language model as its configuration and its weights' files describe it."""

    vocab_size: int
    head_dim: int
    ties_embeddings: bool
    """Whether one matrix is both input and output embedding."""
    eos_ids: tuple[int, ...]
    """Every id that the generation config, the model's config or the tokenizer calls end of sequence, sorted."""
    max_length: int | None
    """Positions, in tokens; ``None`` where the model names no bound."""
    num_bytes: int
    """Size of the weights as they are stored."""
    architecture: str
    """Such as ``Qwen3ForCausalLM``."""
    num_parameters: int = 0
    """About so many; 0: not known."""


def read_model_facts(model_path: str, trust_remote_code: bool = False) -> ModelFacts:
    """Read the facts of a folder in Hugging Face format, or of a hub name (its small files are fetched).

    Raises:
        ConfigError: no such model, no weights, weights cut short, or a configuration that cannot be read.
    """
    folder = Path(model_path).expanduser()
    if folder.is_dir():
        num_bytes = _stored_bytes(folder)
    elif folder.exists() or model_path.startswith(("/", ".", "~")) or model_path.count("/") > 1:
        raise ConfigError(f"model.path={model_path}: no such folder; give one in Hugging Face format, or a hub name")
    else:
        folder, num_bytes = _from_hub(model_path)
    config = _read_json(folder / "config.json")
    if config is None:
        raise ConfigError(f"model.path={model_path} has no config.json; give a folder in Hugging Face format")
    values = _values(config, str(folder), trust_remote_code)
    head_dim = values["head_dim"] or values["hidden_size"] // values["num_heads"]
    architectures = config.get("architectures") or [str(config.get("model_type", "unknown"))]
    return ModelFacts(
        vocab_size=values["vocab_size"],
        head_dim=head_dim,
        ties_embeddings=bool(values["ties_embeddings"]),
        eos_ids=_eos_ids(folder, config),
        max_length=values["max_length"],
        num_bytes=num_bytes,
        architecture=str(architectures[0]),
        num_parameters=num_bytes // _ITEM_SIZES.get(str(config.get("dtype") or config.get("torch_dtype")), 4),
    )


def check_length(facts: ModelFacts, max_length: int, is_new: bool = False) -> None:
    """Refuse sequences longer than the model has positions.

    Args:
        is_new: the run makes the model (``model.init``), so that it may as well have more.

    Raises:
        ConfigError: names ``rollout.max_length`` and what to use.
    """
    if facts.max_length is not None and max_length > facts.max_length:
        or_more = ", or raise model.init.max_length" if is_new else ""
        fix = f"the model has {facts.max_length} positions; use {facts.max_length} or less{or_more}"
        raise bad_value("rollout.max_length", max_length, fix)


def check_servable(facts: ModelFacts, kind: str, on_cpu: bool) -> None:
    """Refuse what servers of ``kind`` cannot compute.

    Raises:
        ConfigError: a head size that vLLM's kernels for a CPU do not have.
    """
    if kind == "vllm" and on_cpu and facts.head_dim not in VLLM_CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, VLLM_CPU_HEAD_SIZES))
        raise ConfigError(
            f"model.path: the model has head_dim={facts.head_dim}, and vLLM on a CPU computes only {sizes}; "
            f"take such a model (model.init.head_dim=32), or rollout=sglang or rollout=embedded"
        )


def _values(config: dict[str, Any], folder: str, trust_remote_code: bool) -> dict[str, Any]:
    """The fields of ``_NAMES`` and ``head_dim``; from transformers where the file leaves one to its class's default."""
    texts = [config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), dict)]
    text = {**config, **(texts[0] if texts else {})}
    found = {name: next((text[key] for key in keys if key in text), None) for name, keys in _NAMES.items()}
    found["head_dim"] = text.get("head_dim")
    if any(found[name] is None for name in _NAMES):
        from transformers import AutoConfig

        try:
            loaded = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config()
        except (OSError, ValueError, KeyError, TypeError) as error:
            words = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"model.path: {folder}/config.json is no known model: {words}") from error
        for name, keys in _NAMES.items():
            found[name] = next((getattr(loaded, key) for key in keys if hasattr(loaded, key)), None)
        found["head_dim"] = getattr(loaded, "head_dim", None)
    for name in ("vocab_size", "hidden_size", "num_heads"):
        value = found[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"model.path: {folder}/config.json gives no valid {_NAMES[name][0]}: {value!r}")
    return found


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; ``None`` without the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {path} cannot be read: {error}; write or fetch the model again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"model.path: {path} holds no JSON object; write or fetch the model again")
    return found


def _eos_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    found: set[int] = set()
    for holder in (_read_json(folder / "generation_config.json") or {}, config, config.get("text_config") or {}):
        ids = holder.get("eos_token_id")
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    token = (_read_json(folder / "tokenizer_config.json") or {}).get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None:
        added = (_read_json(folder / "tokenizer.json") or {}).get("added_tokens", [])
        found.update(entry["id"] for entry in added if entry.get("content") == text)
    return tuple(sorted(found))


def _stored_bytes(folder: Path) -> int:
    """Size of the weights in a folder."""
    index = _read_json(folder / "model.safetensors.index.json")
    if index is not None:
        paths = [folder / name for name in sorted(set(index.get("weight_map", {}).values()))]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise ConfigError(f"model.path={folder}: its index names {missing[0]}, which is not there; fetch it again")
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if paths:
        return sum(map(_tensor_bytes, paths))
    older = sorted(folder.glob("pytorch_model*.bin"))
    if older:
        return sum(path.stat().st_size for path in older)
    raise ConfigError(
        f"model.path={folder} holds no weights (*.safetensors); give a folder that save_pretrained has written"
    )


def _tensor_bytes(path: Path) -> int:
    """Bytes of tensors that the header of a safetensors file names, which the file must hold."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= min(size, _MAX_HEADER_BYTES) else {}
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=-1)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(f"model.path: {path} is no safetensors file ({size} bytes); fetch it again") from error
    if end < 0 or size != 8 + length + end:
        raise ConfigError(f"model.path: {path} is cut short ({size} bytes); write or fetch the model again")
    return int(end)


def _from_hub(name: str) -> tuple[Path, int]:
    """The folder of a hub model's small files, and the size of its weights."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.py"]))
        if any(folder.glob("*.safetensors")):
            return folder, _stored_bytes(folder)
        files: Iterable[Any] = HfApi().model_info(name, files_metadata=True).siblings or ()
    except (OSError, ValueError) as error:
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"model.path={name} is neither a folder here nor a model that the hub gives: {words}"
        ) from error
    for suffix in (".safetensors", ".bin"):
        sizes = [file.size or 0 for file in files if file.rfilename.endswith(suffix) and "/" not in file.rfilename]
        if sizes:
            return folder, sum(sizes)
    raise ConfigError(f"model.path={name}: the hub has no weights of it (*.safetensors); name another model")
