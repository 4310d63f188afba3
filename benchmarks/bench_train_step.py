"""Train step, packed against padded: the speed-up beside the waste that packing removes.

A policy of 0.8 M parameters (Qwen3, random), 512 sequences of 8 to 128 tokens, micro-batches of 64, one thread.
Every side runs the same policy loss, backward pass, clipping and AdamW on the same tokens:

- padded: a plain transformers model (SDPA), right-padded micro-batches in arrival order;
- length-sorted: the same, with the sequences sorted by length before they are cut into micro-batches;
- packed: ``FSDPEngine.train_step`` with a token budget of 64 mean sequences; groups of one, so no prefix is shared.

Part of the gain is that the engine's linear layers run in oneDNN. To tell the two apart, one more line gives the
length-sorted side the same layers.

Asked: packed / padded >= 0.8 x (padded slots / real tokens), and packed / length-sorted >= 1.0.

    python benchmarks/bench_train_step.py [--json FILE] [--rounds N]

The second part times the shape of a short-answer task: groups of 8 samples that share a prompt, about 14 tokens each,
with and without shared prefixes, beside the time of its matrix products alone.
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
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from areal_x.api.config import AlgorithmConfig, ModelConfig, TrainConfig
from areal_x.api.records import TrainBatch
from areal_x.engine.cpu_linear import use_onednn_linear
from areal_x.engine.train.fsdp_engine import FSDPEngine

NUM_SEQUENCES, MICRO_BATCH, VOCABULARY = 512, 64, 512


def write_model(path: Path, vocabulary: int) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)


def make_batch(prompt_tokens: int, lengths: np.ndarray, group_size: int, vocabulary: int, seed: int) -> TrainBatch:
    """Random tokens; all but each sequence's first ``prompt_tokens`` are trained, and a group shares these."""
    generator = np.random.default_rng(seed)
    lengths = lengths.astype(np.int32)
    ids = generator.integers(0, vocabulary, int(lengths.sum())).astype(np.int32)
    mask = np.ones(len(ids), dtype=np.bool_)
    starts = np.cumsum(lengths) - lengths
    for index, start in enumerate(starts):
        mask[start : start + prompt_tokens] = False
        leader = starts[index - index % group_size]
        ids[start : start + prompt_tokens] = ids[leader : leader + prompt_tokens]
    advantages = np.repeat(generator.standard_normal(len(lengths)), lengths).astype(np.float32)
    logprobs = np.where(mask, -np.log(vocabulary), 0).astype(np.float32)
    groups = np.arange(len(lengths), dtype=np.int64) // group_size
    return TrainBatch(ids, mask, logprobs, advantages, lengths, groups)


