"""How SGLang 0.5.23 is started, on a CPU and on GPUs, and why each flag and variable is there."""

from __future__ import annotations

import json
from pathlib import Path

from areal_x.api.errors import ConfigError
from areal_x.engine.inference.stopping import has_tokenizer
from areal_x.engine.servers import sglang_start
from areal_x.engine.servers.launch_command import LaunchCommand, LaunchSettings, check_quantization

__all__ = ["SPARE_CONTEXT", "sglang_command"]

SPARE_CONTEXT = 8
"""Tokens of context that SGLang keeps for itself: it ends a request so many, or fewer, before its context is full."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def sglang_command(settings: LaunchSettings) -> LaunchCommand:
    """The command line of one server and the variables that it needs.

    Raises:
        ConfigError: the settings need a GPU, or a quantized model.
    """
    on_cpu = not settings.gpus
    check_quantization(settings)
    if on_cpu and settings.lora_rank:
        raise ConfigError("SGLang serves LoRA adapters on a GPU only; publish whole weights, or use rollout=vllm")
    # ``-P``: the modules beside the script must not shadow the server's.
    argv = [str(settings.python), "-P", sglang_start.__file__, "--model-path", settings.model_path]
    argv += _common_flags(settings)
    argv += _cpu_flags(settings) if on_cpu else _gpu_flags(settings)
    if settings.lora_rank:
        argv += ["--enable-lora", "--max-lora-rank", str(settings.lora_rank), "--lora-target-modules", "all"]
        # The adapter that serves, and room for requests of the model itself.
        argv += ["--max-loras-per-batch", "2"]
    # The user's own words come last: of a flag given twice, SGLang takes the last.
    argv += settings.args
    return LaunchCommand(argv, _variables(settings))


def _common_flags(settings: LaunchSettings) -> list[str]:
    flags = ["--host", settings.host, "--port", str(settings.port), "--dtype", settings.dtype]
    flags += ["--context-length", str(settings.max_length + SPARE_CONTEXT)]
    flags += ["--max-running-requests", str(settings.num_slots)]
    flags += ["--random-seed", str(settings.seed % 2**31)]
    # Fewer, larger messages, each with new tokens alone.
    flags += ["--stream-interval", str(settings.stream_interval), "--incremental-streaming-output"]
    # No sampling defaults from the model's generation_config.json.
    flags += ["--sampling-defaults", "openai"]
    # Its text is one that not every tokenizer can encode, and a warm-up that fails ends the server.
    flags += ["--skip-server-warmup"]
    # A line for each HTTP request and for each 40 tokens would bury the lines that tell why a server died.
    flags += ["--log-level-http", "warning", "--decode-log-interval", "1000"]
    if settings.trust_remote_code:
        flags += ["--trust-remote-code"]
    if not has_tokenizer(settings.model_path):
        flags += ["--skip-tokenizer-init"]
    return flags


def _cpu_flags(settings: LaunchSettings) -> list[str]:
    flags = ["--device", "cpu", "--attention-backend", "torch_native"]
    # Overlap hides the launches of a GPU's kernels; a CPU has none.
    flags += ["--disable-overlap-schedule"]
    # Else keys and values take a share of all memory of the machine.
    flags += ["--max-total-tokens", str(_cache_tokens(settings))]
    flags += ["--mem-fraction-static", "0.3"]
    return flags


def _gpu_flags(settings: LaunchSettings) -> list[str]:
    flags = ["--mem-fraction-static", f"{settings.memory_fraction:g}"]
    if len(settings.gpus) > 1:
        flags += ["--tensor-parallel-size", str(len(settings.gpus))]
    if settings.can_sleep:
        flags += ["--enable-memory-saver"]
    return flags


def _cache_tokens(settings: LaunchSettings) -> int:
    """Tokens that the cache of a server on a CPU holds: all that can be in flight, as far as ``kv_cache_gib`` goes.

    Raises:
        ConfigError: not even one sequence fits.
    """
    longest = settings.max_length + SPARE_CONTEXT
    wanted = longest * settings.num_slots
    size = _bytes_per_token(settings)
    if size is None:
        return wanted
    room = int(settings.kv_cache_gib * 2**30) // size
    if room < longest:
        raise ConfigError(
            f"rollout.server.kv_cache_gib={settings.kv_cache_gib:g} holds {room} tokens, fewer than one sequence of "
            f"rollout.max_length={settings.max_length}; needed: {longest * size / 2**30:.3f} GiB"
        )
    return min(wanted, room)


def _bytes_per_token(settings: LaunchSettings) -> int | None:
    """Bytes of keys and values of one token, ``None`` where the model's configuration is elsewhere or does not say."""
    path = Path(settings.model_path) / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text())
    try:
        num_heads = config["num_attention_heads"]
        num_kv_heads = config.get("num_key_value_heads") or num_heads
        head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
        return int(2 * config["num_hidden_layers"] * num_kv_heads * head_dim * _BYTES.get(settings.dtype, 4))
    except KeyError:
        return None


def _variables(settings: LaunchSettings) -> dict[str, str]:
    variables = {
        # The few tokens beyond ``max_length`` are never used, but may lie beyond what the model was made for.
        "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",
        # Log-probabilities of the tempered distribution, whatever this process's environment says.
        "SGLANG_RETURN_ORIGINAL_LOGPROB": "0",
        "HF_HUB_OFFLINE": "1" if Path(settings.model_path).is_dir() else "0",
        "DO_NOT_TRACK": "1",
        # The client closes idle connections; a server that did so could break a request that is just being sent.
        "SGLANG_TIMEOUT_KEEP_ALIVE": "600",
        # This project's packages would shadow the server's.
        "PYTHONPATH": "",
    }
    if settings.api_key is not None:
        variables[sglang_start.KEY_VARIABLE] = settings.api_key
    if settings.gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, settings.gpus))
    else:
        variables |= {
            "SGLANG_USE_CPU_ENGINE": "1",
            # Threads of two servers, or of a server and the trainer, spin on each other: ten times slower.
            "OMP_NUM_THREADS": str(settings.num_threads),
            # The first request would compile for half a minute.
            "TORCHDYNAMO_DISABLE": "1",
        }
    variables.update(settings.env)
    return variables
