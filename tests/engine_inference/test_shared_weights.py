"""Shared weights: no reader ever sees half of one version and half of another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.staging import LiveWeights
from areal_x.engine.weights import SharedWeights, StagedSync, WeightsReader

SHAPES = {"a": (3, 5), "b": (7,), "scale": ()}


def named(version: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, torch.full(shape, float(version))) for name, shape in shapes.items())


def empty_targets(shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def only_value(targets: dict[str, torch.Tensor]) -> float:
    values = torch.unique(torch.cat([tensor.reshape(-1) for tensor in targets.values()]))
    assert len(values) == 1, f"torn: {values}"
    return float(values)


class InterferingTargets(dict[str, torch.Tensor]):
    """Runs an action while the reader copies, just before it takes the second tensor."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.actions: list[Any] = []

    def __getitem__(self, name: str) -> torch.Tensor:
        if name == "b" and self.actions:
            self.actions.pop(0)()
        return super().__getitem__(name)


class ActingTensor:
    """Stands for a tensor of the writer's; runs an action when its turn to be written comes."""

    def __init__(self, tensor: torch.Tensor, action: Callable[[], Any]) -> None:
        self.tensor = tensor
        self.action = action
        self.shape = tensor.shape

    def detach(self) -> torch.Tensor:
        self.action()
        return self.tensor


@pytest.fixture
def shared() -> Iterator[SharedWeights]:
    weights = SharedWeights.create(named(0))
    yield weights
    weights.close()
    weights.close()


def test_a_copy_is_the_newest_version(shared: SharedWeights) -> None:
    reader = WeightsReader(shared.new_reader())
    targets = empty_targets()
    assert shared.version is None
    for version in (1, 2, 3):
        shared.write(version, named(version))
        assert shared.version == version
        assert reader.copy_into(targets, version) == version
        assert only_value(targets) == version


def test_types_are_cast_on_the_way(shared: SharedWeights) -> None:
    reader = WeightsReader(shared.new_reader())
    shared.write(1, ((name, tensor.bfloat16()) for name, tensor in named(3)))
    targets = {name: tensor.half() for name, tensor in empty_targets().items()}
    reader.copy_into(targets, 1)
    assert only_value(targets) == 3.0


def test_a_writer_that_overtakes_the_copy_is_noticed(shared: SharedWeights) -> None:
    """With its claim ignored, as when a claim and a write race, the sequence number gives the torn copy away."""
    reader = WeightsReader(shared.new_reader())
    shared.write(1, named(1))
    targets = InterferingTargets(empty_targets())

    def overtake() -> None:
        claims = shared._shared.words[8:]
        kept = claims.copy()
        claims[:] = 0
        for version in (2, 3, 4):
            shared.write(version, named(version))
        claims[:] = kept

    targets.actions = [overtake]
    assert reader.copy_into(targets, 1) == 4
    assert only_value(targets) == 4
    assert reader.num_torn == 1


def test_a_claimed_buffer_is_left_alone_however_often_the_writer_writes(shared: SharedWeights) -> None:
    reader = WeightsReader(shared.new_reader())
    shared.write(1, named(1))
    targets = InterferingTargets(empty_targets())
    targets.actions = [lambda: [shared.write(version, named(version)) for version in range(2, 30)]]
    assert reader.copy_into(targets, 1) == 1
    assert (only_value(targets), reader.num_torn) == (1, 0)
    assert reader.copy_into(targets, 29) == 29
    assert only_value(targets) == 29


