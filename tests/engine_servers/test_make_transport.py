"""Which way weights take: what ``auto`` stands for, and combinations that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transport_weights import weights

from areal_x.api.config import RolloutConfig, ServerConfig
from areal_x.api.errors import ConfigError
from areal_x.api.server_checks import check_way
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.make_transport import choose_way, make_transport, transport_of_layout


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("on_cpu", "starts", "colocated", "num_servers", "expected"),
    [
        (True, True, False, 1, "shared_memory"),
        (True, True, True, 2, "shared_memory"),
        (False, True, True, 1, "cuda_ipc"),
        (False, True, True, 2, "shared_memory"),
        (False, True, False, 1, "nccl"),
        (False, True, False, 4, "nccl"),
        (True, False, False, 1, "disk"),
        (False, False, False, 3, "disk"),
    ],
)
def test_auto_chooses_a_way_that_is_allowed(
    engine: str, on_cpu: bool, starts: bool, colocated: bool, num_servers: int, expected: str
) -> None:
    way = choose_way(engine, on_cpu, starts, colocated, num_servers)
    assert way == expected
    urls = [] if starts else ["http://10.0.0.7:8000"]
    server = ServerConfig(num_servers=num_servers)
    check_way(RolloutConfig(engine, base_urls=urls, colocated=colocated, server=server), way, on_cpu)


@pytest.mark.parametrize(
    ("on_cpu", "colocated", "expected"), [(True, False, "gloo"), (False, False, "nccl"), (True, True, "gloo")]
)
def test_auto_reaches_servers_of_other_machines(on_cpu: bool, colocated: bool, expected: str) -> None:
    assert choose_way("vllm", on_cpu, True, colocated, 2, from_ranks=True, one_machine=False) == expected


def test_weights_of_ranks_are_staged_where_ranks_can_write(tmp_path: Path) -> None:
    assert choose_way("vllm", False, True, True, 1, from_ranks=True) == "shared_memory"
    for way, engine in (("shared_memory", "vllm"), ("shared_memory", "sglang"), ("gloo", "vllm"), ("disk", "vllm")):
        transport = transport_of_layout(
            way,
            TensorLayout(weights(0), torch.bfloat16),
            device=torch.device("cpu"),
            engine=engine,
            directory=tmp_path / "w",
            timeout_seconds=5.0,
            from_ranks=True,
        )
        write = transport.begin(1)
        assert write.target is not None and all(Path(path).exists() for path in write.target.paths)
        transport.abandon(write)
        assert transport.version is None
        transport.close()
    with pytest.raises(ConfigError, match=r"weights=cuda_ipc: .* those of ranks; use shared_memory"):
        transport_of_layout(
            "cuda_ipc",
            TensorLayout(weights(0)),
            device=torch.device("cuda"),
            engine="vllm",
            directory=tmp_path,
            timeout_seconds=5.0,
            from_ranks=True,
        )


@pytest.mark.parametrize(
    ("way", "engine", "told"),
    [("shared_memory", "vllm", "shared_memory"), ("shared_memory", "sglang", "disk"), ("disk", "vllm", "disk")],
)
@pytest.mark.parametrize("quantization", [None, "fp8", "fp8_block"])
def test_each_way_stages_weights(tmp_path: Path, way: str, engine: str, told: str, quantization: str | None) -> None:
    transport = make_transport(
        way,
        weights(0),
        engine=engine,
        dtype=torch.bfloat16,
        directory=tmp_path / "w",
        timeout_seconds=5.0,
        quantization=quantization,
    )
    assert transport.way == way and transport.version is None
    transport.write(3, weights(3))
    assert (transport.load_order()["way"], transport.load_order()["version"]) == (told, 3)
    num_values = sum(tensor.numel() for _, tensor in weights(0))
    assert transport.num_bytes == 2 * num_values if quantization is None else transport.num_bytes < 2 * num_values
    transport.send()
    assert transport.join_orders(2) == []
    transport.close()
    transport.close()


def test_an_unknown_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights=auto: it must be one of cuda_ipc"):
        make_transport("auto", weights(0), engine="vllm", dtype=None, directory=tmp_path, timeout_seconds=1.0)
