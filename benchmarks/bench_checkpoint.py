"""How long an asynchronous checkpoint keeps training waiting, beside one copy of the same bytes in memory.

A policy of 29 M float32 parameters (Qwen3, random) with the moments of AdamW: 353 MB of state. Each round trains a
step, begins a checkpoint, trains the next step while the files are written, and asks for the end of the writing where
that step ended. What training waits is the time of ``begin_checkpoint``, plus whatever is left to wait for at
``end_checkpoint``. The baseline is one copy of as many bytes between two blocks of memory that are both there already,
on as many threads, measured in each round. A round's step without a checkpoint tells what writing costs the step.

Asked: waited / copy <= 1.5.

    python benchmarks/bench_checkpoint.py [--rounds 7] [--directory DIR] [--json FILE]

Also shown: the first checkpoint, which makes the memory that the others use again; bytes written per second, with
checksums and fsync; the seconds to verify and to restore.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from areal_x.api.config import AlgorithmConfig, CheckpointConfig, ModelConfig, TrainConfig
from areal_x.api.records import TrainBatch
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.trainer.checkpoint_store import CheckpointStore

VOCABULARY, NUM_SEQUENCES, LENGTH = 8192, 16, 64
ASKED = 1.5
MEGABYTE = 1e6


def write_model(path: Path) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1536,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)


def make_batch() -> TrainBatch:
    generator = np.random.default_rng(0)
    num_tokens = NUM_SEQUENCES * LENGTH
    mask = np.ones(num_tokens, dtype=np.bool_)
    mask[::LENGTH] = False
    zeros = np.zeros(num_tokens, dtype=np.float32)
    lengths = np.full(NUM_SEQUENCES, LENGTH, dtype=np.int32)
    ids = generator.integers(0, VOCABULARY, num_tokens).astype(np.int32)
    return TrainBatch(ids, mask, zeros, zeros, lengths, np.arange(NUM_SEQUENCES, dtype=np.int64))


def seconds_of(function: Callable[..., Any], *args: Any) -> float:
    started = time.perf_counter()
    function(*args)
    return time.perf_counter() - started


def state_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def measure(rounds: int, folder: Path) -> dict[str, Any]:
    write_model(folder / "model")
    train = TrainConfig(learning_rate=1e-4)
    engine = FSDPEngine(folder / "model", train, AlgorithmConfig(), ModelConfig(device="cpu"))
    batch = make_batch()
    store = CheckpointStore(folder / "checkpoints", CheckpointConfig(keep_last=1))
    engine.sft_step(batch)
    rows: list[dict[str, float]] = []
    memory = [torch.empty(0), torch.empty(0)]
    for step in range(1, rounds + 3):
        alone = seconds_of(engine.sft_step, batch)
        partial = store.begin(step)
        begin = seconds_of(engine.begin_checkpoint, partial / "policy")
        started = time.perf_counter()
        beside = seconds_of(engine.sft_step, batch)
        end = seconds_of(engine.end_checkpoint)
        written = time.perf_counter() - started
        commit = seconds_of(store.commit, step)
        num_bytes = state_bytes(store.directory / f"step_{step:06d}" / "policy")
        if step == 1:
            memory = [torch.full((num_bytes,), byte, dtype=torch.uint8) for byte in (1, 2)]
        copy = seconds_of(memory[0].copy_, memory[1])
        rows.append(
            {
                "begin": begin,
                "end": end,
                "waited": begin + end,
                "copy": copy,
                "step": alone,
                "step_while_writing": beside,
                "written_at_most": written,
                "commit": commit,
                "bytes": num_bytes,
            }
        )
    write = store.begin(rounds + 3)
    engine.begin_checkpoint(write / "policy")
    write_alone = seconds_of(engine.end_checkpoint)
    commit_alone = seconds_of(store.commit, rounds + 3)
    path = store.directory / f"step_{rounds + 3:06d}"
    verify = statistics.median(seconds_of(store.open, path) for _ in range(3))
    restore = statistics.median(seconds_of(engine.restore_checkpoint, path / "policy") for _ in range(3))
    # The first makes the memory; the second may meet a cold disk.
    figures = {name: statistics.median(row[name] for row in rows[2:]) for name in rows[0]}
    ratio = statistics.median(row["waited"] / row["copy"] for row in rows[2:])
    return figures | {
        "first_begin": rows[0]["begin"],
        "ratio": ratio,
        "write_alone": write_alone,
        "commit_alone": commit_alone,
        "verify": verify,
        "restore": restore,
        "threads": torch.get_num_threads(),
        "pass": ratio <= ASKED,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default 7")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="the disk to write to; default: a temporary one")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        found = measure(options.rounds, Path(folder))
    size = found["bytes"] / MEGABYTE
    verdict = "PASS" if found["pass"] else "FAIL"
    print(f"{size:.0f} MB of state, {found['threads']} threads; medians of {options.rounds} checkpoints")
    print(f"one copy of it in memory: {found['copy'] * 1e3:.1f} ms")
    print(f"training waited {found['waited'] * 1e3:.1f} ms ", end="")
    print(f"(begin {found['begin'] * 1e3:.1f}, end {found['end'] * 1e3:.1f}): ", end="")
    print(f"{found['ratio']:.2f} copies   asked <= {ASKED}   {verdict}")
    print(f"the first one, which makes its memory, waited {found['first_begin'] * 1e3:.0f} ms at its beginning")
    print(f"a step: {found['step'] * 1e3:.0f} ms, and {found['step_while_writing'] * 1e3:.0f} ms while one is written")
    seconds = found["write_alone"] + found["commit_alone"]
    print(f"with nothing beside it, written in {found['write_alone']:.2f} s, ", end="")
    print(f"checked and given its name in {found['commit_alone']:.2f} s more: {size / seconds:.0f} MB/s")
    print(f"verified in {found['verify']:.2f} s, restored in {found['restore']:.2f} s")
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"benchmark": "checkpoint", **found}) + "\n")
    return 0 if found["pass"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
