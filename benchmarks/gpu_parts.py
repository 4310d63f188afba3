"""What ``bench_gpu.py`` measures, each part in a process of its own, so that none meets another's memory.

Model FLOPs of a step (Chowdhery et al. 2022, appendix B; causal attention counted half, recomputation not at all), with
T packed tokens, P parameters in matrix products (all but the embedding; the output layer counts, tied or not), L
layers, D the width of all attention heads together, and sequences of s tokens:

    6 P T + 6 L D Σ s²          a forward pass alone: a third of it
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2Config

from areal_x.api.config import AlgorithmConfig, ModelConfig, RewardModelConfig, TrainConfig
from areal_x.api.records import TrainBatch
from areal_x.api.reward_model_files import read_reward_model_files
from areal_x.engine.reward_model.scorer import RewardModelScorer
from areal_x.engine.reward_model.scoring_batch import ScoringBatch
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.logprob import chunked_logprobs

__all__ = ["PARTS", "SHAPES", "Shape", "peak_flops"]

PEAKS = {
    "B200": 2.25e15,
    "H200": 989.4e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165.2e12,
}
"""FLOPs per second of dense bfloat16 products by the makers' data sheets; the first name within the device's counts."""
GRADIENTS_ALIKE = 2e-2
"""Of bfloat16 sums in another order, relative to the largest; 1e-5 in float32."""


@dataclass(frozen=True)
class Shape:
    """A model and a batch: ``sequences`` of ``length`` tokens are one micro-batch, of which a step has two."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        """Packed tokens of one micro-batch."""
        return self.sequences * self.length

    def config(self, **changes: Any) -> Qwen2Config:
        """As transformers knows it."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=max(4096, self.length),
            tie_word_embeddings=True,
            pad_token_id=0,
            **changes,
        )

    def train_flops(self, tokens: int, lengths: np.ndarray) -> float:
        """Of forward and backward pass over packed sequences; see the top of this file."""
        head = self.hidden // self.heads
        projections = self.hidden * head * (2 * self.heads + 2 * self.kv_heads)
        per_layer = projections + 3 * self.hidden * self.intermediate
        parameters = self.layers * per_layer + self.hidden * self.vocabulary
        attention = self.layers * self.heads * head * float((lengths.astype(np.float64) ** 2).sum())
        return 6.0 * parameters * tokens + 6.0 * attention


SHAPES = {
    "qwen2.5-1.5b": Shape(1536, 28, 12, 2, 8960, 151936, sequences=8, length=2048),
    "tiny": Shape(64, 2, 4, 2, 128, 512, sequences=4, length=64),
}


def peak_flops(device_name: str) -> float | None:
    """Of the device's data sheet; ``None`` where none is known."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


def train_speed(shape: Shape, device: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of a step of two micro-batches, for each way of keeping activations; and of a log-probability pass."""
    path = write_model(shape, device, folder)
    batch = make_batch(shape, 2)
    flops = shape.train_flops(len(batch.input_ids), batch.lengths)
    found: dict[str, Any] = {"tokens": len(batch.input_ids), "flops": flops, "steps": {}}
    ways = {"all activations kept": {}, "gradient checkpointing": {"gradient_checkpointing": True}}
    if device != "cpu":
        ways["compiled"] = {"compile": True}
    for name, options in ways.items():
        try:
            engine = make_engine(shape, device, path, **options)
            seconds = median_seconds(lambda engine=engine: engine.train_step(batch), device, rounds)  # type: ignore[misc]
            found["steps"][name] = {"seconds": seconds, "peak_bytes": peak_bytes(device)}
            if "logprobs" not in found:
                found["logprobs"] = median_seconds(lambda engine=engine: engine.logprobs(batch), device, rounds)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            found["steps"][name] = {"seconds": None, "peak_bytes": None}
        engine = None
        free_memory(device)
    return found


