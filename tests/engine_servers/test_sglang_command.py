"""The command line and the variables of SGLang, without a server."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.errors import ConfigError
from areal_x.engine.servers import client, sglang_start
from areal_x.engine.servers.launch_command import LaunchSettings
from areal_x.engine.servers.sglang_command import SPARE_CONTEXT, sglang_command

KEY = "sk-0123456789"


def settings(model: Path | str = "/models/some", **fields: Any) -> LaunchSettings:
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


def write_config(folder: Path, **more: Any) -> Path:
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 128}
    (folder / "config.json").write_text(json.dumps(config | more))
    return folder


def test_idle_connections_are_closed_by_the_client_not_by_the_server() -> None:
    assert float(sglang_command(settings()).env["SGLANG_TIMEOUT_KEEP_ALIVE"]) > client._IDLE_SECONDS


def test_a_server_on_a_cpu_uses_what_runs_there() -> None:
    command = sglang_command(settings(num_threads=3))
    assert flag(command.argv, "--device") == "cpu"
    assert flag(command.argv, "--attention-backend") == "torch_native"
    assert "--disable-overlap-schedule" in command.argv
    assert command.env["OMP_NUM_THREADS"] == "3" and "CUDA_VISIBLE_DEVICES" not in command.env


def test_a_server_on_gpus_sees_its_own_only() -> None:
    command = sglang_command(settings(gpus=(2, 3), memory_fraction=0.6, can_sleep=True))
    assert command.env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert flag(command.argv, "--tensor-parallel-size") == "2"
    assert flag(command.argv, "--mem-fraction-static") == "0.6"
    assert "--enable-memory-saver" in command.argv and "--device" not in command.argv
    assert "--enable-memory-saver" not in sglang_command(settings(gpus=(0,))).argv


def test_no_key_is_on_the_command_line_or_in_a_repr() -> None:
    command = sglang_command(settings(api_key=KEY))
    assert command.env[sglang_start.KEY_VARIABLE] == KEY
    assert not any(KEY in word for word in command.argv)
    assert KEY not in repr(command) + repr(settings(api_key=KEY))
    assert sglang_start.KEY_VARIABLE not in sglang_command(settings()).env


def test_the_context_has_room_for_what_sglang_keeps_for_itself() -> None:
    assert flag(sglang_command(settings()).argv, "--context-length") == str(512 + SPARE_CONTEXT)


def test_the_cache_holds_all_that_can_be_in_flight(tmp_path: Path) -> None:
    argv = sglang_command(settings(write_config(tmp_path))).argv
    assert flag(argv, "--max-total-tokens") == str(4 * (512 + SPARE_CONTEXT))


def test_the_cache_of_a_cpu_is_no_larger_than_asked(tmp_path: Path) -> None:
    # 2 (keys, values) x 2 layers x 2 heads x 32 values x 4 bytes = 1024 bytes for each token.
    argv = sglang_command(settings(write_config(tmp_path), kv_cache_gib=1000 / 2**20)).argv
    assert flag(argv, "--max-total-tokens") == "1000"
    wide = write_config(tmp_path, head_dim=64)
    assert flag(sglang_command(settings(wide, kv_cache_gib=2000 / 2**20)).argv, "--max-total-tokens") == "1000"


def test_a_cache_too_small_for_one_sequence_is_an_error_that_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.server\.kv_cache_gib=0\.0004.* 419 tokens.*max_length=512"):
        sglang_command(settings(write_config(tmp_path), kv_cache_gib=0.0004))


def test_a_model_without_a_tokenizer_is_served_without_one(tmp_path: Path) -> None:
    write_config(tmp_path)
    assert "--skip-tokenizer-init" in sglang_command(settings(tmp_path)).argv
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "--skip-tokenizer-init" not in sglang_command(settings(tmp_path)).argv
    assert "--skip-tokenizer-init" not in sglang_command(settings("hub/name")).argv


def test_users_flags_come_last_and_users_variables_win() -> None:
    command = sglang_command(settings(args=("--page-size", "16"), env=(("OMP_NUM_THREADS", "7"),)))
    assert command.argv[-2:] == ["--page-size", "16"]
    assert command.env["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize("fields", [{"quantization": "fp8"}, {"lora_rank": 8}])
def test_what_needs_a_gpu_is_refused_on_a_cpu(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="GPU"):
        sglang_command(settings(**fields))


def test_a_quantized_server_starts_from_quantized_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    given = settings(tmp_path, gpus=(0,), quantization="fp8_block")
    with pytest.raises(ConfigError, match="has no quantization_config"):
        sglang_command(given)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    # Random weights until the first update would be served to the evaluation before it.
    assert "dummy" not in sglang_command(given).argv


def test_adapters_are_served_on_a_gpu() -> None:
    argv = sglang_command(settings(gpus=(0,), lora_rank=16)).argv
    assert "--enable-lora" in argv and flag(argv, "--max-lora-rank") == "16"


def test_the_start_gives_the_key_to_the_server_and_to_nothing_else(tmp_path: Path) -> None:
    """A package of the same name stands for the server: it shows what it was given."""
    package = tmp_path / "sglang"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text(
        "import json, logging, os, sys\n"
        "logging.basicConfig(stream=sys.stderr, force=True)\n"
        "logging.warning('arguments: %r', sys.argv)\n"
        "print(json.dumps({'argv': sys.argv[1:], 'name': __name__, 'env': dict(os.environ),\n"
        "  'line': open('/proc/self/cmdline').read(), 'client': 'client' in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", sglang_start.__file__, "--port", "1"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), sglang_start.KEY_VARIABLE: KEY},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout)
    assert seen["argv"] == ["--port", "1", "--api-key", KEY] and seen["name"] == "__main__"
    assert KEY not in seen["line"] and sglang_start.KEY_VARIABLE not in seen["env"]
    assert "'--api-key', '***'" in done.stderr and KEY not in done.stderr


def test_a_record_that_cannot_be_formatted_is_left_to_its_handler() -> None:
    before = logging.getLogRecordFactory()
    try:
        sglang_start.hide_in_logs(KEY)
        make = logging.getLogRecordFactory()
        broken = make("name", logging.INFO, "file", 1, "%d and %d", ("x",), None)
        assert broken.msg == "%d and %d"
        clean = make("name", logging.INFO, "file", 1, "key %s", (KEY,), None)
        assert clean.getMessage() == "key ***"
    finally:
        logging.setLogRecordFactory(before)
