"""The command line and the variables of vLLM, and the guard of its routes, without a server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import areal_x
from areal_x.api.errors import ConfigError
from areal_x.engine.init_model import init_model
from areal_x.engine.servers import client
from areal_x.engine.servers.build import StartedServer
from areal_x.engine.servers.launch_command import LaunchSettings
from areal_x.engine.servers.server_host import LocalHost
from areal_x.engine.servers.vllm_command import ENGINE_NAME, vllm_command, worker_import_folder
from areal_x.engine.servers.vllm_key_guard import KeyGuard

KEY = "sk-0123456789"


def settings(model: Path | str = "some/model", **fields: Any) -> LaunchSettings:
    given: dict[str, Any] = {
        "python": Path("/env/bin/python"),
        "model_path": str(model),
        "host": "127.0.0.1",
        "port": 30001,
        "dtype": "float32",
        "max_length": 512,
        "num_slots": 4,
    }
    return LaunchSettings(**(given | fields))


def flag(argv: list[str], name: str) -> str:
    assert argv.count(name) == 1, name
    return argv[argv.index(name) + 1]


def test_every_server_is_one_that_can_be_updated() -> None:
    command = vllm_command(settings(stream_interval=7))
    assert command.argv[:5] == ["/env/bin/python", "-m", "vllm.entrypoints.cli.main", "serve", "some/model"]
    assert flag(command.argv, "--logprobs-mode") == "processed_logprobs"
    assert flag(command.argv, "--stream-interval") == "7"
    assert flag(command.argv, "--max-model-len") == "512" and flag(command.argv, "--max-num-seqs") == "4"
    assert "--enable-scale-out" in command.argv and command.env["VLLM_SERVER_DEV_MODE"] == "1"
    assert json.loads(flag(command.argv, "--weight-transfer-config")) == {"backend": ENGINE_NAME}
    extension = flag(command.argv, "--worker-extension-cls")
    path = worker_import_folder() / Path(*extension.split(".")[:-1]).with_suffix(".py")
    text = path.read_text()
    assert f"class {extension.rpartition('.')[2]}:" in text and f'ENGINE_NAME = "{ENGINE_NAME}"' in text


def test_idle_connections_are_closed_by_the_client_not_by_the_server() -> None:
    assert float(vllm_command(settings()).env["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) > client._IDLE_SECONDS


def test_a_server_on_a_cpu_is_one_process_of_few_threads() -> None:
    command = vllm_command(settings(num_threads=3, kv_cache_gib=1.5))
    assert flag(command.argv, "--kv-cache-memory-bytes") == str(3 * 2**29)
    assert flag(command.argv, "--distributed-executor-backend") == "uni"
    assert command.env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert command.env["OMP_NUM_THREADS"] == "3" and command.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "CUDA_VISIBLE_DEVICES" not in command.env and "--gpu-memory-utilization" not in command.argv


def test_tunables_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    tunables = vllm_command(settings()).env["GLIBC_TUNABLES"].split(":")
    assert tunables[0] == "glibc.malloc.check=1" and "glibc.malloc.hugetlb=1" in tunables
    assert "GLIBC_TUNABLES" not in vllm_command(settings(gpus=(0,))).env


def test_a_server_on_gpus_sees_its_own_only() -> None:
    command = vllm_command(settings(gpus=(2, 3), memory_fraction=0.6, can_sleep=True))
    assert command.env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert flag(command.argv, "--tensor-parallel-size") == "2"
    assert flag(command.argv, "--gpu-memory-utilization") == "0.6"
    assert "--enable-sleep-mode" in command.argv
    assert "--enforce-eager" not in command.argv and "OMP_NUM_THREADS" not in command.env
    assert "--enable-sleep-mode" not in vllm_command(settings(gpus=(0,))).argv


def test_the_key_is_in_the_environment_alone() -> None:
    given = settings(api_key=KEY)
    command = vllm_command(given)
    assert command.env["VLLM_API_KEY"] == KEY and "--middleware" in command.argv
    assert not any(KEY in word for word in command.argv) and KEY not in repr(command) + repr(given)
    assert "--middleware" not in vllm_command(settings()).argv


def test_the_users_words_come_last() -> None:
    command = vllm_command(settings(args=("--max-num-seqs", "9"), env=(("OMP_NUM_THREADS", "5"),)))
    assert command.argv[-2:] == ["--max-num-seqs", "9"] and command.env["OMP_NUM_THREADS"] == "5"


def test_adapters_are_served_at_a_rank_that_there_are_kernels_for() -> None:
    command = vllm_command(settings(lora_rank=12))
    assert "--enable-lora" in command.argv and flag(command.argv, "--max-lora-rank") == "16"
    assert command.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "--enable-lora" not in vllm_command(settings()).argv
    with pytest.raises(ConfigError, match=r"rank 513.*512"):
        vllm_command(settings(lora_rank=513))


def test_a_model_without_a_tokenizer_is_served_without_one(tmp_path: Path) -> None:
    assert "--skip-tokenizer-init" in vllm_command(settings(tmp_path)).argv
    (tmp_path / "tokenizer.json").write_text("{}")
    command = vllm_command(settings(tmp_path))
    assert "--skip-tokenizer-init" not in command.argv and command.env["HF_HUB_OFFLINE"] == "1"
    assert vllm_command(settings("some/model")).env["HF_HUB_OFFLINE"] == "0"


def test_eight_bits_need_a_gpu_and_a_model_that_has_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quantization=fp8 needs a GPU"):
        vllm_command(settings(tmp_path, quantization="fp8"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no quantization_config"):
        vllm_command(settings(tmp_path, quantization="fp8_block", gpus=(0,)))
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    assert vllm_command(settings(tmp_path, quantization="fp8_block", gpus=(0,))).argv


async def test_servers_of_eight_bits_start_from_one_copy_of_the_model(tmp_path: Path) -> None:
    """The servers themselves are replaced by a program that ends at once."""
    init_model(tmp_path / "model", texts=["text"], hidden_size=64, num_layers=1, intermediate_size=64)
    given = settings(tmp_path / "model", quantization="fp8", gpus=(0,), dtype="bfloat16", python=Path("/bin/true"))
    host = LocalHost()
    logs = [tmp_path / "logs" / f"vllm-{index}.log" for index in range(2)]
    launches = [StartedServer("vllm", given, log, host) for log in logs]
    for _ in range(2):
        for _, process in await asyncio.gather(*(launch() for launch in launches)):
            assert process is not None and await process.wait() == 0
    (copy,) = (path for path in (tmp_path / "logs").iterdir() if path not in logs)
    assert json.loads((copy / "config.json").read_text())["quantization_config"]["quant_method"] == "fp8"
    assert all(log.read_text().count(str(copy)) == 2 for log in logs)


def test_workers_see_this_package_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = worker_import_folder()
    assert vllm_command(settings()).env["PYTHONPATH"] == str(folder) and worker_import_folder() == folder
    assert [path.name for path in folder.iterdir()] == ["areal_x"] and folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "areal_x").resolve() == Path(areal_x.__file__).resolve().parent
    argv = [sys.executable, "-S", "-c", "import areal_x.engine.servers.vllm_key_guard as m; print(m.__file__)"]
    environment = {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    ran = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.stdout.startswith(str(folder)), ran.stderr


def test_a_folder_that_others_can_write_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = worker_import_folder()
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="not a private folder"):
        worker_import_folder()
    folder.chmod(0o700)
    (folder / "areal_x").unlink()
    (folder / "areal_x").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="does not lead to"):
        worker_import_folder()
    (folder / "areal_x").unlink()
    folder.rmdir()
    for make in (folder.touch, lambda: folder.symlink_to(tmp_path), lambda: folder.symlink_to("nowhere")):
        make()
        with pytest.raises(ConfigError, match="not a private folder"):
            worker_import_folder()
        folder.unlink()


async def ask(guard: KeyGuard, kind: str = "http", *keys: str) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = [(b"authorization", key.encode()) for key in keys]
    await guard({"type": kind, "path": "/collective_rpc", "headers": headers}, receive, send)
    return sent


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_only_the_key_opens_the_routes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "inside"})

    guard = KeyGuard(application)
    assert asyncio.run(ask(guard, kind, f"Bearer {KEY}")) == [{"type": "inside"}]
    wrong = [(), ("Bearer ",), (KEY,), (f"bearer {KEY}x",), (f"Bearer {KEY}", f"Bearer {KEY}"), ("Bearer \u00e9",)]
    for keys in wrong:
        first, *_ = asyncio.run(ask(guard, kind, *keys))
        assert first.get("status") == 401 or first["type"] == "websocket.close"
    assert asyncio.run(ask(guard, "lifespan")) == [{"type": "inside"}]


def test_a_guard_without_a_key_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(KeyError, match="VLLM_API_KEY"):
        KeyGuard(None)  # type: ignore[arg-type]
