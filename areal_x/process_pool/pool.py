"""The pool: queues, shares, retries and the life of its processes. Everything happens on one event loop.

    submit ──▶ client's queue ──▶ (clients in turn) ──▶ worker ──▶ result ──▶ future
                    ▲                                     │ deadline, crash
                    └── retried once after a crash ◀──────┘ killed, replaced from the zygote

It consumes submissions, results (readable sockets), exits (the zygote's reports) and timers. It waits for none of them:
each is a callback that ends by giving free workers their next call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from areal_x.process_pool.after_fork import abandon_in_forked_children, forget
from areal_x.process_pool.calls import Call, CallResult, PoolClient, RegisteredFunction
from areal_x.process_pool.errors import FunctionTransferError, PoolClosedError, PoolError
from areal_x.process_pool.function_transfer import describe_function
from areal_x.process_pool.lost_calls import crash_result, encode_arguments, timeout_result, unsendable_result
from areal_x.process_pool.registry import FunctionRegistry
from areal_x.process_pool.turns import ClientTurns, send_ahead_depth
from areal_x.process_pool.worker_link import WorkerLink
from areal_x.process_pool.zygote_link import ZygoteLink, wait_for_exit

__all__ = ["ProcessPool"]

_logger = logging.getLogger("areal_x.process_pool")
_MAX_ATTEMPTS, _MAX_FAILED_STARTS, _MAX_HELPER_DEATHS = 2, 8, 3


class ProcessPool:
    """Runs synchronous functions in killable worker processes.

    Args:
        num_workers: worker processes. Default: one for each core this process may use, eight at most.
        memory_limit_bytes: address space that one worker may take, above what the imported modules take.
        process_limit: processes and threads that one worker may have.
        import_timeout_seconds: how long loading one function's modules may take.
    """

    def __init__(
        self,
        num_workers: int | None = None,
        memory_limit_bytes: int = 4 << 30,
        process_limit: int = 64,
        import_timeout_seconds: float = 120.0,
    ) -> None:
        if num_workers is not None and num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}")
        self.num_workers = num_workers or min(len(os.sched_getaffinity(0)), 8)
        self.memory_limit_bytes = memory_limit_bytes
        self.process_limit = process_limit
        self.import_timeout_seconds = import_timeout_seconds
        self.num_spawned = self.num_retried = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._zygote: ZygoteLink | None = None
        self._workers: dict[int, WorkerLink] = {}
        self._idle: list[WorkerLink] = []
        self._turns = ClientTurns()
        self._registry = FunctionRegistry()
        self._stale: set[int] = set()
        self._forked_before: dict[int, int] = {}
        """The last worker that was requested before each function was: it and older ones do not know the function."""
        self._next_call = self._next_worker = self._failed_starts = self._helper_deaths = 0
        self._closing = False
        self._broken: str | None = None
        self._default_client = PoolClient()

    async def __aenter__(self) -> ProcessPool:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Bind to the running loop and start the helper process. Safe to call twice."""
        loop = asyncio.get_running_loop()
        if self._loop is loop and not self._closing:
            return
        if self._closing:
            raise PoolClosedError("the process pool is closed")
        if self._loop is not None:
            raise PoolError("the process pool belongs to another event loop; make one pool for each loop")
        if sys.platform != "linux":
            raise PoolError(f"the process pool needs Linux (pidfd, prctl), this is {sys.platform}")
        self._loop = loop
        self._zygote = ZygoteLink(loop, self._on_reply, self._on_zygote_death)
        abandon_in_forked_children(self)

    async def register(self, function: Callable[..., Any]) -> RegisteredFunction:
        """Import the function's module in the helper process, once; calls of it need no import any more.

        Workers that were forked before are replaced as they become free.

        Raises:
            FunctionTransferError: it cannot be sent (a lambda, a closure), or its module cannot be imported in time.
        """
        await self.start()
        self._check_open()
        assert self._loop is not None
        future, number = self._registry.add(function, self._loop)
        if number is not None:
            self._load(number)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self.import_timeout_seconds)
        except TimeoutError:
            name, seconds = describe_function(function), f"{self.import_timeout_seconds:g} s"
            text = f"importing the module of {name} took more than {seconds} in the helper process"
            raise FunctionTransferError(text) from None

    async def call(
        self,
        function: RegisteredFunction,
        kwargs: dict[str, Any],
        timeout_seconds: float,
        client: PoolClient | None = None,
        int_lists: tuple[str, ...] = (),
    ) -> CallResult:
        """Run one call in a worker; returns how it ended.

        Args:
            function: from ``register``.
            kwargs: arguments by name; pickled when a worker takes the call.
            timeout_seconds: deadline, from the start of the work.
            client: whose queue and share of the workers; default: one without a cap.
            int_lists: names of arguments that are sequences of 32-bit integers and arrive as ``list[int]``.

        Raises:
            PoolClosedError: the pool was closed before the call ended.
            PoolError: the pool's processes are gone for good.
        """
        if self._closing or self._broken is not None or self._loop is None:
            self._check_open()
        assert self._loop is not None
        future: asyncio.Future[CallResult] = self._loop.create_future()
        call = Call(client or self._default_client, function, kwargs, timeout_seconds, int_lists, future)
        self._turns.add(call)
        if self._idle:
            self._feed_idle()
        elif not self._workers:
            self._spawn_missing()
        try:
            return await future
        except asyncio.CancelledError:
            for worker in self._workers.values():
                worker.cancelled(call, time.monotonic())
            raise

    async def warm_up(self) -> None:
        """Fork the workers now, not at the first call."""
        await self.start()
        self._spawn_missing()
        self._check_open()

    async def close(self) -> None:
        """Kill all workers, end the helper process and release every descriptor. Calls that have not ended get
        ``PoolClosedError``. Safe to call twice."""
        already, self._closing = self._closing, True
        if already or self._loop is None:
            return
        self._fail_everything(PoolClosedError("the process pool was closed before the call ended"))
        pidfds = []
        for worker in self._workers.values():
            worker.kill("closed")
            pidfds.append(worker.take_pidfd())
            worker.close()
        self._workers.clear()
        self._idle.clear()
        forget(self)
        if self._zygote is not None:
            await self._zygote.close()
        for pidfd in pidfds:
            if pidfd is not None:
                await wait_for_exit(self._loop, pidfd)

    def process_ids(self) -> list[int]:
        """The helper's process id; all other processes descend from it."""
        return [self._zygote.pid] if self._zygote is not None else []

    def _load(self, number: int) -> None:
        assert self._zygote is not None
        self._forked_before[number] = self._next_worker
        self._zygote.register(number, self._registry.payload(number))

    def _check_open(self) -> None:
        if self._closing:
            raise PoolClosedError("the process pool is closed")
        if self._broken is not None:
            raise PoolError(self._broken)
        if self._loop is None:
            raise PoolError("the process pool has not been started")

    def _spawn_missing(self) -> None:
        while self._broken is None and len(self._workers) < self.num_workers:
            self._spawn()

    def _spawn(self) -> None:
        assert self._loop is not None and self._zygote is not None
        self._next_worker += 1
        self.num_spawned += 1
        try:
            worker = self._workers[self._next_worker] = WorkerLink(self._next_worker, self._loop, self)
            self._zygote.spawn(worker.number, self.memory_limit_bytes, self.process_limit, worker.child_descriptors)
        except OSError as error:
            self._break(f"cannot start a worker process: {error}")

    def worker_ready(self, worker: WorkerLink) -> None:
        self._failed_starts = self._helper_deaths = 0

    def worker_drained(self, worker: WorkerLink) -> None:
        if worker.number not in self._stale:
            self._feed(worker)
        elif not worker.pending:
            worker.kill("replaced")

    def _feed(self, worker: WorkerLink) -> None:
        if not worker.usable:
            return
        pending = worker.pending
        while True:
            if pending and len(pending) >= send_ahead_depth(pending[0]):
                return
            call = self._turns.take()
            if call is None:
                break
            if pending and len(pending) >= send_ahead_depth(call):
                self._turns.put_back(call)
                return
            if call.payload is None and not self._encode(call):
                continue
            assert call.payload is not None
            try:
                sent = worker.send(call, call.payload, time.monotonic())
            except OSError as error:  # No descriptor or no memory is left for a large payload.
                self._finish(call, unsendable_result(call, error))
                continue
            if not sent:
                self._turns.put_back(call)
                return
        if not pending and worker not in self._idle:
            self._idle.append(worker)

    def _encode(self, call: Call) -> bool:
        self._next_call += 1
        refused = encode_arguments(call, self._next_call)
        if refused is not None:
            self._finish(call, refused)
        return refused is None

    def _finish(self, call: Call, result: CallResult) -> None:
        self._turns.release(call.client)
        if not call.future.done():
            call.future.set_result(result)

    def worker_finished(self, worker: WorkerLink, call: Call, result: CallResult, left_processes: bool) -> None:
        function = call.function
        weight = 0.1 if function.mean_seconds < 0.1 else 0.5
        function.mean_seconds += (result.seconds - function.mean_seconds) * weight
        if result.output:
            _logger.debug("%s printed: %s", function.name, result.output)
        self._finish(call, result)
        if left_processes and worker.killed_for is None:
            worker.take_back()
            self._stale.add(worker.number)
            if not worker.pending:
                worker.kill("replaced")

    def calls_taken_back(self, calls: list[Call]) -> None:
        for call in reversed(calls):
            self._turns.put_back(call)
        self._feed_idle()

    def _feed_idle(self) -> None:
        while self._idle and self._turns:
            self._feed(self._idle.pop())

    def _worker_exited(self, worker: WorkerLink, status: int | None) -> None:
        worker.read_last_results()
        self._remove(worker)
        self._settle_all(worker, status)
        if not worker.ready and worker.killed_for != "replaced":
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                self._break(f"{_MAX_FAILED_STARTS} worker processes in a row died at their start (status {status})")
                return
        self._spawn()
        self._feed_idle()

    def _remove(self, worker: WorkerLink) -> None:
        del self._workers[worker.number]
        self._stale.discard(worker.number)
        if worker in self._idle:
            self._idle.remove(worker)
        worker.close()

    def _settle_all(self, worker: WorkerLink, status: int | None) -> None:
        """The first of a gone worker's calls is to blame; those behind it never ran and go back to their queues."""
        pending = list(worker.pending)
        worker.pending.clear()
        for call in reversed(pending[1:]):
            self._turns.put_back(call)
        if pending:
            self._settle(worker, pending[0], status)

    def _settle(self, worker: WorkerLink, call: Call, status: int | None) -> None:
        if worker.killed_for in ("timeout", "cancelled"):
            self._finish(call, timeout_result(call, worker.head_started))
        elif call.attempts < _MAX_ATTEMPTS and not call.future.done():
            call.attempts += 1
            self.num_retried += 1
            self._turns.put_back(call)
        else:
            self._finish(call, crash_result(call, worker.head_started, status))

    def _on_reply(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        kind, *arguments = message
        if kind == "spawned":
            worker = self._workers.get(arguments[0])
            if worker is None:
                os.close(descriptors[0])
            else:
                worker.spawned(descriptors[0], arguments[1])
        elif kind == "exited":
            worker = self._workers.get(arguments[0])
            if worker is not None:
                self._worker_exited(worker, arguments[1])
        elif kind == "registered":
            self._on_registered(*arguments)
        elif kind == "spawn_failed":
            self._break(f"cannot fork a worker process: {arguments[1]}")

    def _on_registered(self, number: int, error: tuple[str, str] | None, num_threads: int, threads: list[str]) -> None:
        if not self._registry.loaded(number, error, num_threads, threads):
            return
        for worker in self._workers.values():
            if worker.number <= self._forked_before[number]:
                self._stale.add(worker.number)
                if worker.ready and not worker.pending:
                    worker.kill("replaced")
        self._idle = [worker for worker in self._idle if worker.usable]

    def _on_zygote_death(self) -> None:
        """The helper died, and its guardians and their workers with it: start another, run again what was running."""
        assert self._zygote is not None and self._loop is not None
        reason = f"the pool's helper process died: {self._zygote.exit_reason()}"
        self._registry.fail_loading(FunctionTransferError(f"{reason} (while it imported modules)"))
        self._helper_deaths += 1
        if self._helper_deaths >= _MAX_HELPER_DEATHS:
            self._break(reason)
            return
        _logger.warning("process pool: %s; starting another", reason)
        workers = list(self._workers.values())
        for worker in workers:
            worker.kill("lost")
            worker.read_last_results()
            self._remove(worker)
            self._settle_all(worker, None)
        try:
            self._zygote = ZygoteLink(self._loop, self._on_reply, self._on_zygote_death)
        except OSError as error:
            self._break(f"{reason}, and another cannot be started: {error}")
            return
        for number in self._registry.loaded_numbers():
            self._load(number)
        if workers:
            self._spawn_missing()

    def _break(self, reason: str) -> None:
        if self._closing or self._broken is not None:
            return
        self._broken = reason
        _logger.error("process pool: %s", reason)
        self._fail_everything(PoolError(reason))
        for worker in self._workers.values():
            worker.kill("closed")
            worker.close()
        self._workers.clear()
        self._idle.clear()

    def _fail_everything(self, error: PoolError) -> None:
        self._registry.fail_loading(error)
        running = [call for worker in self._workers.values() for call in worker.pending]
        for call in running + self._turns.clear(running):
            if not call.future.done():
                call.future.set_exception(type(error)(*error.args))

    def abandon(self) -> None:
        """In a forked child: the descriptors belong to the parent, and a copy would keep the helper alive after it."""
        self._closing = True
        for worker in self._workers.values():
            worker.abandon()
        if self._zygote is not None:
            self._zygote.abandon()
