"""Settings of inference servers and endpoints that cannot work, each refused by key, value and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from areal_x.api.config import ExperimentConfig
from areal_x.api.config_checks import check_config
from areal_x.api.errors import ConfigError
from areal_x.api.server_checks import check_trains, is_loopback
from areal_x.launch.compose import ConfigSource, compose_config

URL = "http://127.0.0.1:8000"
OPENAI = {"engine": "openai", "base_urls": [f"{URL}/v1"]}


def made(tmp_path: Path, changes: dict[str, Any], engine: str = "vllm") -> ExperimentConfig:
    """A configuration with ``changes`` below ``rollout`` (or, with their section, elsewhere)."""
    base = ExperimentConfig(name="run", runs_dir=str(tmp_path / "runs"))
    base.data.path, base.model.init, base.rollout.engine = "arithmetic", {"hidden_size": 32}, engine
    tree = OmegaConf.structured(base)
    values = {key if key.partition(".")[0] in tree else f"rollout.{key}": value for key, value in changes.items()}
    for key, value in values.items():
        OmegaConf.update(tree, key, value)
    config = OmegaConf.to_object(tree)
    assert isinstance(config, ExperimentConfig)
    return config


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"engine": "vlm"}, "rollout.engine=vlm: did you mean vllm?"),
        ({"base_urls": [URL], "server.num_servers": 2}, "rollout.server.num_servers=2: says how to start servers"),
        ({"base_urls": [URL], "server.port": 8000}, "rollout.server.port=8000: says how to start servers"),
        ({"base_urls": [URL], "server.gpus": [0]}, "rollout.server.gpus=[0]: says how to start servers"),
        ({"base_urls": [URL], "server.python": "/x"}, "rollout.server.python=/x: says how to start servers"),
        ({"base_urls": [URL], "server.args": ["--x"]}, "keep one of the two"),
        ({"base_urls": [URL], "server.memory_fraction": 0.5}, "rollout.server.memory_fraction=0.5: says how to start"),
        ({"base_urls": [URL], "server.kv_cache_gib": 2.0}, "rollout.server.kv_cache_gib=2.0: says how to start"),
        ({"base_urls": [URL], "server.stream_interval": 8}, "rollout.server.stream_interval=8: says how to start"),
        ({"base_urls": [URL], "server.max_restarts": 1}, "rollout.server.max_restarts=1: says how to start"),
        ({"server.model_name": "m"}, "rollout.server.model_name=m: is the name of a model at rollout.base_urls"),
        ({"base_urls": [URL], "colocated": True}, "rollout.colocated=true: the run must start the servers itself"),
        ({"base_urls": ["127.0.0.1:8000"]}, "rollout.base_urls=127.0.0.1:8000: is not an address such as"),
        ({"base_urls": ["ftp://a"]}, "is not an address such as"),
        ({"base_urls": ["http://"]}, "is not an address such as"),
        ({"base_urls": ["http://a:99999"]}, "is not an address such as"),
        ({"base_urls": ["http://[::1"]}, "is not an address such as"),
        ({"base_urls": ["http://a b"]}, "is not an address such as"),
        ({"base_urls": [f"{URL}/v1"]}, "has a path; write http://127.0.0.1:8000"),
        ({"base_urls": [f"{URL}?a=1"]}, "must end before ?"),
        ({"base_urls": [URL, f"{URL}/"]}, f"rollout.base_urls={URL}/: is the same server as {URL}"),
        ({"base_urls": ["http://a", "http://A:80"]}, "is the same server as http://a"),
        ({"server.host": "0.0.0.0"}, "rollout.server.host=0.0.0.0: other machines reach this address"),
        ({"server.host": "0.0.0.0", "server.public": True}, "a server that other machines reach needs a key"),
        ({"server.host": "http://localhost"}, "without a scheme"),
        ({"server.host": ""}, "name an address"),
        ({"server.port": 0}, "rollout.server.port=0: 1 servers take the ports 0 to 0"),
        ({"server.port": 65535, "server.num_servers": 2}, "2 servers take the ports 65535 to 65536; use 1 to 65535"),
        ({"server.num_servers": 0}, "rollout.server.num_servers=0: must be 1 or more"),
        ({"num_slots": 1, "server.num_servers": 2}, "rollout.num_slots=1: 2 servers share these places"),
        ({"num_slots": 1, "base_urls": [URL, "http://b"]}, "rollout.num_slots=1: 2 servers share these places"),
        ({"server.tensor_parallel": 2, "model.device": "cpu"}, "use 1 with model.device=cpu"),
        ({"server.gpus": [0], "model.device": "cpu"}, "model.device=cpu uses none"),
        ({"server.gpus": [0, 0], "server.num_servers": 2}, "must be different numbers"),
        ({"server.gpus": [-1]}, "must be different numbers"),
        ({"server.gpus": [0], "server.num_servers": 2}, "2 servers with 1 GPUs each (tensor_parallel) take 2"),
        ({"server.weights": "rdma"}, "must be one of auto, cuda_ipc, disk, gloo, lora, nccl, shared_memory"),
        ({"server.weights": "nccl", "model.device": "cpu"}, "rollout.server.weights=nccl: needs a GPU"),
        ({"server.weights": "cuda_ipc", "model.device": "cpu"}, "rollout.server.weights=cuda_ipc: needs a GPU"),
        ({"server.weights": "nccl", "base_urls": [URL]}, "needs servers that the run starts itself"),
        ({"server.weights": "shared_memory", "base_urls": [URL]}, "needs servers that the run starts itself"),
        ({"server.weights": "gloo", "base_urls": [URL, "http://b"]}, "and http://b is on another; use disk"),
        ({"server.weights": "nccl", "colocated": True}, "use cuda_ipc with rollout.colocated=true"),
        ({"server.weights": "cuda_ipc"}, "use nccl, or set rollout.colocated=true"),
        ({"server.quantization": "int4"}, "must be one of fp8, fp8_block"),
        ({"server.quantization": "fp8", "model.device": "cpu"}, "8-bit floats need a GPU"),
        ({"server.memory_fraction": 0.0}, "rollout.server.memory_fraction=0.0: must be above 0 and below 1"),
        ({"server.memory_fraction": 1.0}, "must be above 0 and below 1"),
        ({"server.kv_cache_gib": 0.0}, "rollout.server.kv_cache_gib=0.0: must be above 0"),
        ({"server.stall_timeout_seconds": float("nan")}, "rollout.server.stall_timeout_seconds=nan: must be above 0"),
        ({"server.max_restarts": -1}, "rollout.server.max_restarts=-1: must be 0 or more"),
        ({"server.stream_interval": 0}, "rollout.server.stream_interval=0: must be 1 or more"),
        ({"server.args": ["--port=3"]}, "rollout.server.args holds --port; say it with rollout.server.port"),
        ({"server.env": {"A=B": "x"}}, "is no name of an environment variable"),
        ({"engine": "embedded", "kv_on_update": "abort"}, "use recompute or keep with rollout.engine=embedded"),
        ({"engine": "embedded", "base_urls": [URL]}, "the embedded engine runs in this run"),
        ({"engine": "embedded", "colocated": True}, "needs servers that can sleep"),
        ({"engine": "embedded", "server.quantization": "fp8"}, "set it to null"),
        ({**OPENAI, "base_urls": []}, "needs the one address of the endpoint"),
        ({**OPENAI, "base_urls": ["http://a/v1", "http://b/v1"]}, "needs the one address of the endpoint"),
        ({**OPENAI, "colocated": True}, "the run must start the servers itself"),
        ({**OPENAI, "server.num_servers": 2}, "says how to start servers"),
        ({**OPENAI, "evaluation.sampling.top_k": 5}, "evaluation.sampling.top_k=5: OpenAI's protocol has no top_k"),
        ({**OPENAI, "evaluation.sampling.stop_token_ids": [2]}, "knows no token ids"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(made(tmp_path, changes))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"engine": "sglang", "server.num_servers": 2, "server.port": 30000, "kv_on_update": "abort"},
        {"base_urls": [URL, "http://127.0.0.1:8001"], "server.model_name": "m", "server.weights": "disk"},
        {"base_urls": [URL], "server.weights": "gloo"},
        {"base_urls": ["https://servers.example"], "server.api_key_env": "SERVER_KEY"},
        {"server.host": "0.0.0.0", "server.public": True, "server.api_key_env": "SERVER_KEY"},
        {"server.host": "::1"},
        {"server.gpus": [2, 3], "server.tensor_parallel": 2, "model.device": "cuda", "server.weights": "nccl"},
        {"colocated": True, "server.memory_fraction": 0.4, "server.weights": "cuda_ipc", "max_staleness": 0},
        {"engine": "openai", "base_urls": ["https://models.example/api/v1/"], "evaluation.sampling.top_p": 0.9},
    ],
)
def test_what_can_work_passes(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_config(made(tmp_path, changes))


@pytest.mark.parametrize("changes", [{"base_urls": ["http://me:s3cret@a"]}, {"server.api_key_env": "sk-s3cret"}])
@pytest.mark.parametrize("engine", ["vllm", "openai"])
def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path, changes: dict[str, Any], engine: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(made(tmp_path, {"base_urls": [f"{URL}/v1"] if engine == "openai" else [], **changes}, engine))
    assert "s3cret" not in str(caught.value) and "api_key_env" in str(caught.value)


@pytest.mark.parametrize("flag", ["--api-key=s3cret", "--api_key=s3cret", "--admin-api-key=s3cret"])
def test_a_key_among_the_flags_is_not_repeated(tmp_path: Path, flag: str) -> None:
    with pytest.raises(ConfigError, match=r"holds --(admin-)?api-key; say .* rollout\.server\.api_key_env") as caught:
        check_config(made(tmp_path, {"server.args": [flag]}))
    assert "s3cret" not in str(caught.value)


def test_nothing_trains_on_an_endpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.engine=openai: is for areal-x eval.*log-probabilities"):
        check_trains(made(tmp_path, OPENAI).rollout)
    for engine in ("embedded", "vllm", "sglang"):
        check_trains(made(tmp_path, {}, engine).rollout)


def test_an_endpoint_needs_no_model(tmp_path: Path) -> None:
    config = made(tmp_path, OPENAI)
    config.model.init = None
    check_config(config)


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com", "127.0.0.1.example.com")))


@pytest.mark.parametrize("engine", ["vllm", "sglang", "openai"])
def test_presets_take_addresses_of_the_command_line(engine: str, tmp_path: Path) -> None:
    path = "/v1" if engine == "openai" else ""
    overrides = [f"rollout={engine}", f"rollout.base_urls=[http://10.0.0.7:9000{path}]", f"runs_dir={tmp_path}"]
    config = compose_config(ConfigSource.named("quickstart"), overrides)
    check_config(config)
    assert config.rollout.engine == engine and config.rollout.base_urls == [f"http://10.0.0.7:9000{path}"]
