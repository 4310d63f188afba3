"""The endless walk: whole epochs, the same again from a seed, and on from any state."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.errors import DataError
from areal_x.rollout.data_stream import DataStream

GOLDEN = [1, 6, 0, 3, 7, 4, 2, 5, 3, 2, 4, 0]


def rows(count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(count)]


def take(stream: DataStream, count: int) -> list[int]:
    return [index for index, _ in itertools.islice(stream, count)]


@given(count=st.integers(1, 40), epochs=st.integers(1, 4), seed=st.integers(0, 2**63 - 1), shuffle=st.booleans())
def test_each_epoch_holds_each_item_once(count: int, epochs: int, seed: int, shuffle: bool) -> None:
    stream = DataStream(rows(count), seed=seed, shuffle=shuffle)
    for epoch in range(epochs):
        drawn = take(stream, count)
        assert sorted(drawn) == list(range(count)) and stream.epoch == epoch
        assert shuffle or drawn == list(range(count))
    assert stream.num_drawn == count * epochs


@given(count=st.integers(1, 20), before=st.integers(0, 70), after=st.integers(1, 70), seed=st.integers(0, 9))
def test_a_resumed_walk_goes_on_where_it_stood(count: int, before: int, after: int, seed: int) -> None:
    whole = take(DataStream(rows(count), seed=seed), before + after)
    first = DataStream(rows(count), seed=seed)
    take(first, before)
    second = DataStream(rows(count), seed=seed)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert take(second, after) == whole[before:]


def test_items_come_with_their_index() -> None:
    data = rows(5)
    assert all(item is data[index] for index, item in itertools.islice(DataStream(data, seed=3), 12))


def test_epochs_and_seeds_differ() -> None:
    stream = DataStream(rows(100), seed=1)
    first, second = take(stream, 100), take(stream, 100)
    assert first != second and first != take(DataStream(rows(100), seed=2), 100)


def test_the_order_is_the_same_on_every_machine() -> None:
    assert take(DataStream(rows(8), seed=1), 12) == GOLDEN


def test_a_state_of_another_data_set_is_refused() -> None:
    state = DataStream(rows(5), seed=1).state_dict()
    for other in (DataStream(rows(6), seed=1), DataStream(rows(5), seed=2), DataStream(rows(5), seed=1, shuffle=False)):
        with pytest.raises(DataError, match="resume with the same data and seed"):
            other.load_state_dict(state)
    with pytest.raises(DataError, match="lacks 'cursor'"):
        DataStream(rows(5), seed=1).load_state_dict({k: v for k, v in state.items() if k != "cursor"})
    with pytest.raises(DataError, match="broken"):
        DataStream(rows(5), seed=1).load_state_dict({**state, "cursor": 6})


def test_no_items_no_walk() -> None:
    with pytest.raises(DataError, match="no items"):
        DataStream([])
