from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.errors import ConfigError
from areal_x.api.records import Trajectory, TrajectoryGroup, spans_from_versions
from areal_x.rollout.staleness import StalenessBudget, mask_over_age


@given(
    groups_per_step=st.integers(1, 5),
    eta=st.integers(0, 4),
    max_concurrent=st.none() | st.integers(3, 12),
    first_version=st.integers(0, 3),
    events=st.lists(st.sampled_from(["admit", "accept", "reject", "train"]), max_size=120),
)
def test_never_more_than_the_bound_is_outstanding(
    groups_per_step: int, eta: int, max_concurrent: int | None, first_version: int, events: list[str]
) -> None:
    budget = StalenessBudget(groups_per_step, 3, eta, max_concurrent, first_version)
    admitted_at: list[int] = []
    running: list[int] = []
    ready: list[int] = []
    version = first_version
    for event in events:
        if event == "admit" and budget.num_admissible:
            budget.admit()
            running.append(len(admitted_at))
            admitted_at.append(version)
        elif event in ("accept", "reject") and running:
            for _ in range(3):
                budget.on_episodes_ended()
            group = running.pop()
            if event == "accept":
                budget.on_accepted()
                ready.append(group)
            else:
                budget.on_rejected()
        elif event == "train" and len(ready) >= groups_per_step:
            ready.sort()
            del ready[:groups_per_step]
            version += 1
            budget.on_published(version)
        outstanding = len(running) + len(ready)
        assert outstanding <= (eta + 1) * groups_per_step
        assert budget.num_admissible <= (eta + 1) * groups_per_step - outstanding
        if max_concurrent is not None:
            assert len(running) * 3 <= max_concurrent
        if eta == 0:
            assert all(admitted_at[group] == version for group in (*running, *ready))
        # What is taken next is within the bound if the groups before it were not overtaken.
        in_order = sorted((*running, *ready))
        for place, group in enumerate(in_order):
            assert version + place // groups_per_step - admitted_at[group] <= eta


def test_places_come_back_only_when_weights_are_live() -> None:
    budget = StalenessBudget(groups_per_step=2, max_staleness=1)
    for _ in range(4):
        budget.admit()
    budget.on_accepted()
    budget.on_accepted()
    assert budget.num_admissible == 0
    budget.on_rejected()
    assert budget.num_admissible == 1
    budget.on_published(1)
    assert budget.num_admissible == 3
    with pytest.raises(ValueError, match="only grow"):
        budget.on_published(0)


@pytest.mark.parametrize("arguments", [(0, 1, 0), (1, 1, -1), (1, 8, 0, 4)])
def test_bad_sizes_are_named(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        StalenessBudget(*arguments)


def group_of(*versions: list[int], mask: list[list[bool]] | None = None) -> TrajectoryGroup:
    trajectories = []
    for number, row in enumerate(versions):
        array = np.array(row)
        loss_mask = array >= 0 if mask is None else np.array(mask[number])
        zeros = np.zeros(len(row))
        trajectories.append(
            Trajectory(zeros.astype(np.int32), loss_mask, zeros.astype(np.float32), spans_from_versions(array))
        )
    return TrajectoryGroup(0, trajectories, np.zeros(len(versions), dtype=np.float32))


@given(
    rows=st.lists(st.lists(st.integers(-1, 9), min_size=1, max_size=40), min_size=1, max_size=4),
    age=st.integers(0, 6),
    data=st.data(),
)
def test_masks_exactly_the_tokens_that_are_too_old(rows: list[list[int]], age: int, data: st.DataObject) -> None:
    # A token may be sampled and not be trained for another reason: its mask is false before.
    mask = [[version >= 0 and data.draw(st.booleans()) for version in row] for row in rows]
    group = group_of(*rows, mask=mask)
    counts = mask_over_age([group], version=9, max_staleness=age)
    lags: dict[int, int] = {}
    num_masked = num_whole = 0
    for row, before, trajectory in zip(rows, mask, group.trajectories, strict=True):
        kept = [old and version >= 9 - age for old, version in zip(before, row, strict=True)]
        assert trajectory.loss_mask.tolist() == kept
        for is_kept, version in zip(kept, row, strict=True):
            if is_kept:
                lags[9 - version] = lags.get(9 - version, 0) + 1
        num_masked += sum(before) - sum(kept)
        num_whole += any(before) and not any(kept)
    assert counts.lags == lags
    assert counts.num_trained_tokens == sum(lags.values())
    assert counts.num_masked_tokens == num_masked
    assert counts.num_wholly_masked_samples == num_whole
    assert counts.num_samples == len(rows)
