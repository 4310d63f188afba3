"""Ranks as actors of a Ray cluster.

Loop of a call: puts the arguments into Ray's object store once, sends the order to all actors and collects their
outcomes; waits for answers and for the end of an actor until one deadline; produces the results in the order of ranks.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from areal_x.api.errors import EngineDiedError
from areal_x.engine.ranks.rank_actor import RankActor, RankPlace, read_tail
from areal_x.engine.ranks.rank_group import RankGroup
from areal_x.engine.ranks.rank_host import Outcome, raised_alike

__all__ = ["RankBundle", "RayRanks"]

_OTHERS_SECONDS = 10.0
"""Once one rank has raised, the others raise the same at about the same time, or they wait for it in vain."""
_TAIL_SECONDS = 8.0
_STACKS_SECONDS = 1.0
_CLOSE_SECONDS = 30.0


@dataclass(frozen=True)
class RankBundle:
    """Where one rank runs: a bundle of a placement group, with ``num_gpus`` GPUs (0 or 1), on the node ``node_id``."""

    group: PlacementGroup
    index: int
    num_gpus: int
    node_id: str


class RayRanks(RankGroup):
    """Starts the ranks; returns when they have joined. They end with ``close``, and with the process that made this.

    Args:
        bundles: of each rank.
        driver_node: the node of this process.
        num_threads: of each rank on a CPU.
        sequence_parallel: neighbours that share each micro-batch; divides the number of ranks.
        timeout_seconds: every call, and the start, may take so long.
        log_dir: what rank N prints is added to ``rank<N>.log`` there, on the driver's node; elsewhere to a file in that
            node's folder for temporary files.

    Raises:
        EngineDiedError: a rank ended, or did not join.
    """

    def __init__(
        self,
        bundles: Sequence[RankBundle],
        *,
        driver_node: str,
        num_threads: int = 1,
        sequence_parallel: int = 1,
        timeout_seconds: float = 600.0,
        log_dir: Path,
    ) -> None:
        self._bundles = bundles
        self._driver_node = driver_node
        self._timeout = timeout_seconds
        self._logs: dict[int, str] = {}
        self._death: EngineDiedError | None = None
        self._state = threading.Lock()
        """Of ``_death`` and ``_is_closed``: whoever sees a death first says what it was."""
        self._is_closed = False
        self._actors: list[Any] = []
        try:
            for rank, bundle in enumerate(bundles):
                own_log = log_dir / f"rank{rank}.log" if bundle.node_id == driver_node else None
                self._actors.append(_start(bundle, rank, num_threads, own_log))
            places = self._ask("start", [(actor, "place", ()) for actor in self._actors])
            self._join(places, sequence_parallel)
        except BaseException:
            self.close()
            raise

    def _join(self, places: Sequence[RankPlace], sequence_parallel: int) -> None:
        self._logs = {rank: place.log_path for rank, place in enumerate(places)}
        self.pids = [place.pid for place in places]
        one_node = len({bundle.node_id for bundle in self._bundles}) == 1
        # One machine needs no way out of it; on several, ranks meet at the address of the first one's node.
        host = "127.0.0.1" if one_node else places[0].address
        device = "cuda" if self._bundles[0].num_gpus else "cpu"
        (address,) = self._ask("opening the store", [(self._actors[0], "open_store", (host, self._timeout))])
        join = (self.num_ranks, device, address, self._timeout, sequence_parallel, one_node)
        self._ask("join", [(actor, "join", join) for actor in self._actors])

    @property
    def num_ranks(self) -> int:
        """See ``RankGroup.num_ranks``."""
        return len(self._bundles)

    @property
    def same_host(self) -> bool:
        """See ``RankGroup.same_host``."""
        return all(bundle.node_id == self._driver_node for bundle in self._bundles)

    def build(self, role: str, factory: str, kwargs: Mapping[str, Any]) -> None:
        """See ``RankGroup.build``."""
        order = (role, factory, dict(kwargs))
        self._ask(f"making {role}", [(actor, "build", order) for actor in self._actors])

    def call(self, role: str, method: str, *args: Any, per_rank: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """See ``RankGroup.call``."""
        if per_rank is None:
            # Once for all ranks; those of one node map the same memory.
            shared = ray.put(args) if args else ()
            own: Sequence[Any] = [shared] * self.num_ranks
        else:
            own = per_rank
        orders = [(actor, "call", (role, method, its)) for actor, its in zip(self._actors, own, strict=True)]
        return self._ask(f"{role}.{method}", orders)

    def watch(self) -> None:
        """See ``RankGroup.watch``."""
        # A method that never returns, on a thread of its own: its answer is there when the actor is gone.
        rank_of = {actor.until_the_end.remote(): rank for rank, actor in enumerate(self._actors)}
        ended = ray.wait(list(rank_of), num_returns=1)[0][0]
        if self._is_closed:
            return
        try:
            ray.get(ended)
        except RayActorError as error:
            raise self._died("while the run went on", {rank_of[ended]: error}) from error

    def close(self) -> None:
        """See ``RankGroup.close``."""
        with self._state:
            self._is_closed = True
            self._death = self._death or EngineDiedError("the ranks were closed")
        self._kill()

    def _kill(self) -> None:
        for actor in self._actors:
            # The connection to the cluster may be gone, and with it the actors.
            with suppress(RayError, RuntimeError):
                ray.kill(actor)

    def _ask(self, what: str, orders: Sequence[tuple[Any, str, tuple[Any, ...]]]) -> list[Any]:
        """Send each order; returns the values of their outcomes in the same order."""
        if self._death is not None:
            raise EngineDiedError(str(self._death), self._death.tail)
        answers = [getattr(actor, method).remote(*args) for actor, method, args in orders]
        outcomes, gone = self._collect(answers)
        if self._is_closed:
            raise EngineDiedError(f"the ranks were closed while {what} ran")
        if gone:
            raise self._died(f"in {what}", gone)
        raised = {rank: outcome.error for rank, outcome in sorted(outcomes.items()) if outcome.error is not None}
        silent = [rank for rank in range(len(answers)) if rank not in outcomes]
        if not silent:
            if not raised:
                return [outcomes[rank].value for rank in range(len(answers))]
            alike = raised_alike([outcomes[rank] for rank in range(len(answers))])
            if alike is not None:
                raise alike
        if raised:
            rank, error = next(iter(raised.items()))
            message = f"rank {rank} of {self.num_ranks} raised {type(error).__name__} in {what}, and not all others did"
            raise self._die(f"{message}: {error}", [rank]) from error
        self._print_stacks(silent)
        numbers = ", ".join(map(str, silent))
        waited = f"no answer within {self._timeout:g} s (train.rank_timeout_seconds)"
        raise self._die(f"{what}: {waited} of rank {numbers} of {self.num_ranks}", silent)

    def _collect(self, answers: Sequence[Any]) -> tuple[dict[int, Outcome], dict[int, RayActorError]]:
        """Outcomes by rank, and ranks whose actors ended; returns when all came, one ended or time is up."""
        rank_of = {answer: rank for rank, answer in enumerate(answers)}
        pending = list(answers)
        outcomes: dict[int, Outcome] = {}
        limit = time.monotonic() + self._timeout
        while pending:
            ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, limit - time.monotonic()))
            if not ready:
                return outcomes, {}
            try:
                outcome: Outcome = ray.get(ready[0])
            except RayActorError as error:
                return outcomes, {rank_of[ready[0]]: error}
            # A copy that the caller may write to, and that holds nothing in Ray's store.
            outcomes[rank_of[ready[0]]] = Outcome(copy.deepcopy(outcome.value), outcome.error)
            if outcome.error is not None:
                limit = min(limit, time.monotonic() + _OTHERS_SECONDS)
        return outcomes, {}

    def _print_stacks(self, ranks: Sequence[int]) -> None:
        """Have ranks print where they are. They do so even in the middle of a call, unless they are stopped."""
        asked = [self._actors[rank].print_stacks.remote() for rank in ranks]
        ray.wait(asked, num_returns=len(asked), timeout=_STACKS_SECONDS)

    def _died(self, when: str, gone: Mapping[int, RayActorError]) -> EngineDiedError:
        """The error of ranks whose actors have ended."""
        ways = "; ".join(f"rank {rank} of {self.num_ranks} {how_it_ended(error)}" for rank, error in gone.items())
        return self._die(f"{ways} {when}", list(gone))

    def _die(self, message: str, witnesses: Sequence[int]) -> EngineDiedError:
        """Stop all ranks; the error to raise, with the last lines of ``witnesses``."""
        with self._state:
            if self._death is None:
                tails = {rank: self._tail(rank) for rank in witnesses}
                lines = "".join(
                    f"\nlast lines of rank {rank} ({self._logs.get(rank, 'no log')}):\n{text or '(it printed nothing)'}"
                    for rank, text in tails.items()
                )
                self._death = EngineDiedError(f"{message}; all ranks are stopped{lines}", "\n".join(tails.values()))
            death = self._death
        self._kill()
        return EngineDiedError(str(death), death.tail)

    def _tail(self, rank: int) -> str:
        """The last lines of a rank, read on its node."""
        node, path = self._bundles[rank].node_id, self._logs.get(rank, "")
        if node == self._driver_node or not path:
            return read_tail(path)
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        reader = ray.remote(num_cpus=0)(read_tail).options(scheduling_strategy=there)
        try:
            text: str = ray.get(reader.remote(path), timeout=_TAIL_SECONDS)
        except RayError:
            return "(its node does not answer)"
        return text


def how_it_ended(error: RayActorError) -> str:
    """What Ray says about the end of an actor, in one line."""
    text = " ".join(str(error).split())
    for sign, words in (
        ("running low on memory", "was killed by Ray: its node was short of memory"),
        ("node was terminated", "was lost with its node"),
        ("node has died", "was lost with its node"),
        ("node is dead", "was lost with its node"),
        ("connection error code", "was killed or crashed (was its machine short of memory?)"),
    ):
        if sign in text:
            return words
    return f"ended ({text[-400:]})"


def _start(bundle: RankBundle, rank: int, num_threads: int, log_path: Path | None) -> Any:
    strategy = PlacementGroupSchedulingStrategy(bundle.group, placement_group_bundle_index=bundle.index)
    make: Any = ray.remote  # Its types do not know groups of threads.
    actor = make(concurrency_groups={"watch": 2})(RankActor).options(
        num_cpus=1,
        num_gpus=bundle.num_gpus,
        max_restarts=0,
        scheduling_strategy=strategy,
    )
    return actor.remote(rank, num_threads, None if log_path is None else str(log_path.absolute()))
