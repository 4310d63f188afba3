"""A killable process pool for asyncio. It needs the standard library only and knows nothing of rewards."""

from __future__ import annotations

from areal_x.process_pool.calls import CallResult, PoolClient, RegisteredFunction
from areal_x.process_pool.errors import FunctionTransferError, PoolClosedError, PoolError
from areal_x.process_pool.function_transfer import describe_function, import_function
from areal_x.process_pool.interpreters import start_interpreter
from areal_x.process_pool.kept_children import forget_child, keep_child
from areal_x.process_pool.pool import ProcessPool

__all__ = [
    "CallResult",
    "FunctionTransferError",
    "PoolClient",
    "PoolClosedError",
    "PoolError",
    "ProcessPool",
    "RegisteredFunction",
    "describe_function",
    "forget_child",
    "import_function",
    "keep_child",
    "start_interpreter",
]
