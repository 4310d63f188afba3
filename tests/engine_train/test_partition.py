"""Dealing sequences out to ranks: complete, balanced, and the same on every rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from areal_x.api.records import TrainBatch
from areal_x.engine.train.computed_tokens import computed_tokens
from areal_x.engine.train.packing import MicroBatch, count_micro_batches, plan_micro_batches
from areal_x.engine.train.partition import TOLERANCE, deal_sequences, plan_part


def load(batch: TrainBatch, wanted: np.ndarray, part: np.ndarray) -> int:
    """Tokens that a part computes, counted one by one: distinct prefixes of the batch, within each group."""
    seen = set()
    for sequence in part:
        start, length = int(batch.offsets[sequence]), int(batch.lengths[sequence])
        used = int(np.flatnonzero(wanted[start : start + length]).max(initial=0))
        ids = batch.input_ids[start : start + used].tolist()
        seen |= {(int(batch.group_ids[sequence]), tuple(ids[: end + 1])) for end in range(used)}
    return len(seen)


@pytest.mark.parametrize("num_parts", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(8))
def test_every_wanted_sequence_is_in_exactly_one_part(make_batch, seed: int, num_parts: int) -> None:
    generator = np.random.default_rng(seed)
    batch = make_batch(generator.integers(1, 9, int(generator.integers(1, 20))).tolist(), seed=seed)
    parts = deal_sequences(batch, batch.loss_mask, num_parts)
    wanted = [
        index
        for index, start in enumerate(batch.offsets[:-1])
        if batch.loss_mask[start : start + batch.lengths[index]].any()
    ]
    assert len(parts) == num_parts
    assert sorted(np.concatenate(parts).tolist()) == wanted
    assert all((np.diff(part) > 0).all() for part in parts)
    again = deal_sequences(batch, batch.loss_mask, num_parts)
    assert all(np.array_equal(first, second) for first, second in zip(parts, again, strict=True))


@pytest.mark.parametrize("num_parts", [2, 3, 8])
@pytest.mark.parametrize("seed", range(8))
def test_loads_differ_by_no_more_than_the_longest_sequence(make_batch, seed: int, num_parts: int) -> None:
    generator = np.random.default_rng(seed)
    batch = make_batch(
        generator.integers(1, 17, int(generator.integers(1, 12))).tolist(),
        seed=seed,
        prompt=(10, 40),
        completion=(1, 80),
    )
    needed = computed_tokens(batch, batch.loss_mask)
    loads = np.array([load(batch, batch.loss_mask, part) for part in deal_sequences(batch, batch.loss_mask, num_parts)])
    assert loads.max() - loads.min() <= max(int(needed.used.max()), TOLERANCE * num_parts * loads.mean())
    if len(needed.sequences) >= 16 * num_parts:
        assert loads.max() <= 1.1 * loads.mean()


def test_one_huge_group_is_divided(make_batch) -> None:
    """Together the prompt would be computed once; balance between ranks is worth computing it on each."""
    batch = make_batch([32, 1, 1], prompt=(20, 30), completion=(20, 30))
    parts = deal_sequences(batch, batch.loss_mask, 2)
    loads = [load(batch, batch.loss_mask, part) for part in parts]
    assert max(loads) <= 1.05 * min(loads)
    assert all(0 in batch.group_ids[part] for part in parts)


def test_groups_stay_whole_where_balance_allows(make_batch) -> None:
    batch = make_batch([8] * 32, prompt=(20, 30), completion=(10, 30))
    parts = deal_sequences(batch, batch.loss_mask, 4)
    homes: dict[int, set[int]] = {}
    for number, part in enumerate(parts):
        for group in batch.group_ids[part].tolist():
            homes.setdefault(group, set()).add(number)
    assert sum(len(numbers) > 1 for numbers in homes.values()) <= 2
    loads = [load(batch, batch.loss_mask, part) for part in parts]
    assert max(loads) <= (1 + TOLERANCE) * np.mean(loads)


def test_fewer_sequences_than_parts(make_batch) -> None:
    batch = make_batch([1, 1])
    parts = deal_sequences(batch, np.ones_like(batch.loss_mask), 4)
    assert sorted(len(part) for part in parts) == [0, 0, 1, 1]
    assert [len(part) for part in deal_sequences(batch, np.zeros_like(batch.loss_mask), 3)] == [0, 0, 0]


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5])
@pytest.mark.parametrize("budget", [16384, 120, 8])
def test_all_parts_make_equally_many_passes_over_all_targets(make_batch, budget: int, num_parts: int) -> None:
    batch = make_batch([1, 6, 4, 2, 3], completion=(1, 40))
    chosen = np.arange(3, len(batch))
    plans = [
        plan_part(batch, batch.loss_mask, budget, part=part, num_parts=num_parts, sequences=chosen)
        for part in range(num_parts)
    ]
    assert len({len(plan) for plan in plans}) == 1
    targets = torch.cat([micro_batch.positions for plan in plans for micro_batch in plan])
    expected = np.flatnonzero(batch.loss_mask)
    expected = expected[expected >= batch.offsets[3]]
    assert sorted(targets.tolist()) == expected.tolist()
    longest = max(int(batch.lengths.max()), budget)
    assert all(micro_batch.num_rows <= longest for plan in plans for micro_batch in plan)


def assert_empty(micro_batch: MicroBatch) -> None:
    assert micro_batch.num_rows == 1
    assert len(micro_batch.targets) == len(micro_batch.rows) == len(micro_batch.positions) == 0
    assert micro_batch.attention.owners.tolist() == [0]


def test_a_given_number_of_micro_batches(make_batch) -> None:
    """More than needed: smaller ones first, then empty ones; fewer than needed is an error."""
    batch = make_batch([4, 4, 4], completion=(10, 20))
    needed = count_micro_batches(batch, batch.loss_mask, 100)
    plan = plan_micro_batches(batch, batch.loss_mask, 100)
    assert needed == len(plan) > 1
    finer = plan_micro_batches(batch, batch.loss_mask, 100, num_micro_batches=needed + 2)
    assert len(finer) == needed + 2
    assert max(m.num_rows for m in finer) < max(m.num_rows for m in plan)
    many = plan_micro_batches(batch, batch.loss_mask, 100, num_micro_batches=len(batch) + 3)
    for micro_batch in many[-3:]:
        assert_empty(micro_batch)
    with pytest.raises(ValueError, match=rf"num_micro_batches={needed - 1}, but 100 tokens .* need {needed}"):
        plan_micro_batches(batch, batch.loss_mask, 100, num_micro_batches=needed - 1)


def test_nothing_wanted_gives_only_empty_micro_batches(make_batch) -> None:
    batch = make_batch([2])
    nothing = np.zeros_like(batch.loss_mask)
    assert count_micro_batches(batch, nothing, 100) == 0
    assert plan_micro_batches(batch, nothing, 100) == []
    (micro_batch,) = plan_micro_batches(batch, nothing, 100, num_micro_batches=1)
    assert_empty(micro_batch)
