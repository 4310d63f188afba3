"""Errors of the process pool."""

from __future__ import annotations

__all__ = ["FunctionTransferError", "PoolClosedError", "PoolError"]


class PoolError(Exception):
    """The pool itself cannot do what was asked (a single call that fails is a ``CallResult``, not an error)."""


class PoolClosedError(PoolError):
    """The pool was closed before the call ended."""


class FunctionTransferError(PoolError):
    """A function cannot be sent to a worker process, or its module cannot be imported there."""
