"""The embedded engine against ``model.generate`` in static batches and transformers' continuous batching.

    python benchmarks/bench_engine.py [--vocab 4096] [--rounds 3] [--json FILE]

512 requests of 8 to 128 sampled tokens (uniform; end-of-sequence ignored), prompts of 8 to 32 tokens, 64 slots,
arrival order, a Qwen3 of 0.8 M parameters (plus its vocabulary), one thread on each side. All sides sample at
temperature 1 without truncation. The engine alone also returns a log-probability and a version for each token.

* ``generate``: batches of 64 in arrival order, padded on the left, each as long as its longest request. Only the
  tokens asked for count.
* ``continuous``: ``continuous_batching_context_manager`` with at most 64 requests in a batch and 256 tokens in a
  pass; each request says its own length. The cache holds 64 full requests.

Sides take turns, so that a slow spell of the machine hits all. The figure is requested tokens over wall-clock
seconds; the bound is the share of decode steps that a perfect packing into 64 slots needs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from areal_x.api.records import ModelRequest, SamplingParams
from areal_x.engine.inference import EmbeddedEngine

NUM_REQUESTS, NUM_SLOTS, SHORTEST, LONGEST, LONGEST_PROMPT = 512, 64, 8, 128, 32
ASKED_OVER_GENERATE, ASKED_OVER_CONTINUOUS = 1.6, 4.0


@dataclass
class Work:
    """Prompts and the number of tokens to sample for each."""

    prompts: list[np.ndarray]
    lengths: np.ndarray

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())


def make_model(vocab: int) -> PreTrainedModel:
    """A Qwen3 of 0.8 M parameters beside its vocabulary; tied embeddings."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3", vocab_size=vocab, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)


def make_work(vocab: int, seed: int) -> Work:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(2, vocab, rng.integers(8, LONGEST_PROMPT + 1)) for _ in range(NUM_REQUESTS)]
    return Work(prompts, rng.integers(SHORTEST, LONGEST + 1, NUM_REQUESTS))


def run_generate(model: PreTrainedModel, work: Work) -> None:
    for start in range(0, NUM_REQUESTS, NUM_SLOTS):
        prompts = work.prompts[start : start + NUM_SLOTS]
        width = max(map(len, prompts))
        ids = torch.ones(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, width - len(prompt) :] = 1
        config = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=1, eos_token_id=None,
            max_new_tokens=int(work.lengths[start : start + NUM_SLOTS].max()),
        )  # fmt: skip
        with torch.inference_mode():
            model.generate(ids, attention_mask=mask, generation_config=config)


def run_continuous(model: PreTrainedModel, work: Work) -> float:
    """Seconds from the first request to the last result; starting the manager is not counted."""
    config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=1, eos_token_id=-1)
    page = 32
    pages = -(-(LONGEST + LONGEST_PROMPT) // page)
    batching = ContinuousBatchingConfig(
        page_size=page, num_blocks=NUM_SLOTS * pages + 1, max_batch_tokens=256, max_requests_per_batch=NUM_SLOTS
    )
    with model.continuous_batching_context_manager(config, continuous_batching_config=batching) as manager:
        started = time.perf_counter()
        for prompt, length in zip(work.prompts, work.lengths, strict=True):
            manager.add_request(prompt.tolist(), max_new_tokens=int(length))
        num_tokens = 0
        for _ in range(len(work.prompts)):
            result = manager.get_result(timeout=60)
            if result is None or result.error is not None:
                raise SystemExit(f"continuous batching failed: {result and result.error}")
            num_tokens += len(result.generated_tokens)
        taken = time.perf_counter() - started
    assert num_tokens == work.num_tokens, f"{num_tokens} of {work.num_tokens} tokens"
    return taken


async def run_engine(engine: EmbeddedEngine, work: Work) -> None:
    requests = [
        ModelRequest(prompt, SamplingParams(max_new_tokens=int(length), ignore_eos=True))
        for prompt, length in zip(work.prompts, work.lengths, strict=True)
    ]
    responses = await asyncio.gather(*map(engine.agenerate, requests))
    assert sum(len(response.output_ids) for response in responses) == work.num_tokens


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def least_steps(work: Work) -> int:
    """Decode steps of a first-in first-out packing into the slots without a lost step."""
    free = [0] * NUM_SLOTS
    for length in work.lengths.tolist():
        slot = free.index(min(free))
        free[slot] += length
    return max(free)


async def measure(vocab: int, rounds: int) -> dict[str, float]:
    torch.set_num_threads(1)
    model = make_model(vocab)
    plain, paged = model, make_model(vocab)
    works = [make_work(vocab, seed) for seed in range(rounds + 1)]
    times: dict[str, list[float]] = {"engine": [], "generate": [], "continuous": []}
    with tempfile.TemporaryDirectory() as path:
        model.save_pretrained(path)
        engine = EmbeddedEngine(path, num_slots=NUM_SLOTS, max_length=256, device="cpu", num_threads=1)
        await engine.start()
        try:
            # The first round warms every side up.
            for work in works:
                started = time.perf_counter()
                await run_engine(engine, work)
                times["engine"].append(time.perf_counter() - started)
                times["generate"].append(seconds(lambda work=work: run_generate(plain, work)))
                times["continuous"].append(run_continuous(paged, work))
            health = await engine.health()
        finally:
            await engine.close()
    tokens = [work.num_tokens for work in works[1:]]
    speed = {
        side: statistics.median(t / s for t, s in zip(tokens, taken[1:], strict=True)) for side, taken in times.items()
    }
    ratios = {
        side: statistics.median(b / a for a, b in zip(times["engine"][1:], times[side][1:], strict=True))
        for side in ("generate", "continuous")
    }
    static_steps = sum(
        int(work.lengths[i : i + NUM_SLOTS].max()) for work in works[1:] for i in range(0, NUM_REQUESTS, NUM_SLOTS)
    )
    return {
        "vocab": vocab,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **{f"{side}_tokens_per_second": value for side, value in speed.items()},
        **{f"over_{side}": value for side, value in ratios.items()},
        "bound_over_generate_at_equal_step_time": static_steps / sum(map(least_steps, works[1:])),
        "engine_busy_share": health.busy_seconds / sum(times["engine"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[128, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    options = parser.parse_args()
    passed = True
    for vocab in options.vocab:
        figures = asyncio.run(measure(vocab, options.rounds))
        print(f"vocabulary {vocab}, {figures['parameters'] / 1e6:.2f} M parameters")
        for side in ("engine", "generate", "continuous"):
            print(f"  {side:<12} {figures[f'{side}_tokens_per_second']:10,.0f} tokens/s")
        bound = figures["bound_over_generate_at_equal_step_time"]
        for side, asked in (("generate", ASKED_OVER_GENERATE), ("continuous", ASKED_OVER_CONTINUOUS)):
            ratio = figures[f"over_{side}"]
            passed &= ratio >= asked
            note = f", bound at equal step time {bound:.2f}" if side == "generate" else ""
            print(f"  engine / {side}: {ratio:.2f} (asked {asked}{note}) {'PASS' if ratio >= asked else 'FAIL'}")
        if options.json:
            with open(options.json, "a") as file:
                file.write(json.dumps({"benchmark": "engine", **figures}) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
