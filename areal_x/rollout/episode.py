"""One episode in flight, the generator that its workflow sees, and the record that it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from areal_x.api.engine_api import InferenceEngine
from areal_x.api.records import ModelRequest, ModelResponse, Trajectory

if TYPE_CHECKING:
    from areal_x.rollout.groups import PendingGroup

__all__ = ["EngineTraffic", "Episode", "EpisodeEnd", "EpisodeGenerator", "EpisodeRecord"]

EpisodeEnd = Literal["trained", "rejected", "failed", "cancelled"]


class Episode:
    """The state of one episode. ``trajectories`` is set when it ended well, ``end`` when it reached its one end."""

    __slots__ = (
        "deadline",
        "end",
        "finished_at",
        "generations",
        "group",
        "index",
        "num_turns",
        "reason",
        "started_at",
        "task",
        "trajectories",
    )

    def __init__(self, group: PendingGroup, index: int, started_at: float) -> None:
        self.group = group
        self.index = index
        self.started_at = started_at
        self.finished_at = 0.0
        self.deadline = 0.0
        self.task: asyncio.Task[Trajectory | list[Trajectory] | None] | None = None
        self.trajectories: list[Trajectory] | None = None
        self.reason: str | None = None
        """Of ``end``, where there is one."""
        self.end: EpisodeEnd | None = None
        self.num_turns = 0
        self.generations: list[tuple[float, float]] = []

    @property
    def episode_id(self) -> str:
        """``<group>-<index in the group>``, unique in the run."""
        return f"{self.group.group_id}-{self.index}"

    @property
    def runs_again(self) -> bool:
        """Of an episode of a run that was resumed: whether nothing is left of it."""
        return self.end is None and self.trajectories is None


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """How one episode ended. All times are ``time.monotonic()`` seconds.

    ``generations`` holds start and end of each completion as the engine reported them, ``scoring`` of the reward's work
    when the trajectory carries its outcome. ``reason`` is set for rejected and failed episodes.
    """

    episode_id: str
    group_id: int
    end: EpisodeEnd
    reason: str | None
    started_at: float
    finished_at: float
    generations: tuple[tuple[float, float], ...]
    scoring: tuple[float, float] | None


class EngineTraffic:
    """Counts the requests inside the engine, so that admission can keep its slots full and its queue short."""

    __slots__ = ("engine", "num_requests", "on_request_done")

    def __init__(self, engine: InferenceEngine, on_request_done: Callable[[], None]) -> None:
        self.engine = engine
        self.num_requests = 0
        self.on_request_done = on_request_done


class EpisodeGenerator:
    """The ``Generator`` that one episode's workflow gets: the engine, with the episode's name on each request."""

    __slots__ = ("_episode", "_traffic")

    def __init__(self, traffic: EngineTraffic, episode: Episode) -> None:
        self._traffic = traffic
        self._episode = episode

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """See ``Generator.agenerate``."""
        traffic, episode = self._traffic, self._episode
        if request.session_id is None:
            request.session_id = episode.episode_id
        episode.num_turns += 1
        traffic.num_requests += 1
        try:
            response = await traffic.engine.agenerate(request)
        finally:
            traffic.num_requests -= 1
            traffic.on_request_done()
        episode.generations.append((response.started_at, response.finished_at))
        return response
