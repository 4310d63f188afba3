"""What a server is started with: the settings that both kinds share, and the command that each kind makes of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from areal_x.api.errors import ConfigError

__all__ = ["LaunchCommand", "LaunchSettings", "check_quantization"]


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """One server to start. ``gpus`` is empty on a CPU; ``weights`` is the way of ``WeightTransport.way``."""

    python: Path
    model_path: str
    host: str
    port: int
    dtype: str
    max_length: int
    num_slots: int
    """Sequences that this server decodes at once."""
    gpus: tuple[int, ...] = ()
    num_threads: int = 1
    seed: int = 0
    weights: str = "disk"
    kv_on_update: str = "recompute"
    quantization: str | None = None
    memory_fraction: float = 0.85
    kv_cache_gib: float = 1.0
    stream_interval: int = 64
    can_sleep: bool = False
    """Colocated with the trainer: it gives its memory back while the trainer works."""
    lora_rank: int = 0
    """The largest rank of adapters that it serves; 0: none."""
    trust_remote_code: bool = False
    api_key: str | None = field(default=None, repr=False)
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchCommand:
    """The command line, and the variables that it adds to this process's environment. No key is on a command line."""

    argv: list[str]
    env: dict[str, str] = field(repr=False)


def check_quantization(settings: LaunchSettings) -> None:
    """Refuse eight bits on a CPU, or from a folder that is not in eight bits.

    Servers take the form of their weights from the folder that they start from, and serve these until an update.

    Raises:
        ConfigError: names ``rollout.server.quantization`` and what to do.
    """
    if settings.quantization is None:
        return
    if not settings.gpus:
        raise ConfigError(
            f"rollout.server.quantization={settings.quantization} needs a GPU; leave it out to serve in "
            f"{settings.dtype} on this CPU"
        )
    config = Path(settings.model_path) / "config.json"
    if not config.exists() or "quantization_config" not in json.loads(config.read_text(encoding="utf-8")):
        raise ConfigError(
            f"rollout.server.quantization={settings.quantization}: {settings.model_path} has no quantization_config; "
            "servers start from a copy of the model in eight bits (write_quantized_checkpoint)"
        )
