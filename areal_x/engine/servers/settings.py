"""What a ``ServerEngine`` is told once, checked before anything starts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from areal_x.engine.servers.dialect import KvOnUpdate

__all__ = ["EngineSettings"]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings that all servers of one engine share. Times are seconds; see ``ServerConfig`` for their meaning."""

    vocab_size: int
    max_length: int
    num_slots: int
    """Requests that all servers together decode at once."""
    eos_ids: tuple[int, ...] = ()
    seed: int = 0
    kv_on_update: KvOnUpdate = "recompute"
    initial_version: int = 0
    model_name: str = ""
    """Empty: the only one that a server lists."""
    model_path: str = ""
    """Where the tokenizer is, if a stop string has to be looked for here."""
    has_tokenizer: bool = False
    trust_remote_code: bool = False
    api_key: str | None = field(default=None, repr=False)
    start_timeout_seconds: float = 600.0
    stall_timeout_seconds: float = 60.0
    update_timeout_seconds: float = 120.0
    all_gone_timeout_seconds: float = 25.0
    max_restarts: int = 3
    notify: Callable[[str], None] = _to_stderr
    """Told in one line what a slow start waits for, and of each server that is lost."""
