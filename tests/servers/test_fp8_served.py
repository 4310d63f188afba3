"""Eight bits on a real vLLM with a GPU: what it serves after each publication is the cast model of that version."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from running_engines import request
from server_models import MAX_LENGTH, Policy, make_policy
from vllm_served import KEY, Served, until_ready

from areal_x.engine.servers.client import ServerClient
from areal_x.engine.servers.environments import find_server_python
from areal_x.engine.servers.launch_command import LaunchSettings
from areal_x.engine.servers.machine_checks import free_ports
from areal_x.engine.servers.server_process import ServerProcess
from areal_x.engine.servers.vllm_command import vllm_command
from areal_x.engine.transfer.fp8 import cast_tensor, dequantize, is_linear
from areal_x.engine.transfer.make_transport import make_transport
from areal_x.engine.transfer.quantized_checkpoint import write_quantized_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    # Its kernels for FP8 on a CPU need AMX.
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TOLERANCE = 0.3
"""Activations are cast to eight bits, too."""


def keep_cast(policy: Policy, version: int, quantization: str) -> int:
    """Remember the weights of ``version`` as a server of eight bits has them, under the number that is returned."""
    cast = {}
    for name, tensor in policy.versions[version].items():
        if is_linear(name, tensor.shape):
            cast[name] = dequantize(*cast_tensor(name, tensor, quantization))
        else:
            cast[name] = tensor.bfloat16().float()
    policy.versions[-1 - version] = cast
    return -1 - version


@pytest.mark.parametrize("quantization", ["fp8", "fp8_block"])
async def test_each_version_is_served_in_eight_bits(tmp_path: Path, quantization: str) -> None:
    policy = make_policy(tmp_path / "model")
    write_quantized_checkpoint(policy.path, tmp_path / "cast", quantization)
    (port,) = free_ports("127.0.0.1", 1)
    settings = LaunchSettings(
        find_server_python("vllm", None),
        str(tmp_path / "cast"),
        host="127.0.0.1",
        port=port,
        dtype="bfloat16",
        max_length=MAX_LENGTH,
        num_slots=8,
        gpus=(0,),
        quantization=quantization,
        memory_fraction=0.3,
        api_key=KEY,
    )
    command = vllm_command(settings)
    transport = make_transport(
        "shared_memory",
        policy.named_weights(),
        engine="vllm",
        dtype=torch.bfloat16,
        directory=tmp_path / "weights",
        timeout_seconds=60,
        quantization=quantization,
    )
    process = ServerProcess(command.argv, {**os.environ, **command.env}, tmp_path / "vllm.log")
    client = ServerClient(f"http://127.0.0.1:{port}", "", api_key=KEY)
    served = Served(policy, client, process, transport, tmp_path)
    try:
        await until_ready(served)
        await served.dialect.set_version(client, 0)
        for version in range(3):
            if version:
                await served.publish()
            response = await served.run(request(range(2, 40), max_new_tokens=32))
            assert [span.version for span in response.version_spans] == [version]
            own = np.abs(response.logprobs - policy.logprobs(keep_cast(policy, version, quantization), response))
            assert own.max() < TOLERANCE
            if version:
                assert np.abs(response.logprobs - policy.logprobs(version - 1, response)).max() > 2 * own.max()
    finally:
        await served.close()
