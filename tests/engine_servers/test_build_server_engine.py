"""What can be wrong with model and machine is an error before any server starts."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.config import ModelConfig, RolloutConfig, ServerConfig
from areal_x.api.errors import ConfigError
from areal_x.engine.init_model import init_model
from areal_x.engine.servers.build import StartedServer, build_server_engine
from areal_x.engine.servers.launch_command import LaunchSettings
from areal_x.engine.servers.server_engine import ServerEngine
from areal_x.engine.servers.server_host import LocalHost


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("build") / "model"
    init_model(path, tokenizer="characters", vocab_size=128)
    return str(path)


def build(model_path: str, tmp_path: Path, server: dict[str, Any] | None = None, **rollout: Any) -> ServerEngine:
    config = RolloutConfig(**{"engine": "vllm", "max_length": 64, "server": ServerConfig(**(server or {})), **rollout})
    model = ModelConfig(device="cpu")
    return build_server_engine(model, config, model_path, log_dir=tmp_path, seed=1, transport=None)


def take_port() -> socket.socket:
    """Listens on a port after one that is free."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as before:
            try:
                return socket.create_server(("127.0.0.1", before.getsockname()[1] + 1))
            except (OSError, OverflowError):
                continue


async def test_a_taken_port_is_named(model_path: str, tmp_path: Path) -> None:
    with take_port() as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is taken"):
            build(model_path, tmp_path, {"port": port})
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is taken"):
            build(model_path, tmp_path, {"port": port - 1, "num_servers": 2})


async def test_models_that_cannot_be_served_are_named(model_path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        build(str(tmp_path / "nothing"), tmp_path)
    with pytest.raises(ConfigError, match=r"rollout\.max_length=9999999: the model has \d+ positions"):
        build(model_path, tmp_path, max_length=9999999)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({"host": "0.0.0.0"}, r"rollout\.server\.host=0\.0\.0\.0: other machines reach this address"),
        ({"host": "0.0.0.0", "public": True}, r"needs a key; set rollout\.server\.api_key_env"),
        ({"gpus": [0]}, r"rollout\.server\.gpus=\[0\]: model\.device=cpu uses none"),
        ({"api_key_env": "AREAL_X_NO_SUCH_KEY"}, "AREAL_X_NO_SUCH_KEY: this environment variable is not set"),
        ({"python": "/nowhere/python"}, "/nowhere/python"),
    ],
)
async def test_settings_that_cannot_work_are_named(
    model_path: str, tmp_path: Path, server: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        build(model_path, tmp_path, server)


async def test_servers_started_at_once_get_different_ports(tmp_path: Path) -> None:
    host = LocalHost()
    settings = LaunchSettings(
        python=Path(sys.executable),
        model_path="m",
        host="127.0.0.1",
        port=0,
        dtype="float32",
        max_length=8,
        num_slots=1,
    )
    servers = [StartedServer("vllm", settings, tmp_path / f"{index}.log", host) for index in range(3)]
    # Each ends at once, for this interpreter has no vLLM; its port stays given.
    started = await asyncio.gather(*(server() for server in servers))
    assert len({address for address, _ in started}) == 3
    for _, process in started:
        assert process is not None
        assert await process.wait() == 1
        assert "vllm" in process.tail()


async def test_running_servers_need_no_environment(
    model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AREAL_X_TEST_KEY", "  secret-of-the-servers\n")
    urls = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    engine = build(model_path, tmp_path, {"api_key_env": "AREAL_X_TEST_KEY"}, base_urls=urls, num_slots=5)
    assert [replica.num_slots for replica in engine.replicas] == [3, 3]
    assert engine._settings.api_key == "secret-of-the-servers"
    assert "secret" not in repr(engine._settings)
    await engine.close()
