"""The train engine's step against a hand-written minimal PyTorch loop on the same packed batch; and on two ranks.

A policy of 0.8 M parameters (Qwen3, random), 512 sequences of 8 to 128 tokens, micro-batches of about 2,800 tokens, one
thread. Both sides train the same tokens by the same objective, clip gradients, and step with AdamW (fused):

- engine: ``FSDPEngine.train_step``: checks and packs the batch, chunked log-probabilities, entropies and all metrics;
- minimal loop: a transformers model with the engine's packed attention, micro-batches that were packed beforehand,
  logits whole, ``cross_entropy``; nothing else. It has the layers that the engine has on a CPU (linear ones through
  oneDNN, fused norms), so that only the step is compared; one more line leaves them plain.

Both start from one checkpoint. After the first step, which warms them up, their weights must agree; then they take
turns.

Asked: minimal loop's time / engine's time >= 0.92.

    python benchmarks/bench_fsdp_step.py [--json FILE] [--rounds N]

The second part runs the same step on two ranks (``RankedTrainEngine`` over two processes and gloo) against one. The
ceiling is what this machine gives two processes: the speed of two engines that share nothing, each stepping on its own
half of the batch at the same time, over one engine that steps on the whole. The model is small, so that what is sent
between ranks weighs more than it does in earnest.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_train_step import VOCABULARY, make_batch, medians, write_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from areal_x.api.config import AlgorithmConfig, ModelConfig, TrainConfig
from areal_x.api.records import TrainBatch
from areal_x.engine.cpu_linear import use_onednn_linear
from areal_x.engine.ranks.local_ranks import LocalRanks
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.train.attention import PACKED_ATTENTION
from areal_x.engine.train.fsdp_engine import FSDPEngine
from areal_x.engine.train.fused_norm import use_fused_norms
from areal_x.engine.train.packing import plan_micro_batches
from areal_x.engine.train.ranked_engine import RankedTrainEngine

NUM_SEQUENCES, BUDGET = 512, 2830
ASKED = 0.92
SAME_WEIGHTS = 1e-5
TRAIN = TrainConfig(micro_batch_tokens=BUDGET)
ALGORITHM = AlgorithmConfig()


class MinimalLoop:
    """What somebody would write who has one model, one batch and no interest in anything else."""

    def __init__(self, path: Path, batch: TrainBatch, fast_layers: bool) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
        self.model.set_attn_implementation(PACKED_ATTENTION)
        if fast_layers:
            use_onednn_linear(self.model)
            use_fused_norms(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=TRAIN.learning_rate, betas=(0.9, 0.95), fused=True
        )
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.0
        behaviour, advantages = torch.from_numpy(batch.logprobs), torch.from_numpy(batch.advantages)
        self.num_tokens = int(batch.loss_mask.sum())
        self.micro_batches = [
            (micro_batch, behaviour[micro_batch.positions], advantages[micro_batch.positions])
            for micro_batch in plan_micro_batches(batch, batch.loss_mask, BUDGET)
        ]

    def step(self) -> None:
        for packed, behaviour, advantages in self.micro_batches:
            hidden = self.model.base_model(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                use_cache=False,
                attention_plan=packed.attention,
            ).last_hidden_state[0]
            logits = self.model.get_output_embeddings()(hidden[packed.rows])
            logprobs = -torch.nn.functional.cross_entropy(logits, packed.targets, reduction="none")
            ratio = torch.exp(logprobs - logprobs.detach())
            weight = torch.exp(logprobs.detach() - behaviour).clamp(max=5.0)
            clipped = ratio.clamp(1 - ALGORITHM.clip_low, 1 + ALGORITHM.clip_high)
            loss = -(torch.minimum(ratio * advantages, clipped * advantages) * weight).sum() / self.num_tokens
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), TRAIN.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def largest_difference(engine: FSDPEngine, loop: MinimalLoop) -> float:
    """Between the weights of both."""
    theirs = dict(loop.model.named_parameters())
    return max((tensor - theirs[name].detach()).abs().max().item() for name, tensor in engine.named_weights())


def one_rank(path: Path, batch: TrainBatch, rounds: int) -> dict[str, Any]:
    engine = FSDPEngine(path, TRAIN, ALGORITHM, ModelConfig(device="cpu"))
    loop = MinimalLoop(path, batch, fast_layers=True)
    plain = MinimalLoop(path, batch, fast_layers=False)
    engine.train_step(batch)
    loop.step()
    difference = largest_difference(engine, loop)
    sides = {"engine": lambda: engine.train_step(batch), "minimal loop": loop.step, "with plain layers": plain.step}
    seconds = medians(sides, rounds)
    ratio = seconds["minimal loop"] / seconds["engine"]
    for name, value in seconds.items():
        print(f"{name + ':':20s}{value * 1e3:6.0f} ms a step, {len(batch.input_ids) / value:8,.0f} tokens per second")
    same = difference <= SAME_WEIGHTS
    print(f"weights after one step differ by {difference:.1e}   asked <= {SAME_WEIGHTS:g}   {_verdict(same)}")
    print(f"engine over minimal loop: {ratio:.3f}   asked >= {ASKED}   {_verdict(ratio >= ASKED)}")
    print(f"engine over the loop with plain layers: {seconds['with plain layers'] / seconds['engine']:.3f}")
    return {"seconds": seconds, "over_minimal_loop": ratio, "difference": difference, "pass": same and ratio >= ASKED}


class Alone:
    """An engine on a rank that trains without the others. Built as ``bench_fsdp_step:Alone``."""

    def __init__(self, ranks: RankContext, path: Path) -> None:
        self.engine = FSDPEngine(path, TRAIN, ALGORITHM, ModelConfig(device="cpu"))

    def steps(self, batch: TrainBatch, number: int) -> float:
        """Seconds of so many steps."""
        started = time.perf_counter()
        for _ in range(number):
            self.engine.train_step(batch)
        return time.perf_counter() - started


def half(batch: TrainBatch, index: int) -> TrainBatch:
    """Half of the sequences, balanced by tokens."""
    order = np.argsort(batch.lengths, kind="stable")[index::2]
    spans = [np.arange(batch.offsets[member], batch.offsets[member + 1]) for member in np.sort(order)]
    tokens = np.concatenate(spans)
    values = (batch.input_ids, batch.loss_mask, batch.logprobs, batch.advantages)
    members = np.sort(order)
    return TrainBatch(*(value[tokens] for value in values), batch.lengths[members], batch.group_ids[members])


def two_ranks(path: Path, batch: TrainBatch, rounds: int) -> dict[str, Any]:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.getenv("PYTHONPATH")])])
    one = FSDPEngine(path, TRAIN, ALGORITHM, ModelConfig(device="cpu"))
    ranks = LocalRanks(2, timeout_seconds=120)
    try:
        two = RankedTrainEngine(ranks, path, TRAIN, ALGORITHM, ModelConfig(device="cpu"))
        ranks.build("alone", "bench_fsdp_step:Alone", {"path": path})
        halves = [(half(batch, index), 1) for index in range(2)]
        sides = {
            "one rank": lambda: one.train_step(batch),
            "two ranks": lambda: two.train_step(batch),
            "two apart": lambda: ranks.call("alone", "steps", per_rank=halves),
        }
        seconds = medians(sides, rounds)
    finally:
        ranks.close()
    gain, ceiling = seconds["one rank"] / seconds["two ranks"], seconds["one rank"] / seconds["two apart"]
    print(f"\none rank {seconds['one rank'] * 1e3:.0f} ms, two ranks {seconds['two ranks'] * 1e3:.0f} ms a step")
    print(f"two ranks over one: {gain:.2f} x; ceiling of two processes that share nothing: {ceiling:.2f} x")
    print(f"share of the ceiling: {gain / ceiling:.2f}")
    return {"seconds": seconds, "over_one": gain, "ceiling": ceiling}


def _verdict(passed: bool) -> str:
    return "PASS" if passed else "FAIL"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="append the figures as one line of JSON")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lengths = np.random.default_rng(0).integers(8, 129, NUM_SEQUENCES)
    batch = make_batch(4, lengths, 1, VOCABULARY, seed=0)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model"
        write_model(path, VOCABULARY)
        figures: dict[str, Any] = {"benchmark": "fsdp_step", "one_rank": one_rank(path, batch, options.rounds)}
        figures["two_ranks"] = two_ranks(path, batch, options.rounds)
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps(figures) + "\n")
    return 0 if figures["one_rank"]["pass"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
