"""Model folders for servers: complete or absent, alternating, cleaned up, and clear errors when there is no space."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transport_weights import weights
from weight_receiver import digests

from areal_x.api.errors import EngineError
from areal_x.engine.init_model import init_model
from areal_x.engine.transfer.disk import DiskTransport
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.safetensors_folder import check_free_space, write_folder
from areal_x.engine.transfer.shared_buffers import TensorSpec


def folders(root: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in root.iterdir())


def test_each_version_is_a_folder_and_the_newest_two_stay(tmp_path: Path) -> None:
    transport = DiskTransport(TensorLayout(weights(0)), tmp_path / "w")
    assert transport.version is None
    for version in range(1, 5):
        transport.write(version, weights(version))
        order = transport.load_order()
        assert (order["way"], order["version"], transport.version) == ("disk", version, version)
        assert digests(load_file(Path(order["path"]) / "model.safetensors").items()) == digests(weights(version))
        assert folders(tmp_path / "w") == [f"v{kept}" for kept in range(max(1, version - 1), version + 1)]
    transport.close()
    transport.close()
    assert not (tmp_path / "w").exists()


def test_a_version_may_be_written_again(tmp_path: Path) -> None:
    transport = DiskTransport(TensorLayout(weights(0)), tmp_path)
    for seed in (1, 2, 3):
        transport.write(7, weights(seed))
        assert digests(load_file(Path(transport.load_order()["path"]) / "model.safetensors").items()) == digests(
            weights(seed)
        )


def test_an_open_file_outlives_its_folder(tmp_path: Path) -> None:
    transport = DiskTransport(TensorLayout(weights(0)), tmp_path)
    transport.write(1, weights(1))
    with safe_open(Path(transport.load_order()["path"]) / "model.safetensors", "pt") as file:
        for version in (2, 3, 4):
            transport.write(version, weights(version))
        assert digests((name, file.get_tensor(name)) for name in file.keys()) == digests(weights(1))  # noqa: SIM118


def test_the_models_other_files_come_along(tmp_path: Path) -> None:
    init_model(tmp_path / "model", tokenizer="characters", hidden_size=32, num_layers=1)
    transport = DiskTransport(TensorLayout(weights(0)), tmp_path / "w", str(tmp_path / "model"))
    transport.write(1, weights(1))
    folder = Path(transport.load_order()["path"])
    assert (folder / "config.json").read_bytes() == (tmp_path / "model" / "config.json").read_bytes()
    assert (folder / "tokenizer.json").is_file()
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]


def test_large_models_are_sharded_with_an_index(tmp_path: Path) -> None:
    named = dict(weights(1))
    layout = TensorLayout(named.items())
    write_folder(tmp_path / "w", layout.specs, named, max_shard_bytes=20_000)
    index = json.loads((tmp_path / "w" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == layout.num_bytes
    files = sorted(path.name for path in (tmp_path / "w").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    found: dict[str, torch.Tensor] = {}
    for name in files:
        shard = load_file(tmp_path / "w" / name)
        assert {index["weight_map"][key] for key in shard} == {name}
        found |= shard
    assert digests(found.items()) == digests(named.items())


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 5), max_size=3),
            st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64]),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 200),
)
def test_any_tensors_are_read_back_by_the_official_reader(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[list[int], torch.dtype]], max_bytes: int
) -> None:
    named = {f"t{i}": torch.randn(shape).to(dtype) for i, (shape, dtype) in enumerate(kinds)}
    specs = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in named.items()]
    folder = tmp_path_factory.mktemp("any") / "w"
    write_folder(folder, specs, named, max_shard_bytes=max_bytes)
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    assert digests(found.items()) == digests(named.items())


@contextmanager
def no_space_after(num_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes, as when a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_fails_leaves_the_version_before(tmp_path: Path) -> None:
    transport = DiskTransport(TensorLayout(weights(0)), tmp_path)
    transport.write(1, weights(1))
    order = transport.load_order()
    with no_space_after(50_000), pytest.raises(EngineError, match=r"could not be written to .*v2.*: "):
        transport.write(2, weights(2))
    assert transport.load_order() == order and transport.version == 1
    assert folders(tmp_path) == ["v1"]
    assert digests(load_file(Path(order["path"]) / "model.safetensors").items()) == digests(weights(1))
    transport.write(2, weights(2))
    assert transport.version == 2


def test_too_little_space_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"MiB free, new weights need 1099511627776 MiB: free some"):
        check_free_space(tmp_path, 2**60)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="file/w, the folder for weights, cannot be made"):
        DiskTransport(TensorLayout(weights(0)), tmp_path / "file" / "w")


def test_bad_tensors_are_refused_and_leave_the_version_before(tmp_path: Path) -> None:
    transport = DiskTransport(TensorLayout(weights(0)), tmp_path)
    with pytest.raises(EngineError, match="no weights have been written"):
        transport.load_order()
    transport.write(1, weights(1))
    good = weights(2)
    for bad, message in [
        (good[1:], "'model.embed_tokens.weight' was not written"),
        ([*good, ("other", torch.zeros(1))], "'other' is not part"),
        ([(good[0][0], torch.zeros(3)), *good[1:]], r"has shape \(3,\), engines expect \(17, 40\)"),
    ]:
        with pytest.raises(EngineError, match=message):
            transport.write(2, bad)
    assert transport.version == 1
    with pytest.raises(EngineError, match="'scale' twice"):
        TensorLayout([("scale", torch.zeros(1)), ("scale", torch.zeros(1))])