class PaddedTrainer:
    """The usual way: right-padded micro-batches through a plain transformers model."""

    def __init__(self, path: Path, batch: TrainBatch, order: np.ndarray, onednn: bool = False) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa").eval()
        if onednn:
            use_onednn_linear(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.num_tokens = int(batch.loss_mask.sum())
        self.micro_batches = [
            self._pad(batch, order[start : start + MICRO_BATCH]) for start in range(0, len(order), MICRO_BATCH)
        ]
        self.slots = sum(ids.numel() for ids, *_ in self.micro_batches)

    @staticmethod
    def _pad(batch: TrainBatch, members: np.ndarray) -> tuple[torch.Tensor, ...]:
        width = int(batch.lengths[members].max())
        present = np.arange(width) < batch.lengths[members][:, None]
        padded = []
        for values in (batch.input_ids.astype(np.int64), batch.loss_mask, batch.logprobs, batch.advantages):
            rows = np.zeros((len(members), width), dtype=values.dtype)
            offsets = batch.offsets
            rows[present] = np.concatenate([values[offsets[m] : offsets[m + 1]] for m in members])
            padded.append(torch.from_numpy(rows))
        return (*padded, torch.from_numpy(present.astype(np.int64)))

    def train_step(self) -> None:
        config = AlgorithmConfig()
        for ids, mask, behaviour, advantages, attention in self.micro_batches:
            logits = self.model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
            logprobs = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
            wanted = mask[:, 1:]
            own = logprobs[wanted]
            ratio = torch.exp(own - own.detach())
            clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
            weighted = advantages[:, 1:][wanted] * torch.exp(own.detach() - behaviour[:, 1:][wanted]).clamp(max=5.0)
            loss = -torch.minimum(ratio * weighted, clipped * weighted).sum() / self.num_tokens
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def medians(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each side; sides take turns, so that a slow phase of the machine meets all of them."""
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_seconds(num_rows: int, micro_batch_rows: int) -> float:
    """Time of the model's linear layers alone, forward and backward, through PyTorch's default product."""
    shapes = [(128, 128), (128, 64), (128, 64), (128, 128), (128, 384), (128, 384), (384, 128)] * 4
    rows = {size: torch.randn(micro_batch_rows, size) for size in (64, 128, 384)}
    weights = [torch.randn(outputs, inputs) for inputs, outputs in shapes]

    def once() -> None:
        for weight in weights:
            values, grad = rows[weight.shape[1]], rows[weight.shape[0]]
            values @ weight.t()
            grad @ weight
            grad.t() @ values

    return medians({"products": once}, 5)["products"] * num_rows / micro_batch_rows


def ragged(path: Path, rounds: int) -> dict[str, object]:
    lengths = np.random.default_rng(0).integers(8, 129, NUM_SEQUENCES)
    batch = make_batch(4, lengths, 1, VOCABULARY, seed=0)
    budget = int(lengths.sum()) * MICRO_BATCH // NUM_SEQUENCES
    engine = FSDPEngine(path, TrainConfig(micro_batch_tokens=budget), AlgorithmConfig(), ModelConfig(device="cpu"))
    padded = PaddedTrainer(path, batch, np.arange(NUM_SEQUENCES))
    by_length = PaddedTrainer(path, batch, np.argsort(lengths, kind="stable"))
    by_length_onednn = PaddedTrainer(path, batch, np.argsort(lengths, kind="stable"), onednn=True)
    seconds = medians(
        {
            "padded": padded.train_step,
            "length-sorted": by_length.train_step,
            "length-sorted with oneDNN layers": by_length_onednn.train_step,
            "packed": lambda: engine.train_step(batch),
        },
        rounds,
    )
    waste = padded.slots / int(lengths.sum())
    gain, gain_sorted = seconds["padded"] / seconds["packed"], seconds["length-sorted"] / seconds["packed"]
    passed = gain >= 0.8 * waste and gain_sorted >= 1.0
    print(f"padded {seconds['padded'] * 1e3:.0f} ms, length-sorted {seconds['length-sorted'] * 1e3:.0f} ms, ", end="")
    print(f"packed {seconds['packed'] * 1e3:.0f} ms a step of {NUM_SEQUENCES} sequences, {int(lengths.sum())} tokens")
    print(f"padded slots / real tokens (bound of the packing alone): {waste:.3f}")
    verdict = "PASS" if gain >= 0.8 * waste else "FAIL"
    print(f"packed over padded:        {gain:.2f} x   asked >= {0.8 * waste:.2f}   {verdict}")
    print(f"packed over length-sorted: {gain_sorted:.2f} x   asked >= 1.00   {'PASS' if gain_sorted >= 1 else 'FAIL'}")
    print(f"length-sorted with oneDNN layers: {seconds['length-sorted with oneDNN layers'] * 1e3:.0f} ms")
    return {
        "seconds": seconds,
        "slots_over_tokens": waste,
        "over_padded": gain,
        "over_sorted": gain_sorted,
        "pass": passed,
    }


def short_answers(path: Path, rounds: int) -> dict[str, object]:
    lengths = np.random.default_rng(1).integers(13, 16, NUM_SEQUENCES)
    grouped = make_batch(8, lengths, 8, 20, seed=1)
    apart = make_batch(8, lengths, 8, 20, seed=1)
    apart.group_ids = np.arange(NUM_SEQUENCES, dtype=np.int64)
    engine = FSDPEngine(path, TrainConfig(), AlgorithmConfig(), ModelConfig(device="cpu"))
    padded = PaddedTrainer(path, grouped, np.arange(NUM_SEQUENCES))
    rows = int(engine.train_step(grouped)["train/computed_tokens"])
    rows_apart = int(engine.train_step(apart)["train/computed_tokens"])
    seconds = medians(
        {
            "padded": padded.train_step,
            "packed, prefixes apart": lambda: engine.train_step(apart),
            "packed, prefixes shared": lambda: engine.train_step(grouped),
        },
        rounds,
    )
    products = matmul_seconds(rows, min(rows, 2048))
    print(f"\nshort answers, {NUM_SEQUENCES} sequences of {int(lengths.sum())} tokens in all")
    print(f"tokens computed: {rows_apart} apart, {rows} with shared prefixes")
    for name, value in seconds.items():
        print(f"{name + ':':26s}{value * 1e3:6.0f} ms a step")
    print(f"default matrix products of the shared rows alone: {products * 1e3:.0f} ms")
    return {"seconds": seconds, "rows_shared": rows, "rows_apart": rows_apart, "default_products_seconds": products}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="append the figures as one line of JSON")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory) / "ragged", VOCABULARY)
        write_model(Path(directory) / "short", 20)
        figures: dict[str, Any] = {
            "benchmark": "train_step",
            "ragged": ragged(Path(directory) / "ragged", options.rounds),
            "short_answers": short_answers(Path(directory) / "short", options.rounds),
        }
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps(figures) + "\n")
    return 0 if figures["ragged"]["pass"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
