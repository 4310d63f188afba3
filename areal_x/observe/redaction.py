"""Removes secrets from a configuration before it is written or sent anywhere."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import OmegaConf

__all__ = ["REDACTED", "redact_value", "redact_yaml"]

REDACTED = "<redacted>"

_SECRET_WORDS = {
    "apikey", "authorization", "credential", "credentials", "passphrase", "passwd", "password", "passwords", "pwd",
    "secret", "secrets",
}  # fmt: skip
_KEY_WORDS = {"access", "account", "api", "auth", "encryption", "private", "secret", "signing", "ssh", "subscription"}
_VOCABULARY_WORDS = {"bos", "cls", "end", "eos", "image", "mask", "pad", "sep", "start", "stop", "unk"}
_SECRET_VALUE = re.compile(
    r"sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{16}"
    r"|(?<=Bearer )\S+|(?<=bearer )\S+|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
    r"|(?<=api_key=)[^&\s]+|(?<=apikey=)[^&\s]+|(?<=token=)[^&\s]+|(?<=secret=)[^&\s]+|(?<=password=)[^&\s]+"
)


def _is_secret_key(key: str) -> bool:
    words = re.findall(r"[a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).lower())
    if not words:
        return False
    if _SECRET_WORDS.intersection(words):
        return True
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in ("key", "keys"):
        return before in _KEY_WORDS
    return last in ("token", "tokens") and before not in _VOCABULARY_WORDS


def redact_value(value: Any, secret: bool = False) -> Any:
    """A copy of nested dicts and lists in which secrets are replaced.

    A value is a secret when its key says so (``api_key``, ``hf_token``, ``password``) or when it looks like one (known
    key formats, a password inside a URL). Numbers and booleans under a ``token`` key are counts or switches and stay.
    """
    if isinstance(value, dict):
        return {key: redact_value(item, secret or _is_secret_key(str(key))) for key, item in value.items()}
    if isinstance(value, list):
        return [redact_value(item, secret) for item in value]
    if isinstance(value, str):
        if secret and value and not value.startswith("${"):
            return REDACTED
        return _SECRET_VALUE.sub(REDACTED, value)
    if secret and isinstance(value, int | float) and not isinstance(value, bool):
        return value if abs(value) < 1_000_000 else REDACTED
    return value


def redact_yaml(text: str) -> str:
    """The YAML ``text`` without its secrets. Interpolations (``${...}``) stay unresolved; comments go."""
    content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    return OmegaConf.to_yaml(OmegaConf.create(redact_value(content)))
