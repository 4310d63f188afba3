"""What goes wrong around the engine's process, and an updater that is faster than the engine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import VOCAB, save_model

from areal_x.api.errors import EngineDiedError, EngineError, RequestError
from areal_x.api.records import ModelRequest, ModelResponse, SamplingParams
from areal_x.engine.inference import EmbeddedEngine
from areal_x.engine.weights import SharedWeights


def request(max_new_tokens: int = 200, **sampling: object) -> ModelRequest:
    return ModelRequest(np.array([2, 3]), SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True, **sampling))  # type: ignore[arg-type]


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_killed_process_fails_every_call_at_once(tmp_path: Path) -> None:
    save_model(tmp_path)
    engine = EmbeddedEngine(tmp_path, num_slots=2, max_length=250, log_path=tmp_path / "logs" / "engine.log")
    with pytest.raises(EngineError, match="not started"):
        await engine.agenerate(request())
    await engine.start()
    with pytest.raises(RequestError, match="tokenizer"):
        await engine.agenerate(request(stop=("x",)))
    await engine.pause()
    tasks = [asyncio.create_task(engine.agenerate(request())) for _ in range(5)]
    batch = asyncio.create_task(engine.agenerate_batch([request(), request()]))
    await asyncio.sleep(0.05)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    killed = time.monotonic()
    results = await asyncio.gather(*tasks, batch, return_exceptions=True)
    assert time.monotonic() - killed < 60.0
    assert all(isinstance(result, EngineDiedError) and "signal 9" in str(result) for result in results)
    with pytest.raises(EngineDiedError):
        await engine.health()
    with pytest.raises(EngineDiedError):
        await engine.agenerate(request())
    await engine.close()


async def test_what_the_process_raised_is_shown(tmp_path: Path) -> None:
    save_model(tmp_path)
    engine = EmbeddedEngine(tmp_path, num_slots=2, max_length=250)
    await engine.start()
    await engine.pause()
    task = asyncio.create_task(engine.agenerate(request()))
    await asyncio.sleep(0)
    engine._post(("generate", ["not a request"]))
    with pytest.raises(EngineDiedError, match="status 1") as caught:
        await task
    assert "Traceback" in caught.value.tail and "AttributeError" in caught.value.tail
    await engine.close()


async def test_on_a_cpu_all_its_threads_let_the_trainer_go_first(tmp_path: Path) -> None:
    save_model(tmp_path)
    engine = EmbeddedEngine(tmp_path, num_slots=2, max_length=250, num_threads=2, device="cpu")
    await engine.start()
    await engine.agenerate(request())
    threads = [int(name) for name in os.listdir(f"/proc/{engine.pid}/task")]
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {10}
    await engine.close()


async def test_closing_a_busy_engine_is_quick_and_leaves_no_process(tmp_path: Path) -> None:
    save_model(tmp_path)
    engine = EmbeddedEngine(tmp_path, num_slots=2, max_length=250)
    await engine.start()
    pid = engine.pid
    tasks = [asyncio.create_task(engine.agenerate(request())) for _ in range(50)]
    await asyncio.sleep(0.02)
    started = time.monotonic()
    await engine.close()
    await engine.close()
    assert time.monotonic() - started < 60.0
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert any(isinstance(result, EngineDiedError) for result in results)
    assert pid is not None and not is_running(pid)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "no config.json"),
        (lambda path: (path / "config.json").write_text('{"model_type": "t5"}'), "encoder-decoder"),
    ],
)
async def test_a_model_that_cannot_run_is_named_at_start(tmp_path: Path, prepare: object, message: str) -> None:
    prepare(tmp_path)  # type: ignore[operator]
    engine = EmbeddedEngine(tmp_path)
    with pytest.raises(EngineError, match=message) as caught:
        await engine.start()
    assert "Traceback" not in str(caught.value)


async def test_weights_of_another_model_are_refused_at_start(tmp_path: Path) -> None:
    save_model(tmp_path)
    weights = SharedWeights.create([("model.norm.weight", torch.zeros(32))])
    engine = EmbeddedEngine(tmp_path, weights=weights, max_length=64)
    with pytest.raises(EngineDiedError, match="not among the shared weights"):
        await engine.start()
    weights.close()


def test_bad_options_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="kv_on_update"):
        EmbeddedEngine(tmp_path, kv_on_update="forget")
    with pytest.raises(EngineError, match="num_slots 0"):
        EmbeddedEngine(tmp_path, num_slots=0)


async def test_a_writer_in_a_tight_loop_never_gives_a_token_of_another_version(tmp_path: Path) -> None:
    """Weights of version v make token v mod 61 the most likely one; torn weights would make another one so."""
    model = save_model(tmp_path, tie_word_embeddings=False)
    parameters = dict(model.named_parameters())
    shared = SharedWeights.create(model.named_parameters())
    # No layer adds to the embedding, which is the same for all tokens: the head's rows alone decide.
    constant = {
        name: torch.zeros_like(tensor) if name.endswith(("o_proj.weight", "down_proj.weight")) else tensor
        for name, tensor in parameters.items()
    }
    constant["model.embed_tokens.weight"] = torch.ones_like(parameters["model.embed_tokens.weight"])
    constant["model.norm.weight"] = torch.full_like(parameters["model.norm.weight"], 5.0)

    def write(version: int) -> None:
        head = torch.zeros_like(parameters["lm_head.weight"])
        head[version % VOCAB] = 1.0
        shared.write(version, {**constant, "lm_head.weight": head}.items())

    engine = EmbeddedEngine(tmp_path, num_slots=8, max_length=128, weights=shared, initial_version=-1)
    await engine.start()
    stop = threading.Event()

    def write_for_ever() -> None:
        version = 1
        while not stop.is_set():
            version += 1
            write(version)

    write(1)
    await engine.update_weights(1)
    writer = threading.Thread(target=write_for_ever)
    writer.start()
    try:
        responses: list[ModelResponse] = []
        # On a busy machine the first requests may meet few versions.
        while len({span.version for response in responses for span in response.version_spans}) <= 3:
            tasks = [asyncio.create_task(engine.agenerate(request(100, temperature=0.0))) for _ in range(40)]
            while not all(task.done() for task in tasks):
                version = shared.version
                assert version is not None
                await engine.update_weights(version)
                assert (await engine.health()).version >= version
            responses += await asyncio.gather(*tasks)
    finally:
        stop.set()
        writer.join()
        await engine.close()
        shared.close()
    for response in responses:
        for start, end, version in response.version_spans:
            assert (response.output_ids[start:end] == version % VOCAB).all()


def test_the_process_ends_with_its_driver(tmp_path: Path) -> None:
    save_model(tmp_path)
    script = (
        "import asyncio, os, signal, sys\n"
        "from areal_x.engine.inference import EmbeddedEngine\n"
        "async def main():\n"
        "    engine = EmbeddedEngine(sys.argv[1], max_length=64)\n"
        "    await engine.start()\n"
        "    print(engine.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, timeout=500)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    deadline = time.monotonic() + 60.0
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_importing_the_engine_loads_no_torch() -> None:
    script = "import sys, areal_x.engine.inference; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "False"
