"""Weights in the trainer's GPU memory: what is told of them; with a GPU, another process that reads them there."""

from __future__ import annotations

import base64
import io
import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transport_weights import weights
from weight_receiver import ROOT, digests

from areal_x.api.errors import ConfigError, EngineError
from areal_x.engine.transfer.broadcast_group import packed_order
from areal_x.engine.transfer.cuda_handle import HANDLE_FIELDS, handle_from_json, handle_to_json
from areal_x.engine.transfer.cuda_ipc import CudaIpcTransport, bucket_description
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.make_transport import make_transport

FIELDS = (b"\x00memory\xff", 4096, 512, b"counter", 7, b"event", True)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_a_handle_survives_json() -> None:
    found = json.loads(json.dumps(handle_to_json(FIELDS)))
    assert set(found) == set(HANDLE_FIELDS) and handle_from_json(found) == FIELDS


def test_a_broken_handle_is_refused() -> None:
    found = handle_to_json(FIELDS)
    with pytest.raises(ValueError, match="no 'event'"):
        handle_from_json({name: value for name, value in found.items() if name != "event"})
    with pytest.raises(ValueError, match="base64"):
        handle_from_json({**found, "memory": {"base64": "***"}})


def test_the_description_of_a_bucket_covers_it_without_gaps() -> None:
    specs = packed_order(TensorLayout(weights(1), quantization="fp8_block").specs)
    described = bucket_description(specs)
    end = 0
    for spec, found in zip(specs, described, strict=True):
        assert (found.name, found.shape, found.dtype) == (spec.name, torch.Size(spec.shape), spec.dtype)
        assert found.start_idx == end and found.start_idx % spec.dtype.itemsize == 0
        end = found.end_idx
        assert found.numel == found.end_idx - found.start_idx == spec.num_bytes
    assert end == TensorLayout(weights(1), quantization="fp8_block").num_bytes


@pytest.mark.parametrize("way", ["nccl", "cuda_ipc"])
def test_a_trainer_without_a_gpu_is_refused(tmp_path: Path, way: str) -> None:
    with pytest.raises(ConfigError, match=f"rollout.server.weights={way}: it needs the trainer's weights on a CUDA"):
        make_transport(way, weights(1), engine="vllm", dtype=None, directory=tmp_path, timeout_seconds=1.0)


RECEIVER = """
    import json, sys, torch
    from areal_x.engine.transfer.broadcast_group import views_of
    from areal_x.engine.transfer.cuda_handle import import_flat
    from areal_x.engine.transfer.shared_buffers import specs_from_json
    sys.path.insert(0, "tests/engine_servers")
    from weight_receiver import digests
    flat = None
    for line in sys.stdin:
        order = json.loads(line)
        if flat is None:
            flat = import_flat(order["handle"], torch.device("cuda", 0))
        named = views_of(flat[order["start"]:], specs_from_json(order["specs"]))
        print(json.dumps(digests([(name, tensor.cpu()) for name, tensor in named])), flush=True)
"""


@pytest.mark.gpu
@needs_gpu
def test_another_process_reads_each_version_on_the_gpu() -> None:
    device = torch.device("cuda", 0)

    def on_gpu(version: int) -> list[tuple[str, torch.Tensor]]:
        return [(name, tensor.to(device)) for name, tensor in weights(version)]

    transport = CudaIpcTransport(TensorLayout(on_gpu(0)), device=device, engine="vllm")
    receiver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RECEIVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert receiver.stdin is not None and receiver.stdout is not None
    handles = set()
    for version in (1, 2, 3):
        transport.write(version, on_gpu(version))
        order = transport.load_order()
        handles.add(json.dumps(order["handle"]))
        receiver.stdin.write(json.dumps(order) + "\n")
        receiver.stdin.flush()
        assert json.loads(receiver.stdout.readline()) == digests(weights(version))
    assert len(handles) == 1
    receiver.stdin.close()
    assert receiver.wait() == 0
    receiver.stdout.close()
    transport.close()
    transport.close()
    with pytest.raises(EngineError, match="was closed"):
        transport.write(4, on_gpu(4))


@pytest.mark.gpu
@needs_gpu
def test_what_sglang_gets_names_the_gpu_by_uuid() -> None:
    device = torch.device("cuda", 0)
    named = [(name, tensor.to(device)) for name, tensor in weights(1)]
    transport = CudaIpcTransport(TensorLayout(named), device=device, engine="sglang")
    transport.write(1, named)
    order = transport.load_order()
    assert (order["load_format"], order["version"], len(order["handles"])) == ("flattened_bucket", 1, 1)
    seen: list[tuple[object, ...]] = []

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            if name == "rebuild_cuda_tensor":
                return lambda *arguments: seen.append(arguments)
            return super().find_class(module, name)

    found = Reader(io.BytesIO(base64.b64decode(order["handles"][0]))).load()
    assert [meta.name for meta in found["metadata"]] == [spec.name for spec in packed_order(TensorLayout(named).specs)]
    assert seen[0][6] == str(torch.cuda.get_device_properties(0).uuid)
    transport.close()