def test_a_reader_in_the_middle_of_a_write_gets_the_version_before(shared: SharedWeights) -> None:
    reader = WeightsReader(shared.new_reader())
    shared.write(1, named(1))
    seen = []

    def look() -> None:
        targets = empty_targets()
        seen.append((reader.copy_into(targets, 1), only_value(targets)))

    shared.write(2, [(name, ActingTensor(tensor, look)) for name, tensor in named(2)])
    assert seen == [(1, 1.0)] * 3


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["write", "read", "write during read", "read during write", "fail"]), max_size=14))
def test_every_interleaving_gives_whole_versions(steps: list[str]) -> None:
    weights = SharedWeights.create(named(0))
    reader = WeightsReader(weights.new_reader())
    newest = 0
    weights.write(0, named(0))

    def read(during: Any = None) -> None:
        targets = InterferingTargets(empty_targets())
        if during is not None:
            targets.actions = [during]
        least = newest
        version = reader.copy_into(targets, least)
        assert version >= least and only_value(targets) == version

    def write() -> None:
        nonlocal newest
        weights.write(newest + 1, named(newest + 1))
        newest += 1

    def write_slowly() -> Iterator[tuple[str, ActingTensor]]:
        return ((name, ActingTensor(tensor, read)) for name, tensor in named(newest + 1))

    for step in steps:
        match step:
            case "write":
                write()
            case "read":
                read()
            case "write during read":
                read(write)
            case "read during write":
                weights.write(newest + 1, write_slowly())
                newest += 1
            case "fail":
                with pytest.raises(EngineError, match="not written"):
                    weights.write(newest + 1, [("a", torch.zeros(3, 5))])
                assert weights.version == newest
    read()
    weights.close()


def test_a_writer_in_a_tight_loop_does_not_starve_a_slower_reader() -> None:
    shapes = {f"layer{i}": (256, 64) for i in range(12)}
    weights = SharedWeights.create(named(0, shapes))
    reader = WeightsReader(weights.new_reader())
    weights.write(0, named(0, shapes))
    stop = threading.Event()

    def write_for_ever() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            weights.write(version, named(version, shapes))

    thread = threading.Thread(target=write_for_ever)
    thread.start()
    try:
        # Types differ, so the reader converts and is the slower one.
        targets = {name: tensor.double() for name, tensor in empty_targets(shapes).items()}
        versions = []
        for _ in range(150):
            versions.append(reader.copy_into(targets, 0))
            assert only_value(targets) == versions[-1]
    finally:
        stop.set()
        thread.join()
    assert versions[-1] > versions[0]


def test_wrong_tensors_are_refused(shared: SharedWeights) -> None:
    with pytest.raises(EngineError, match="'c' is not part"):
        shared.write(1, [("c", torch.zeros(1))])
    with pytest.raises(EngineError, match="has shape"):
        shared.write(1, [("a", torch.zeros(5, 3))])
    with pytest.raises(EngineError, match="twice"):
        SharedWeights.create([("a", torch.zeros(1)), ("a", torch.zeros(1))])
    assert shared.version is None


def test_a_refused_write_into_the_newest_buffer_changes_nothing(shared: SharedWeights) -> None:
    """While a reader copies the older buffer the writer's target is the newest one, which must survive bad tensors."""
    reader = WeightsReader(shared.new_reader())
    shared.write(1, named(1))
    shared.write(2, named(2))
    claims = shared._shared.words[8:]
    claims[0] = 1 + (1 - int(shared._shared.words[0]))
    with pytest.raises(EngineError, match="not written"):
        shared.write(3, [("a", torch.zeros(3, 5))])
    assert shared.version == 2
    targets = empty_targets()
    assert reader.copy_into(targets, 2) == 2 and only_value(targets) == 2


def test_weights_can_be_held_in_another_type() -> None:
    shared = SharedWeights.create(named(0), torch.bfloat16)
    reader = WeightsReader(shared.new_reader())
    assert {spec.dtype for spec in reader.specs} == {torch.bfloat16} and shared.num_bytes == 2 * (15 + 7 + 1)
    shared.write(1, named(3))
    targets = {name: tensor.bfloat16() for name, tensor in empty_targets().items()}
    reader.copy_into(targets, 1)
    assert only_value(targets) == 3.0
    shared.close()


def test_a_version_that_is_not_written_is_an_error_after_the_deadline(shared: SharedWeights) -> None:
    reader = WeightsReader(shared.new_reader())
    shared.write(1, named(1))
    with pytest.raises(EngineError, match="version 2 did not appear"):
        reader.copy_into(empty_targets(), 2, timeout_seconds=0.05)


async def test_publishing_writes_first_and_then_tells_every_engine(shared: SharedWeights) -> None:
    told: list[tuple[int, int | None]] = []

    class Engine:
        async def update_weights(self, version: int) -> None:
            told.append((version, shared.version))

    sync = StagedSync(LiveWeights(lambda: named(5)), shared, [Engine(), Engine()])  # type: ignore[list-item]
    await sync.stage(5)
    await sync.publish(5)
    assert told == [(5, 5), (5, 5)]
