"""What an executor holds at one moment, as files: a run that stops there goes on with all of it.

    executor ──snapshot──▶ RolloutSnapshot ──write──▶ rollout.json, rollout.npz ──read──▶ RolloutState ──▶ executor

In the snapshot are the number of items drawn, the books, groups that wait for the trainer, and groups of which some
episodes still run. What an episode has finished is kept with its tokens, their log-probabilities and versions; an
episode that runs, or waits for a score of its whole group, runs again.

Taking a snapshot copies what changes later (masks, ends, who holds what) in one pass of the event loop, and takes no
time of the disk; records and arrays are made of it by whoever writes it. Arrays of all trajectories lie end to end.
Records are JSON; what is shared (an outcome of several trajectories) is written once and shared again.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import operator
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from areal_x.api.errors import CheckpointError
from areal_x.api.records import Trajectory, TrajectoryGroup, VersionSpan
from areal_x.api.reward_records import RewardOutcome
from areal_x.rollout.counts import EpisodeCounts
from areal_x.rollout.episode import Episode, EpisodeEnd
from areal_x.rollout.finish_group import is_waiting
from areal_x.rollout.groups import PendingGroup
from areal_x.rollout.ready import ReadyGroup

__all__ = ["RolloutSnapshot", "RolloutState", "read_rollout_state"]

_RECORDS, _ARRAYS = "rollout.json", "rollout.npz"
_TOKEN_ARRAYS = {"input_ids": np.int32, "loss_mask": np.bool_, "logprobs": np.float32}
_OUTCOME_FIELDS = (
    "status",
    "value",
    "parts",
    "metadata",
    "seconds",
    "error",
    "token_rewards",
    "step_rewards",
    "values",
)
_TRAJECTORY_FIELDS = ("stop_reason", "num_turns", "prompt", "completion", "metadata", "group_id", "episode_id")
_values_of_outcome = operator.attrgetter(*_OUTCOME_FIELDS)
_values_of_trajectory = operator.attrgetter(*_TRAJECTORY_FIELDS)


@dataclass
class RolloutState:
    """Where an executor goes on.

    ``open_groups`` have episodes that run again: those without trajectories and without an end.
    """

    next_group_id: int = 0
    num_accepted_groups: int = 0
    num_redraws: int = 0
    """Of the step under way."""
    counts: EpisodeCounts = field(default_factory=EpisodeCounts)
    open_groups: list[PendingGroup] = field(default_factory=list)
    ready: list[ReadyGroup] = field(default_factory=list)
    holes: list[int] = field(default_factory=list)
    """Ids of rejected groups that leave their place in a step empty."""


@dataclass(frozen=True)
class RolloutSnapshot:
    """A copy of a ``RolloutState`` that nothing changes any more."""

    facts: dict[str, Any]
    open_groups: list[_Group]
    ready: list[_ReadyGroup]
    table: _Table
    loss_mask: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, state: RolloutState) -> RolloutSnapshot:
        """Copy ``state``, which may change afterwards, with its trajectories' masks; their ids and log-probabilities
        never do."""
        table = _Table()
        facts = {
            "next_group_id": state.next_group_id,
            "num_accepted_groups": state.num_accepted_groups,
            "num_redraws": state.num_redraws,
            "holes": sorted(state.holes),
            "counts": {
                one.name: copy.copy(getattr(state.counts, one.name)) for one in dataclasses.fields(state.counts)
            },
        }
        open_groups = [_copy_group(pending, table) for pending in state.open_groups]
        ready = [_copy_ready(ready, table) for ready in sorted(state.ready)]
        return cls(facts, open_groups, ready, table, table.array("loss_mask"))

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """All but the arrays, as JSON."""
        return {
            **self.facts,
            "open_groups": [group.record() for group in self.open_groups],
            "ready": [group.record() for group in self.ready],
            "trajectories": self.table.trajectory_records(),
            "outcomes": self.table.outcome_records(),
        }

    @functools.cached_property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Those of all trajectories, end to end."""
        return {name: self.loss_mask if name == "loss_mask" else self.table.array(name) for name in _TOKEN_ARRAYS}

    @property
    def group_ids(self) -> list[int]:
        """Of all groups that are in it."""
        return sorted(group["group_id"] for group in [*self.record["open_groups"], *self.record["ready"]])

    def write(self, folder: Path) -> None:
        """Write the two files into a folder that is there.

        Raises:
            OSError: they cannot be written.
        """
        try:
            text = json.dumps(self.record)
        except TypeError:
            text = json.dumps(_plain(self.record))
        (folder / _RECORDS).write_text(text, encoding="utf-8", errors="backslashreplace")
        with (folder / _ARRAYS).open("wb") as file:
            np.savez(file, allow_pickle=False, **self.arrays)


