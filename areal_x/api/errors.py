"""Errors that areal_x raises on purpose. Each message is one line that names the thing and the fix."""

from __future__ import annotations

__all__ = [
    "ArealXError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EngineDiedError",
    "EngineError",
    "FailureBudgetError",
    "MissingExtraError",
    "NonFiniteError",
    "PromptTooLongError",
    "RequestError",
]


class ArealXError(Exception):
    """Base of every error that areal_x raises on purpose; the command line shows it as one line."""


class ConfigError(ArealXError):
    """A configuration key, value or combination is wrong."""


class CheckpointError(ArealXError):
    """A checkpoint cannot be written or read; the message names its directory and what is wrong with it."""


class DataError(ArealXError):
    """A data set, one of its files or one of its lines is wrong."""


class EngineError(ArealXError):
    """An inference or train engine could not do what was asked."""


class EngineDiedError(EngineError):
    """An engine's process ended. ``tail`` holds the last lines that it printed."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail


class NonFiniteError(EngineError):
    """Steps were skipped, one after another, because their loss, gradient or advantages are not finite."""


class RequestError(EngineError):
    """One generation request is impossible; other requests are not affected."""


class PromptTooLongError(RequestError):
    """A prompt leaves no room for a completion. The episode is rejected and counted, never truncated silently."""


class MissingExtraError(ArealXError, ImportError):
    """Something was asked for whose optional package is not installed; the message names the extra."""


class FailureBudgetError(ArealXError):
    """Too many episodes failed; the message carries the first traceback."""