def logprob_memory(shape: Shape, device: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Peak memory above the inputs of log-probabilities and their gradients, in chunks and whole."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    hidden = torch.randn(shape.tokens, shape.hidden, device=device, dtype=dtype, requires_grad=True)
    weight = (0.02 * torch.randn(shape.vocabulary, shape.hidden, device=device)).to(dtype).requires_grad_()
    targets = torch.randint(0, shape.vocabulary, (shape.tokens,), device=device)

    def naive() -> torch.Tensor:
        return -torch.nn.functional.cross_entropy((hidden @ weight.t()).float(), targets, reduction="none")

    sides = {"chunked": lambda: chunked_logprobs(hidden, weight, targets)[0], "naive": naive}
    found: dict[str, Any] = {}
    gradients = {}
    for name, side in sides.items():
        hidden.grad = weight.grad = None
        free_memory(device)
        before = allocated(device)
        try:
            side().sum().backward()
        except torch.OutOfMemoryError:
            found[name] = {"bytes": None, "seconds": None}
            continue
        peak = peak_bytes(device)
        gradients[name] = hidden.grad
        seconds = median_seconds(lambda side=side: side().sum().backward(), device, rounds)  # type: ignore[misc]
        found[name] = {"bytes": None if peak is None else peak - before, "seconds": seconds}
    if len(gradients) == 2:
        largest = gradients["naive"].abs().max()
        found["difference"] = ((gradients["chunked"] - gradients["naive"]).abs().max() / largest).item()
        found["allowed"] = GRADIENTS_ALIKE if device != "cpu" else 1e-5
    return found


def publication(shape: Shape, device: str, folder: Path, rounds: int) -> dict[str, Any]:
    """The engine's weights into a bfloat16 copy on the same device, beside one copy of as many bytes in one piece."""
    engine = make_engine(shape, device, write_model(shape, device, folder))
    copy = {name: torch.empty_like(tensor, dtype=torch.bfloat16) for name, tensor in engine.named_weights()}
    number = sum(tensor.numel() for tensor in copy.values())
    source = torch.zeros(number, device=device)
    flat = torch.zeros(number, device=device, dtype=torch.bfloat16)

    def publish() -> None:
        for name, tensor in engine.named_weights():
            copy[name].copy_(tensor)

    seconds = median_seconds(publish, device, rounds)
    for name, tensor in engine.named_weights():
        assert torch.equal(copy[name], tensor.to(torch.bfloat16)), name
    return {
        "bytes": 2 * number,
        "seconds": seconds,
        "one_copy": median_seconds(lambda: flat.copy_(source), device, rounds),
    }


def reward_model(shape: Shape, device: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Load → score → offload of a reward model of this shape, against one pinned copy of its bytes and the forward."""
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(shape.config(num_labels=1), dtype=dtype)
    model.save_pretrained(folder / "reward_model")
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    del model
    files = read_reward_model_files("reward_model.path", folder / "reward_model")
    config = RewardModelConfig(path=str(files.folder), micro_batch_tokens=shape.tokens)
    batch = scoring_batch(shape)
    kept = RewardModelScorer("kept", dataclasses.replace(config, offload=False), files, torch.device(device))
    forward = median_seconds(lambda: kept.score(batch), device, rounds)
    expected = kept.score(batch).values
    kept.model.to("meta")
    free_memory(device)
    scorer = RewardModelScorer("offloaded", config, files, torch.device(device))
    same = True

    def cycle() -> None:
        nonlocal same
        scorer.fetch()
        same &= bool(np.array_equal(scorer.score(batch).values, expected))

    cycle()
    before = allocated(device)
    seconds = median_seconds(cycle, device, rounds)
    left = allocated(device) - before
    copied = pinned_copy_seconds(num_bytes, device, rounds)
    return {"bytes": num_bytes, "cycle": seconds, "forward": forward, "copy": copied, "left_bytes": left, "same": same}


PARTS: dict[str, Callable[[Shape, str, Path, int], dict[str, Any]]] = {
    "train": train_speed,
    "logprob_memory": logprob_memory,
    "publication": publication,
    "reward_model": reward_model,
}
"""Parts by name."""


def write_model(shape: Shape, device: str, folder: Path) -> Path:
    """A new model of this shape, in bfloat16 (float32 on a CPU)."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            shape.config(), dtype=torch.float32 if device == "cpu" else torch.bfloat16
        )
    model.save_pretrained(folder / "model")
    return folder / "model"


def make_engine(shape: Shape, device: str, path: Path, **options: Any) -> FSDPEngine:
    """The train engine as a run makes it."""
    train = TrainConfig(micro_batch_tokens=shape.tokens, **options)
    return FSDPEngine(path, train, AlgorithmConfig(), ModelConfig(device=device))


def make_batch(shape: Shape, micro_batches: int) -> TrainBatch:
    """Random sequences, groups of one; an eighth of each is prompt."""
    generator = np.random.default_rng(0)
    number = micro_batches * shape.sequences
    ids = generator.integers(0, shape.vocabulary, number * shape.length).astype(np.int32)
    mask = np.tile(np.arange(shape.length) >= shape.length // 8, number)
    advantages = np.repeat(generator.standard_normal(number), shape.length).astype(np.float32)
    logprobs = np.where(mask, -np.log(shape.vocabulary), 0).astype(np.float32)
    lengths = np.full(number, shape.length, dtype=np.int32)
    return TrainBatch(ids, mask, logprobs, advantages, lengths, np.arange(number, dtype=np.int64))


def scoring_batch(shape: Shape) -> ScoringBatch:
    """One micro-batch of conversations, scored at their ends."""
    batch = make_batch(shape, 1)
    ends = np.full(shape.sequences, shape.length - 1, dtype=np.int64)
    return ScoringBatch(batch.input_ids, batch.lengths, batch.group_ids, np.ones(shape.sequences, np.int32), ends)


def pinned_copy_seconds(num_bytes: int, device: str, rounds: int) -> float:
    """One copy of so many bytes from pinned memory of the host to the device (on a CPU: from memory to memory)."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=device != "cpu")
    target = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    return median_seconds(lambda: target.copy_(source, non_blocking=True), device, rounds)


def median_seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    """Median of several rounds, after one that warms up and the wait for all that the device still does."""
    seconds = []
    work()
    for _ in range(rounds):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def free_memory(device: str) -> None:
    """Give back what nothing holds, and forget the peak."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def allocated(device: str) -> int:
    """Bytes that tensors hold on the device; 0 on a CPU, which does not count them."""
    return 0 if device == "cpu" else torch.cuda.memory_allocated()


def peak_bytes(device: str) -> int | None:
    """The most that tensors held since ``free_memory``; ``None`` on a CPU."""
    return None if device == "cpu" else torch.cuda.max_memory_allocated()
