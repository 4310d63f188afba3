"""What a judge's connection is made of, checked before a run starts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from areal_x.api.errors import ConfigError
from areal_x.reward.options import check_number, check_whole_number

__all__ = ["CallLimits", "ServerSettings", "check_base_url", "check_proxy", "check_sampling", "read_api_key"]

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,59}")
_OWN_KEYS = frozenset({"model", "messages", "response_format", "stream", "n", "extra_headers", "api_key"})


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """A model on a server, and what the run may ask of it. Judges with the same settings share one client."""

    base_url: str
    model: str
    api_key_env: str | None
    max_concurrent: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    proxy: str | None = None
    """Through which all requests go; that of the environment is never used."""
    max_response_bytes: int = 1 << 20
    """Of one reply."""

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model.strip():
            raise ConfigError(f"reward 'judge': model={self.model!r} is not the name of a model")
        check_base_url(self.base_url)
        if self.proxy is not None:
            check_proxy(self.proxy)
        name = self.api_key_env
        if name is not None and not (isinstance(name, str) and _VARIABLE.fullmatch(name)):
            # The value is not shown: it may be the key itself, put there by mistake.
            raise ConfigError(
                "reward 'judge': api_key_env is not the name of an environment variable in capitals, "
                "such as OPENAI_API_KEY"
            )
        check_whole_number("judge", "max_concurrent", self.max_concurrent, 1)
        check_whole_number("judge", "max_response_bytes", self.max_response_bytes, 1)
        for option in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, option) is not None:
                check_whole_number("judge", option, getattr(self, option), 1)

    @property
    def name(self) -> str:
        """Who answers, for error messages."""
        return f"model {self.model!r} at {self.base_url}"


@dataclass(frozen=True, slots=True)
class CallLimits:
    """How long and how often one call tries."""

    timeout_seconds: float
    """Of one request, from its start to the last byte of the reply."""
    deadline_seconds: float
    """Of all requests of a call and the pauses between them; waiting for a place or a turn is not part of it."""
    max_wait_seconds: float
    """Of a call's wait until it may begin, and of each of its questions' for places and turns."""
    max_attempts: int
    backoff_seconds: float

    def __post_init__(self) -> None:
        for option in ("timeout_seconds", "deadline_seconds", "max_wait_seconds"):
            check_number("judge", option, getattr(self, option), 0.001)
        check_number("judge", "backoff_seconds", self.backoff_seconds, 0.0)
        check_whole_number("judge", "max_attempts", self.max_attempts, 1)


def check_base_url(base_url: object) -> None:
    """Raise unless it is an HTTP address without credentials.

    Raises:
        ConfigError: it is none. A user or a query is refused, since it would be in messages and files.
    """
    parts = _parts(base_url)
    holds_user = "@" in str(base_url)
    if parts is None:
        # What stands before an @ may be a password.
        shown = "(not shown, since it holds an @)" if holds_user else repr(base_url)
        raise ConfigError(f"reward 'judge': base_url={shown} is not an address such as http://127.0.0.1:8000/v1")
    if holds_user or parts.query or parts.fragment:
        where = f" of host {parts.hostname}" if "@" in parts.netloc or not holds_user else ""
        raise ConfigError(
            f"reward 'judge': the base_url{where} holds a user, a query or a fragment; "
            "put the key into the environment variable that api_key_env names"
        )


def check_proxy(proxy: object) -> None:
    """Raise unless it is the HTTP address of a proxy without credentials.

    Raises:
        ConfigError: it is none.
    """
    holds_user = "@" in str(proxy)
    parts = _parts(proxy)
    if parts is None or holds_user or parts.path.strip("/") or parts.query or parts.fragment:
        shown = "(not shown, since it holds an @)" if holds_user else repr(proxy)
        raise ConfigError(
            f"reward 'judge': proxy={shown} is not the address of a proxy such as http://127.0.0.1:3128, without a user"
        )


def _parts(address: object) -> SplitResult | None:
    """The parts of an HTTP address; None if it is none."""
    try:
        parts = urlsplit(address) if isinstance(address, str) else None
        is_one = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # Brackets or a port that are wrong; the message can hold the whole address.
        return None
    return parts if is_one else None


def check_sampling(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are sent with each request.

    Raises:
        ConfigError: no mapping, or a parameter that the judge sets itself.
    """
    if not isinstance(sampling, Mapping) or not all(isinstance(name, str) for name in sampling):
        raise ConfigError(f"reward 'judge': sampling={sampling!r} is no mapping, such as {{temperature: 0}}")
    own = sorted(_OWN_KEYS.intersection(sampling))
    if own:
        raise ConfigError(f"reward 'judge': sampling.{own[0]} is set by the judge itself; remove it")
    return dict(sampling)


def read_api_key(api_key_env: str | None) -> str:
    """The key from the environment; a placeholder where the server needs none.

    Raises:
        ConfigError: the variable is not set, or holds what no header can carry. The value is never shown.
    """
    if api_key_env is None:
        return "none"
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"reward 'judge': environment variable {api_key_env} is not set; set it to the server's key, name another "
            "variable with api_key_env, or set api_key_env to null for a server without keys"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"reward 'judge': environment variable {api_key_env} holds spaces or letters that no key has")
    return key
