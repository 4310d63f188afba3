"""How vLLM 0.32 is started, on a CPU and on GPUs, and why each flag and variable is there.

``VLLM_API_KEY`` (never ``--api-key``: a command line is public) makes vLLM guard /v1, /v2, /inference and /cohere
only. ``vllm_key_guard`` guards the rest, above all the routes of the development mode.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from hashlib import sha256
from pathlib import Path

from areal_x.api.errors import ConfigError
from areal_x.engine.inference.stopping import has_tokenizer
from areal_x.engine.servers.launch_command import LaunchCommand, LaunchSettings, check_quantization

__all__ = ["ENGINE_NAME", "vllm_command", "worker_import_folder"]

ENGINE_NAME = "areal_x"
"""Of the weight transfer engine that the worker extension registers."""

_EXTENSION = "areal_x.engine.transfer.vllm_worker.WorkerExtension"
_KEY_GUARD = "areal_x.engine.servers.vllm_key_guard.KeyGuard"
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def vllm_command(settings: LaunchSettings) -> LaunchCommand:
    """The command line of one server and the variables that it needs.

    Raises:
        ConfigError: the settings need a GPU, or a quantized model.
    """
    on_cpu = not settings.gpus
    check_quantization(settings)
    argv = [str(settings.python), "-m", "vllm.entrypoints.cli.main", "serve", settings.model_path]
    argv += _common_flags(settings)
    argv += _cpu_flags(settings) if on_cpu else _gpu_flags(settings)
    if settings.lora_rank:
        argv += ["--enable-lora", "--max-lora-rank", str(_served_rank(settings.lora_rank)), "--max-loras", "1"]
    # The user's own words come last: of a flag given twice, vLLM takes the last.
    argv += settings.args
    return LaunchCommand(argv, _variables(settings))


def _common_flags(settings: LaunchSettings) -> list[str]:
    flags = ["--host", settings.host, "--port", str(settings.port), "--dtype", settings.dtype]
    flags += ["--max-model-len", str(settings.max_length), "--max-num-seqs", str(settings.num_slots)]
    flags += ["--seed", str(settings.seed % 2**31)]
    # Log-probabilities of the distribution that was sampled from: tempered, truncated, renormalised.
    flags += ["--logprobs-mode", "processed_logprobs"]
    # The route that takes and gives token ids; without it: 403.
    flags += ["--enable-scale-out"]
    # Fewer, larger messages: one for each token would cost both processes more than the token.
    flags += ["--stream-interval", str(settings.stream_interval)]
    # No sampling defaults from the model's generation_config.json (its end-of-sequence ids still count).
    flags += ["--generation-config", "vllm"]
    flags += ["--worker-extension-cls", _EXTENSION]
    flags += ["--weight-transfer-config", json.dumps({"backend": ENGINE_NAME})]
    # A line for each HTTP request and for each ten seconds would bury the lines that tell why a server died.
    flags += ["--disable-uvicorn-access-log"]
    if settings.api_key is not None:
        flags += ["--middleware", _KEY_GUARD]
    if settings.trust_remote_code:
        flags += ["--trust-remote-code"]
    if not has_tokenizer(settings.model_path):
        flags += ["--skip-tokenizer-init"]
    return flags


def _cpu_flags(settings: LaunchSettings) -> list[str]:
    flags = ["--kv-cache-memory-bytes", str(round(settings.kv_cache_gib * 2**30))]
    # Nothing to capture on a CPU, and no compilation of minutes.
    flags += ["--enforce-eager"]
    # One process fewer: starts in 16 s rather than 40 s (with VLLM_ENABLE_V1_MULTIPROCESSING=0).
    flags += ["--distributed-executor-backend", "uni"]
    return flags


def _gpu_flags(settings: LaunchSettings) -> list[str]:
    flags = ["--gpu-memory-utilization", f"{settings.memory_fraction:g}"]
    if len(settings.gpus) > 1:
        flags += ["--tensor-parallel-size", str(len(settings.gpus))]
    if settings.can_sleep:
        flags += ["--enable-sleep-mode"]
    return flags


def _served_rank(rank: int) -> int:
    """The smallest rank that vLLM has kernels for and that holds ``rank``."""
    for served in (1, 8, 16, 32, 64, 128, 256, 320, 512):
        if served >= rank:
            return served
    raise ConfigError(f"LoRA rank {rank} is more than the 512 that vLLM serves")


def _variables(settings: LaunchSettings) -> dict[str, str]:
    variables = {
        # Routes to pause, update, sleep, abort.
        "VLLM_SERVER_DEV_MODE": "1",
        "HF_HUB_OFFLINE": "1" if Path(settings.model_path).is_dir() else "0",
        "VLLM_NO_USAGE_STATS": "1",
        # The client closes idle connections; a server that did so could break a request that is just being sent.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
        "DO_NOT_TRACK": "1",
        # Only the worker's own modules: the project's packages would shadow the server's.
        "PYTHONPATH": str(worker_import_folder()),
        "PYTHONSAFEPATH": "1",
    }
    if settings.api_key is not None:
        variables["VLLM_API_KEY"] = settings.api_key
    if settings.lora_rank:
        variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if settings.gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, settings.gpus))
    else:
        variables |= {
            # Bound threads of two servers share a core and spin on it; unbound ones need the count below.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(settings.num_threads),
            # The scheduler in the worker's process; see the executor above.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # The first request with log-probabilities would compile the sampler for half a minute.
            "TORCHDYNAMO_DISABLE": "1",
            # Memory in huge pages: a reload allocates each layer anew, and small pages cost more than the copies.
            "GLIBC_TUNABLES": ":".join(filter(None, [os.environ.get("GLIBC_TUNABLES"), _HUGE_PAGES])),
        }
    variables.update(settings.env)
    return variables


def worker_import_folder() -> Path:
    """A private folder that holds nothing but a link to this package: what ``PYTHONPATH`` of a server names.

    Named after the user and the package's place, so every run finds the same one and none is left over.

    Raises:
        ConfigError: the folder exists and somebody else can write to it.
    """
    package = Path(__file__).resolve().parents[2]
    name = sha256(str(package).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"areal_x-imports-{os.getuid()}-{name}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigError(f"{folder} is not a private folder of this user; remove it")
    link = folder / package.name
    try:
        link.symlink_to(package)
    except FileExistsError:
        if link.resolve() != package:
            raise ConfigError(f"{link} does not lead to {package}; remove {folder}") from None
    return folder
