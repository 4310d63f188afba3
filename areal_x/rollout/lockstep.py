"""Synchronous rounds: runs with one seed repeat bitwise.

What an episode samples must not depend on who happens to be quicker, so requests are sent in rounds. Each live
episode either waits in ``agenerate`` or does something else (a reward, a tool, a judge). A round is sent when **all**
live episodes wait. It is one batch, ordered by group, index in the group and turn, and each request has a seed that
is a function of the run's seed and of that place.

It cannot deadlock. A live episode that does not wait is running, so it will wait, end, or be ended by its deadline;
each of these calls for another look. A round that was sent always answers all its requests, with a response or an
error.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from areal_x.api.engine_api import InferenceEngine
from areal_x.api.errors import EngineError, RequestError
from areal_x.api.records import ModelRequest, ModelResponse
from areal_x.rollout.episode import Episode

__all__ = ["Lockstep", "LockstepGenerator", "request_seed"]


def request_seed(run_seed: int, group_id: int, index: int, turn: int) -> int:
    """The seed of one request, in [0, 2**63): the same in every run with this seed, and unlike all others."""
    digest = hashlib.blake2b(f"{run_seed}/{group_id}/{index}/{turn}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(slots=True, eq=False)
class _Waiting:
    episode: Episode
    turn: int
    request: ModelRequest
    response: asyncio.Future[ModelResponse]

    @property
    def place(self) -> tuple[int, int, int]:
        return (self.episode.group.group_id, self.episode.index, self.turn)


class Lockstep:
    """Collects the requests of all live episodes and sends them as one batch.

    Args:
        engine: sends the batch.
        run_seed: the run's seed.
        on_change: called when an episode begins to wait; the owner then calls ``send_round_if_complete`` after it has
            started whatever episodes it wants in the round.
    """

    def __init__(self, engine: InferenceEngine, run_seed: int, on_change: Callable[[], None]) -> None:
        self._engine = engine
        self._run_seed = run_seed
        self._on_change = on_change
        self._waiting: list[_Waiting] = []
        self._num_live = 0
        self._round: asyncio.Task[None] | None = None

    def on_episode_started(self) -> None:
        """An episode is live from now on."""
        self._num_live += 1

    def on_episode_ended(self, episode: Episode) -> None:
        """The episode is not live any more; requests that its workflow left behind are refused."""
        self._num_live -= 1
        for waiting in [waiting for waiting in self._waiting if waiting.episode is episode]:
            self._waiting.remove(waiting)
            if not waiting.response.done():
                waiting.response.set_exception(_episode_is_over(episode))

    def is_waiting(self, episode: Episode) -> bool:
        """Whether the episode waits for a round that has not been sent."""
        return any(waiting.episode is episode for waiting in self._waiting)

    def send_round_if_complete(self) -> None:
        """Send the round if every live episode waits."""
        if self._waiting and len({id(waiting.episode) for waiting in self._waiting}) == self._num_live:
            batch, self._waiting = sorted(self._waiting, key=lambda waiting: waiting.place), []
            self._round = asyncio.get_running_loop().create_task(self._run_round(batch), name="lockstep round")

    async def agenerate(self, episode: Episode, request: ModelRequest) -> ModelResponse:
        """Wait for the round, and for the response to ``request`` in it.

        Raises:
            RequestError: the episode is over. A workflow can outlive it, by catching the cancellation at its deadline.
                Its requests must not join a round, which is complete when all *live* episodes wait.
        """
        if episode.finished_at:
            raise _episode_is_over(episode)
        turn = episode.num_turns
        episode.num_turns += 1
        if request.sampling.seed is None:
            seed = request_seed(self._run_seed, episode.group.group_id, episode.index, turn)
            request.sampling = replace(request.sampling, seed=seed)
        future = asyncio.get_running_loop().create_future()
        waiting = _Waiting(episode, turn, request, future)
        self._waiting.append(waiting)
        self._on_change()
        try:
            return await future
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            raise

    async def stop(self) -> None:
        """Cancel the round under way."""
        if self._round is not None and not self._round.done():
            self._round.cancel()
            await asyncio.wait([self._round])

    async def _run_round(self, batch: list[_Waiting]) -> None:
        for order, waiting in enumerate(batch):
            waiting.request.order = order
        try:
            results = await self._engine.agenerate_batch([waiting.request for waiting in batch])
            if len(results) != len(batch):
                raise EngineError(f"the engine answered {len(results)} of a batch of {len(batch)} requests")
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.response.cancel()
            raise
        except (
            Exception
        ) as error:  # the round's boundary: whatever broke the batch reaches every episode that waits for it
            for waiting in batch:
                if not waiting.response.done():
                    waiting.response.set_exception(error)
            return
        for waiting, result in zip(batch, results, strict=True):
            if waiting.response.done():
                continue
            if isinstance(result, ModelResponse):
                waiting.response.set_result(result)
            else:
                waiting.response.set_exception(result)


def _episode_is_over(episode: Episode) -> RequestError:
    return RequestError(f"episode {episode.episode_id} is over; its workflow must not generate any more")


class LockstepGenerator:
    """The ``Generator`` that one episode's workflow gets in a synchronous run."""

    __slots__ = ("_episode", "_lockstep")

    def __init__(self, lockstep: Lockstep, episode: Episode) -> None:
        self._lockstep = lockstep
        self._episode = episode

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """See ``Generator.agenerate``."""
        episode = self._episode
        if request.session_id is None:
            request.session_id = episode.episode_id
        response = await self._lockstep.agenerate(episode, request)
        episode.generations.append((response.started_at, response.finished_at))
        return response
