"""Ranks as processes of this machine.

Loop of a call: sends the order to all ranks at once and collects their outcomes; waits for bytes, for the end of a
process and for ``close``, all together and until one deadline; produces the results in the order of ranks.
"""

from __future__ import annotations

import os
import selectors
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from areal_x.api.errors import EngineDiedError
from areal_x.engine.ranks.exchange import Exchange
from areal_x.engine.ranks.join import open_store
from areal_x.engine.ranks.rank_channel import encode
from areal_x.engine.ranks.rank_group import RankGroup
from areal_x.engine.ranks.rank_host import raised_alike
from areal_x.engine.ranks.rank_main import JoinOrder
from areal_x.engine.ranks.rank_process import RankProcess

__all__ = ["LocalRanks"]

_STACKS_SECONDS = 0.5
_CLOSE_SECONDS = 30.0


class LocalRanks(RankGroup):
    """Starts the ranks; returns when they have joined. They end with ``close`` and with this process.

    Args:
        num_ranks: processes, each with a device of its own.
        device: ``cpu`` or ``cuda``.
        num_threads: of each rank on a CPU.
        sequence_parallel: neighbours that share each micro-batch; divides ``num_ranks``.
        timeout_seconds: every call, and the start, may take so long.
        log_dir: what rank N prints is added to ``rank<N>.log`` there. Default: files without a name.
        gpus: the GPU of each rank, counted among those that this process sees; of no use on a CPU.

    Raises:
        EngineDiedError: a rank ended, or did not join.
    """

    def __init__(
        self,
        num_ranks: int,
        *,
        device: str = "cpu",
        num_threads: int = 1,
        sequence_parallel: int = 1,
        timeout_seconds: float = 600.0,
        log_dir: Path | None = None,
        gpus: Sequence[int] = (),
    ) -> None:
        self._timeout = timeout_seconds
        self._store = open_store(timeout_seconds)
        self._death: EngineDiedError | None = None
        self._state = threading.Lock()
        """Of ``_death`` and ``_is_closed``: whoever sees a death first says what it was."""
        self._calling = threading.Lock()
        self._is_closed = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._ranks: list[RankProcess] = []
        try:
            for rank in range(num_ranks):
                gpu = None if device == "cpu" else gpus[rank]
                log_path = None if log_dir is None else log_dir / f"rank{rank}.log"
                self._ranks.append(RankProcess(rank, _variables(num_threads, gpu), log_path))
            address = f"{self._store.host}:{self._store.port}"
            orders = [
                JoinOrder(rank, num_ranks, device, address, timeout_seconds, sequence_parallel, num_threads)
                for rank in range(num_ranks)
            ]
            self._ask("join", [encode(order) for order in orders])
        except BaseException:
            self.close()
            raise

    @property
    def num_ranks(self) -> int:
        """See ``RankGroup.num_ranks``."""
        return len(self._ranks)

    @property
    def same_host(self) -> bool:
        """See ``RankGroup.same_host``."""
        return True

    @property
    def pids(self) -> list[int]:
        """Process ids in the order of ranks."""
        return [rank.pid for rank in self._ranks]

    def build(self, role: str, factory: str, kwargs: Mapping[str, Any]) -> None:
        """See ``RankGroup.build``."""
        self._ask(f"making {role}", [encode(("build", (role, factory, dict(kwargs))))] * self.num_ranks)

    def call(self, role: str, method: str, *args: Any, per_rank: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """See ``RankGroup.call``."""
        if per_rank is None:
            frames = [encode(("call", (role, method, args)))] * self.num_ranks
        else:
            frames = [encode(("call", (role, method, own))) for own in per_rank]
        return self._ask(f"{role}.{method}", frames)

    def watch(self) -> None:
        """See ``RankGroup.watch``."""
        with self._state:
            if self._wake < 0:
                return
            # Its own descriptors, which ``close`` does not take away from under it.
            watched = [os.dup(end) for end in (self._wake, *(rank.sentinel for rank in self._ranks))]
        try:
            with selectors.DefaultSelector() as selector:
                for end in watched:
                    selector.register(end, selectors.EVENT_READ)
                selector.select()
        finally:
            for end in watched:
                os.close(end)
        if not self._is_closed:
            raise self._died("while the run went on")

    def close(self) -> None:
        """See ``RankGroup.close``."""
        with self._state:
            self._is_closed = True
            self._death = self._death or EngineDiedError("the ranks were closed")
            if self._wake < 0:
                return
            os.eventfd_write(self._wake, 1)
        for rank in self._ranks:
            rank.kill()
        # A call that is under way ends now; what it looks at is freed after it.
        if not self._calling.acquire(timeout=_CLOSE_SECONDS):
            return
        try:
            with self._state:
                for rank in self._ranks:
                    rank.end()
                if self._wake >= 0:
                    os.close(self._wake)
                    self._wake = -1
        finally:
            self._calling.release()

    def _ask(self, what: str, frames: Sequence[Sequence[memoryview]]) -> list[Any]:
        """Send each rank its frame; returns the values of their outcomes in the order of ranks."""
        with self._calling:
            if self._death is not None:
                raise EngineDiedError(str(self._death), self._death.tail)
            exchange = Exchange(self._ranks, frames, self._wake)
            try:
                exchange.run(time.monotonic() + self._timeout)
                return self._values(what, exchange)
            except EngineDiedError:
                raise
            except BaseException:
                if exchange.silent:
                    # Interrupted: what ranks answer later would be taken for the answer to the next call.
                    self._die(f"the call of {what} was interrupted")
                raise

    def _values(self, what: str, exchange: Exchange) -> list[Any]:
        if exchange.was_woken:
            raise EngineDiedError(f"the ranks were closed while {what} ran")
        if exchange.has_ended:
            raise self._died(f"in {what}")
        raised = {rank: outcome.error for rank, outcome in sorted(exchange.outcomes.items()) if outcome.error}
        if not exchange.silent:
            outcomes = [exchange.outcomes[rank] for rank in range(self.num_ranks)]
            if not raised:
                return [outcome.value for outcome in outcomes]
            alike = raised_alike(outcomes)
            if alike is not None:
                raise alike
        if raised:
            rank, error = next(iter(raised.items()))
            raise self._die(
                f"rank {rank} of {self.num_ranks} raised {type(error).__name__} in {what}, and not all others did: "
                f"{error}",
                self._ranks[rank],
            ) from error
        raise self._unanswered(what, exchange.silent)

    def _died(self, when: str) -> EngineDiedError:
        """The error of ranks whose processes have ended."""
        ended = {rank.rank: how for rank in self._ranks if (how := rank.how_it_ended())}
        ways = "; ".join(f"rank {rank} of {self.num_ranks} {how}" for rank, how in ended.items())
        return self._die(f"{ways} {when}", self._ranks[next(iter(ended))])

    def _unanswered(self, what: str, silent: Sequence[RankProcess]) -> EngineDiedError:
        for rank in silent:
            rank.print_stacks()
        time.sleep(_STACKS_SECONDS)
        numbers = ", ".join(str(rank.rank) for rank in silent)
        return self._die(
            f"{what}: no answer within {self._timeout:g} s (train.rank_timeout_seconds) of rank {numbers} of "
            f"{self.num_ranks}",
            *silent,
        )

    def _die(self, message: str, *witnesses: RankProcess) -> EngineDiedError:
        """Stop all ranks; the error to raise, with the last lines of ``witnesses``."""
        with self._state:
            if self._death is None:
                tails = {rank: rank.tail() for rank in witnesses}
                tail = "\n".join(tails.values())
                lines = "".join(
                    f"\nlast lines of rank {rank.rank}{_place(rank.log_path)}:\n{text or '(it printed nothing)'}"
                    for rank, text in tails.items()
                )
                self._death = EngineDiedError(f"{message}; all ranks are stopped{lines}", tail)
            death = self._death
        for rank in self._ranks:
            rank.kill()
        return EngineDiedError(str(death), death.tail)


def _place(log_path: Path | None) -> str:
    return "" if log_path is None else f" ({log_path})"


def _variables(num_threads: int, gpu: int | None) -> dict[str, str]:
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    variables = {"OMP_NUM_THREADS": str(num_threads), "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    if gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        variables["CUDA_VISIBLE_DEVICES"] = visible.split(",")[gpu] if visible else str(gpu)
    return variables
