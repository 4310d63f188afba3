"""Publications from two real ranks: each writes its own rows, and engines read what the ranks hold, bit by bit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from publishing_roles import Named, named
from safetensors.torch import load_file

from areal_x.api.config import AlgorithmConfig, ModelConfig, TrainConfig
from areal_x.api.errors import EngineDiedError, EngineError
from areal_x.engine.init_model import init_model
from areal_x.engine.ranks.local_ranks import LocalRanks
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.ranked_engine import RankedTrainEngine
from areal_x.engine.transfer.broadcast import GlooTransport
from areal_x.engine.transfer.disk import DiskTransport
from areal_x.engine.transfer.fp8 import cast_weights
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.samples import SampleError, checked
from areal_x.engine.transfer.shared_buffers import SharedMemoryError, SharedVersion
from areal_x.engine.transfer.shared_memory import SharedMemoryTransport
from areal_x.engine.transfer.staging import LiveWeights, OpenWrite, RankWeights, Staging, WrongWeightsError
from areal_x.engine.weights import SharedWeights, WeightsReader

sys.path.insert(0, str(Path(__file__).parents[1] / "engine_servers"))
from weight_receiver import Receiver, digests

POLICY = "publishing_roles:Publisher"


@pytest.fixture(scope="module")
def ranks() -> Iterator[LocalRanks]:
    group = LocalRanks(2, timeout_seconds=400)
    group.build("policy", POLICY, {})
    yield group
    group.close()


def stage(ranks: LocalRanks, staging: Staging, version: int, fault: str | None = None) -> None:
    ranks.call("policy", "set_version", version, fault)
    staging.stage(version, RankWeights(ranks))


def served(version: int, dtype: torch.dtype | None = None, quantization: str | None = None) -> Named:
    whole = [(name, tensor if dtype is None else tensor.to(dtype)) for name, tensor in named(version)]
    if quantization is None:
        return whole
    # Cast from what the trainer holds, as one process that holds all of it does.
    cast = cast_weights(named(version), quantization)
    return [(name, tensor.to(dtype) if dtype and tensor.dtype == torch.float32 and "_scale" not in name else tensor)
            for name, tensor in cast]  # fmt: skip


def read_shared(transport: SharedMemoryTransport) -> dict[str, str]:
    with SharedVersion(transport.load_order()) as version:
        return digests(version.tensors())


def read_folder(transport: DiskTransport) -> dict[str, str]:
    return digests(load_file(Path(transport.load_order()["path"]) / "model.safetensors").items())


@pytest.mark.parametrize(("dtype", "quantization"), [(None, None), (torch.bfloat16, None), (torch.bfloat16, "fp8"),
                                                     (None, "fp8_block")])  # fmt: skip
def test_shared_memory_and_folders_hold_what_the_ranks_hold(
    ranks: LocalRanks, tmp_path: Path, dtype: torch.dtype | None, quantization: str | None
) -> None:
    layout = TensorLayout(named(0), dtype, quantization)
    memory, disk = SharedMemoryTransport(layout), DiskTransport(layout, tmp_path / "w")
    for version in (1, 2, 3):
        stage(ranks, memory, version)
        stage(ranks, disk, version)
        assert (memory.version, disk.version) == (version, version)
        assert read_shared(memory) == read_folder(disk) == digests(served(version, dtype, quantization))
    memory.close()
    disk.close()


def test_the_embedded_engines_reader_gets_it(ranks: LocalRanks) -> None:
    shared = SharedWeights.create(named(0), torch.bfloat16)
    reader = WeightsReader(shared.new_reader())
    targets = {name: torch.zeros(tensor.shape) for name, tensor in named(0)}
    for version in (1, 2, 3):
        stage(ranks, shared, version)
        assert reader.copy_into(targets, version) == version
        assert digests(targets.items()) == digests((name, t.bfloat16().float()) for name, t in named(version))
    shared.close()


def test_a_broadcast_to_servers_is_what_the_ranks_hold(ranks: LocalRanks) -> None:
    transport = GlooTransport(
        TensorLayout(named(0)),
        num_ranks_per_server=1,
        timeout_seconds=120,
        device=torch.device("cpu"),
        bucket_bytes=50_000,
        on_host=True,
    )
    with Receiver() as first, Receiver() as second:
        receivers = [first, second]
        for receiver, order in zip(receivers, transport.join_orders(2), strict=True):
            receiver.tell(order)
        transport.join()
        assert [receiver.answer() for receiver in receivers] == ["joined"] * 2
        for version in (1, 2, 3):
            stage(ranks, transport, version)
            for receiver in receivers:
                receiver.tell(transport.load_order())
            transport.send()
            assert [receiver.answer() for receiver in receivers] == [digests(named(version))] * 2
    transport.close()


@pytest.mark.parametrize("far", ["rank 0 is far", "rank 1 is far", "all are far"])
@pytest.mark.parametrize("quantization", [None, "fp8_block"])
def test_rows_of_ranks_on_other_machines_come_in_buckets_and_the_driver_writes_them(
    ranks: LocalRanks, far: str, quantization: str | None
) -> None:
    transport = SharedMemoryTransport(TensorLayout(named(0), quantization=quantization))
    for version in (1, 2):
        stage(ranks, transport, version, far)
        assert read_shared(transport) == digests(served(version, None, quantization))
    transport.close()


def test_a_byte_that_changed_is_found_and_the_version_is_written_again(ranks: LocalRanks, tmp_path: Path) -> None:
    layout = TensorLayout(named(0))
    for staging, read in ((SharedMemoryTransport(layout), read_shared), (DiskTransport(layout, tmp_path), read_folder)):
        stage(ranks, staging, 1)
        stage(ranks, staging, 2, "once")
        assert staging.version == 2 and read(staging) == digests(named(2))  # type: ignore[operator]
        with pytest.raises(WrongWeightsError, match=r"down_proj\.weight' of version 3: rows 20 to 40 are not"):
            stage(ranks, staging, 3, "always")
        assert staging.version == 2 and read(staging) == digests(named(2))  # type: ignore[operator]
        stage(ranks, staging, 4)
        assert read(staging) == digests(named(4))  # type: ignore[operator]
        staging.close()


def test_rows_that_no_rank_wrote_are_missed(ranks: LocalRanks) -> None:
    shared = SharedWeights.create(named(0))
    with pytest.raises(WrongWeightsError, match=r"down_proj\.weight': 20 of 40 rows were written"):
        stage(ranks, shared, 1, "forget")
    assert shared.version is None
    stage(ranks, shared, 1)
    assert shared.version == 1
    shared.close()


def test_a_rank_that_cannot_write_fails_the_update_and_not_the_ranks(ranks: LocalRanks, tmp_path: Path) -> None:
    class Elsewhere(DiskTransport):
        """Makes folders that nobody finds."""

        def begin(self, version: int) -> OpenWrite:
            write = super().begin(version)
            for path in write.target.paths if write.target else ():
                Path(path).unlink()
            return write

    with pytest.raises(EngineError, match=r"new weights could not be written: rank 0: .*No such file"):
        stage(ranks, Elsewhere(TensorLayout(named(0)), tmp_path), 1)
    ended = SharedWeights.create(named(0))
    write = ended.begin(1)
    ended.close()
    with pytest.raises(EngineError, match=r"rank 0: the memory for new weights at /proc/.* cannot be opened"):
        RankWeights(ranks).copy_into(write)
    wrong = SharedWeights.create([(name, tensor) for name, tensor in named(0) if "bias" not in name])
    with pytest.raises(EngineError, match=r"q_proj\.bias' is not part of what engines get"):
        stage(ranks, wrong, 1)
    assert ranks.call("policy", "attribute", "fault") == [None, None]
    wrong.close()


def test_a_rank_that_dies_while_it_writes_leaves_the_version_before() -> None:
    shared = SharedMemoryTransport(TensorLayout(named(0)))
    group = LocalRanks(2, timeout_seconds=400)
    try:
        group.build("policy", POLICY, {})
        stage(group, shared, 1)
        with pytest.raises(EngineDiedError, match="rank 1"):
            stage(group, shared, 2, "die")
    finally:
        group.close()
    assert shared.version == 1 and read_shared(shared) == digests(named(1))
    shared.stage(3, LiveWeights(lambda: named(3)))
    assert read_shared(shared) == digests(named(3))
    shared.close()


def change_a_byte(staging: SharedMemoryTransport | SharedWeights) -> None:
    shared = staging if isinstance(staging, SharedWeights) else staging._shared
    for buffer in shared._shared.buffers:
        buffer["model.layers.0.mlp.down_proj.weight"].view(torch.uint8)[-1, -1] ^= 1


def test_readers_find_a_byte_that_changed_after_the_write() -> None:
    memory, shared = SharedMemoryTransport(TensorLayout(named(0))), SharedWeights.create(named(0))
    for staging in (memory, shared):
        staging.write(1, named(1))
        change_a_byte(staging)
    with pytest.raises(SharedMemoryError, match=r"down_proj\.weight' in shared memory is not what was written"):
        read_shared(memory)
    targets = {name: tensor.clone() for name, tensor in named(0)}
    with pytest.raises(EngineError, match=r"down_proj\.weight' in shared memory is not what was written as version 1"):
        WeightsReader(shared.new_reader()).copy_into(targets, 1)
    memory.close()
    shared.close()


def test_servers_find_a_byte_that_changed_on_the_way(tmp_path: Path) -> None:
    disk = DiskTransport(TensorLayout(named(0)), tmp_path)
    disk.write(5, named(5))
    sums = disk.load_order()["sums"]
    assert digests(checked(named(5), sums, 5)) == digests(named(5))
    spoiled = [(name, tensor.clone()) for name, tensor in named(5)]
    spoiled[3][1].view(torch.uint8)[-1, -1] ^= 1
    with pytest.raises(SampleError, match=r"'model\.layers\.0\.mlp\.down_proj\.weight' is not what the trainer wrote"):
        list(checked(spoiled, sums, 5))
    disk.close()


def test_memory_of_this_process_alone_is_nothing_that_ranks_can_write(ranks: LocalRanks) -> None:
    write = OpenWrite(TensorLayout(named(0)).order(1), {}, None)
    with pytest.raises(EngineError, match="this process's own memory"):
        RankWeights(ranks).copy_into(write)


@pytest.mark.parametrize("tied", [True, False])
def test_a_policy_on_two_ranks_is_published_as_one_rank_publishes_it(
    ranks: LocalRanks, tmp_path: Path, tied: bool
) -> None:
    path = init_model(tmp_path / "m", tokenizer="characters", hidden_size=36, num_layers=2, tie_word_embeddings=tied)
    settings = (path, TrainConfig(num_ranks=2), AlgorithmConfig(), ModelConfig(device="cpu"))
    alone = FSDPEngine(path, TrainConfig(), AlgorithmConfig(), ModelConfig(device="cpu"))
    try:
        engine = RankedTrainEngine(ranks, *settings)
        layout = TensorLayout(alone.named_weights(), torch.bfloat16)
        assert [(spec.name, spec.shape) for spec in layout.specs] == list(engine.facts.weights)
        transport = SharedMemoryTransport(layout)
        transport.stage(1, RankWeights(engine.group))
        assert read_shared(transport) == digests((name, t.bfloat16()) for name, t in alone.named_weights())
        transport.close()
    finally:
        ranks.build("policy", POLICY, {})