def read_rollout_state(folder: Path, item_of: Callable[[int], Mapping[str, Any]]) -> RolloutState:
    """Read what ``RolloutSnapshot.write`` wrote.

    Args:
        item_of: the item of a group, by its id.

    Raises:
        CheckpointError: a file is missing, or is not what was written.
    """
    try:
        record = json.loads((folder / _RECORDS).read_text(encoding="utf-8"))
        with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
            trajectories = _read_trajectories(record, {name: arrays[name] for name in arrays.files})
        open_groups = [_read_group(group, trajectories, item_of) for group in record["open_groups"]]
        ready = [_read_ready(group, trajectories, item_of) for group in record["ready"]]
        return RolloutState(
            next_group_id=int(record["next_group_id"]),
            num_accepted_groups=int(record["num_accepted_groups"]),
            num_redraws=int(record["num_redraws"]),
            counts=_read_counts(record["counts"]),
            open_groups=open_groups,
            ready=ready,
            holes=[int(group_id) for group_id in record["holes"]],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{folder}: the state of the rollouts cannot be read: {error}") from error


class _Table:
    """All trajectories and outcomes of a state, each once, by their place in a list."""

    def __init__(self) -> None:
        self._trajectories: list[Trajectory] = []
        self._values: list[tuple[Any, ...]] = []
        self._outcome_places: list[int | None] = []
        self._outcomes: list[tuple[Any, ...]] = []
        self._places: dict[int, int] = {}

    def add_all(self, trajectories: Iterable[Trajectory]) -> list[int]:
        return [self._add(trajectory) for trajectory in trajectories]

    def _add(self, trajectory: Trajectory) -> int:
        place = self._places.get(id(trajectory))
        if place is None:
            place = self._places[id(trajectory)] = len(self._trajectories)
            self._trajectories.append(trajectory)
            self._values.append(_values_of_trajectory(trajectory))
            self._outcome_places.append(self._place_of_outcome(trajectory.outcome))
        return place

    def _place_of_outcome(self, outcome: RewardOutcome | None) -> int | None:
        if outcome is None:
            return None
        place = self._places.get(id(outcome))
        if place is None:
            place = self._places[id(outcome)] = len(self._outcomes)
            self._outcomes.append(_values_of_outcome(outcome))
        return place

    def trajectory_records(self) -> list[dict[str, Any]]:
        return [
            {
                **dict(zip(_TRAJECTORY_FIELDS, values, strict=True)),
                "length": len(trajectory.input_ids),
                "spans": [list(span) for span in trajectory.version_spans],
                "outcome": place,
            }
            for trajectory, values, place in zip(self._trajectories, self._values, self._outcome_places, strict=True)
        ]

    def outcome_records(self) -> list[dict[str, Any]]:
        return [dict(zip(_OUTCOME_FIELDS, values, strict=True)) for values in self._outcomes]

    def array(self, name: str) -> npt.NDArray[Any]:
        parts = [np.empty(0, _TOKEN_ARRAYS[name]), *(getattr(trajectory, name) for trajectory in self._trajectories)]
        return np.concatenate(parts)


class _Group(NamedTuple):
    """A group: of each episode its end, the reason, and the places of its trajectories."""

    group_id: int
    admitted_version: int
    episodes: list[tuple[EpisodeEnd | None, str | None, list[int] | None]]

    def record(self) -> dict[str, Any]:
        names = ("end", "reason", "trajectories")
        episodes = [dict(zip(names, episode, strict=True)) for episode in self.episodes]
        return {"group_id": self.group_id, "admitted_version": self.admitted_version, "episodes": episodes}


class _ReadyGroup(NamedTuple):
    """A group that waits for the trainer: what else is known of it."""

    group: _Group
    rest: dict[str, Any]

    def record(self) -> dict[str, Any]:
        return self.group.record() | self.rest


def _copy_group(pending: PendingGroup, table: _Table) -> _Group:
    episodes = []
    for episode in pending.episodes:
        keeps = episode.end is None and episode.trajectories is not None and not is_waiting(episode)
        trajectories = table.add_all(episode.trajectories or ()) if keeps else None
        episodes.append((episode.end, episode.reason, trajectories))
    return _Group(pending.group_id, pending.admitted_version, episodes)


def _copy_ready(ready: ReadyGroup, table: _Table) -> _ReadyGroup:
    copied, group = _copy_group(ready.pending, table), ready.group
    rest = {
        "kept": [episode.index for episode in ready.kept],
        "trajectories": table.add_all(group.trajectories),
        "rewards": group.rewards.tolist(),
        "raw_rewards": None if group.raw_rewards is None else group.raw_rewards.tolist(),
    }
    return _ReadyGroup(copied, rest)


def _plain(value: Any) -> Any:
    """What a reward or workflow has put into metadata, as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _read_trajectories(record: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> list[Trajectory]:
    outcomes = [RewardOutcome(**{name: outcome[name] for name in _OUTCOME_FIELDS}) for outcome in record["outcomes"]]
    trajectories, start = [], 0
    for one in record["trajectories"]:
        end = start + one["length"]
        tokens: dict[str, Any] = {name: arrays[name][start:end].astype(dtype) for name, dtype in _TOKEN_ARRAYS.items()}
        if any(len(array) != one["length"] for array in tokens.values()):
            raise ValueError("the arrays are shorter than the trajectories")
        trajectories.append(
            Trajectory(
                **tokens,
                version_spans=[VersionSpan(*span) for span in one["spans"]],
                outcome=None if one["outcome"] is None else outcomes[one["outcome"]],
                **{name: one[name] for name in _TRAJECTORY_FIELDS},
            )
        )
        start = end
    return trajectories


def _read_group(
    record: Mapping[str, Any], trajectories: list[Trajectory], item_of: Callable[[int], Mapping[str, Any]]
) -> PendingGroup:
    pending = PendingGroup(record["group_id"], dict(item_of(record["group_id"])), record["admitted_version"], 0)
    for index, one in enumerate(record["episodes"]):
        episode = Episode(pending, index, 0.0)
        episode.end, episode.reason = one["end"], one["reason"]
        if one["trajectories"] is not None:
            episode.trajectories = [trajectories[place] for place in one["trajectories"]]
        pending.num_open += episode.runs_again
        pending.episodes.append(episode)
    return pending


def _read_ready(
    record: Mapping[str, Any], trajectories: list[Trajectory], item_of: Callable[[int], Mapping[str, Any]]
) -> ReadyGroup:
    pending = _read_group(record, trajectories, item_of)
    raw_rewards = record["raw_rewards"]
    group = TrajectoryGroup(
        group_id=pending.group_id,
        trajectories=[trajectories[place] for place in record["trajectories"]],
        rewards=np.asarray(record["rewards"], dtype=np.float32),
        item=pending.item,
        item_index=pending.group_id,
        admitted_version=pending.admitted_version,
        raw_rewards=None if raw_rewards is None else np.asarray(raw_rewards, dtype=np.float32),
    )
    return ReadyGroup(pending.group_id, group, [pending.episodes[index] for index in record["kept"]], pending)


def _read_counts(record: Mapping[str, Any]) -> EpisodeCounts:
    counters: dict[str, Any] = {name: Counter(record[name]) for name in ("rejected", "failed", "scores")}
    rest = {name: value for name, value in record.items() if name not in counters}
    return EpisodeCounts(**rest, **counters)
