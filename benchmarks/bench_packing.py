"""Packing on GSM8K's lengths: token slots that hold real tokens, against padding.

Steps of 1,024 samples: 128 of the training split's first 7,000 problems in random order, 8 samples each. A sample is
its problem's question and the worked answer of a random problem, in tokens of a byte-pair encoding trained on the same
texts; the answer is trained. Every side gets the same steps and a budget of 16,384 token slots a micro-batch:

- padded to the longest: sequences in arrival order, as many as fit when each is padded to the longest of them;
- sorted by length, then padded: the same, after sorting each step;
- packed: ``plan_micro_batches`` with every group apart; and with shared prefixes, as the train engine plans.

Asked of packed: real tokens / token slots that are computed >= 0.97; and real tokens / (budget x passes) >= 0.97 of the
best that any division of the same steps could reach, which makes ceil(tokens / budget) passes. (That best is below 1
because a step's tokens are no multiple of the budget.) Attention works on slots of its own, whose number is printed,
too; and how evenly the steps are dealt out to 8 ranks.

    AREAL_X_GSM8K=FOLDER python benchmarks/bench_packing.py [--json FILE] [--steps N] [--budget TOKENS]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from areal_x.api.records import TrainBatch
from areal_x.engine.init_model import init_model
from areal_x.engine.train.computed_tokens import computed_tokens
from areal_x.engine.train.packing import plan_micro_batches
from areal_x.engine.train.partition import deal_sequences

NUM_PROBLEMS, NUM_GROUPS, GROUP_SIZE, VOCABULARY, NUM_RANKS = 7000, 128, 8, 8192, 8
ASK = 0.97


@dataclass
class Side:
    """Sums over all steps."""

    tokens: int = 0
    """Real tokens, a shared prefix counted once."""
    slots: int = 0
    """Token slots that are computed."""
    passes: int = 0
    least_passes: int = 0
    """As few as any division could make of these tokens."""

    def add(self, tokens: int, slots: int, passes: int, budget: int) -> None:
        self.tokens += tokens
        self.slots += slots
        self.passes += passes
        self.least_passes += -(-tokens // budget)


def tokenized(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ids of every question and of every answer of the first problems of the training split."""
    with (folder / "train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, NUM_PROBLEMS)]
    questions, answers = [row["question"] for row in rows], [row["answer"] for row in rows]
    sizes = {
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 16,
        "intermediate_size": 16,
    }
    with tempfile.TemporaryDirectory() as directory:
        made = init_model(Path(directory) / "m", texts=questions + answers, vocab_size=VOCABULARY, **sizes)
        tokenizer = AutoTokenizer.from_pretrained(made)
        ids = [np.array(row, dtype=np.int32) for row in tokenizer(questions + answers)["input_ids"]]
    return ids[: len(rows)], ids[len(rows) :]


def make_step(questions: list[np.ndarray], answers: list[np.ndarray], generator: np.random.Generator) -> TrainBatch:
    problems = np.repeat(generator.choice(len(questions), NUM_GROUPS, replace=False), GROUP_SIZE)
    drawn = generator.integers(0, len(answers), len(problems))
    samples = [(questions[problem], answers[answer]) for problem, answer in zip(problems, drawn, strict=True)]
    ids = np.concatenate([part for sample in samples for part in sample])
    mask = np.concatenate([np.arange(len(start) + len(end)) >= len(start) for start, end in samples])
    lengths = np.array([len(start) + len(end) for start, end in samples], dtype=np.int32)
    zeros = np.zeros(len(ids), dtype=np.float32)
    return TrainBatch(ids, mask, zeros, zeros, lengths, problems.astype(np.int64))


def padded(lengths: np.ndarray, budget: int) -> tuple[int, int]:
    """Slots and passes when each micro-batch is padded to its longest sequence."""
    slots = passes = count = longest = 0
    for length in lengths.tolist():
        if count and (count + 1) * max(longest, length) > budget:
            slots, passes, count, longest = slots + count * longest, passes + 1, 0, 0
        count, longest = count + 1, max(longest, length)
    return slots + count * longest, passes + 1


def measure(steps: list[TrainBatch], budget: int) -> tuple[dict[str, Side], dict[str, float]]:
    sides = {name: Side() for name in ("padded to the longest", "sorted, then padded", "packed", "packed, shared")}
    attention_slots = attention_tokens = 0
    seconds = 0.0
    imbalance = 0.0
    for step in steps:
        lengths = step.lengths.astype(np.int64)
        tokens = int(lengths.sum())
        sides["padded to the longest"].add(tokens, *padded(lengths, budget), budget)
        sides["sorted, then padded"].add(tokens, *padded(np.sort(lengths), budget), budget)
        for name, share in (("packed", False), ("packed, shared", True)):
            needed = computed_tokens(step, step.loss_mask, share_prefixes=share)
            real = int((needed.used - needed.shared).sum() + needed.shared[np.unique(needed.units, True)[1]].sum())
            started = time.perf_counter()
            plan = plan_micro_batches(step, step.loss_mask, budget, share_prefixes=share)
            seconds += (time.perf_counter() - started) if share else 0.0
            # A group that is divided computes its prefix in each part: those rows are slots, but no new tokens.
            sides[name].add(real, sum(micro_batch.num_rows for micro_batch in plan), len(plan), budget)
            if share:
                attention_slots += sum(len(micro_batch.attention.slots) for micro_batch in plan)
                attention_tokens += int(needed.used.sum())
        loads = [_load(step, part) for part in deal_sequences(step, step.loss_mask, NUM_RANKS)]
        imbalance = max(imbalance, max(loads) / (sum(loads) / len(loads)))
    others = {
        "attention_slots_over_tokens": attention_slots / attention_tokens,
        "plan_ms": 1e3 * seconds / len(steps),
        "imbalance": imbalance,
    }
    return sides, others


def _load(step: TrainBatch, part: np.ndarray) -> int:
    """Tokens that a rank computes."""
    needed = computed_tokens(step, step.loss_mask, sequences=part)
    return int((needed.used - needed.shared).sum() + needed.shared[np.unique(needed.units, True)[1]].sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="append the figures as one line of JSON")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--budget", type=int, default=16384)
    options = parser.parse_args()
    folder = os.environ.get("AREAL_X_GSM8K")
    if folder is None or not (Path(folder) / "train.jsonl").is_file():
        parser.error(f"AREAL_X_GSM8K={folder} names no folder with GSM8K's train.jsonl")
    questions, answers = tokenized(Path(folder))
    generator = np.random.default_rng(0)
    steps = [make_step(questions, answers, generator) for _ in range(options.steps)]
    sides, others = measure(steps, options.budget)
    print(f"{options.steps} steps of {NUM_GROUPS * GROUP_SIZE} samples, {options.budget} slots a micro-batch;", end=" ")
    lengths = np.concatenate([step.lengths for step in steps])
    print(f"sequences of {lengths.min()} to {lengths.max()} tokens, mean {lengths.mean():.0f}")
    for name, side in sides.items():
        print(
            f"{name + ':':23s} real tokens / slots {side.tokens / side.slots:.4f}, {side.passes / options.steps:5.1f} "
            f"passes a step (least possible {side.least_passes / options.steps:.1f}), "
            f"{side.slots / options.steps / 1e3:.1f} k slots computed a step"
        )
    packed = sides["packed, shared"]
    filled = packed.tokens / packed.slots
    of_budget, best = (packed.tokens / (options.budget * passes) for passes in (packed.passes, packed.least_passes))
    baseline = max(sides[name].tokens / sides[name].slots for name in ("padded to the longest", "sorted, then padded"))
    verdicts = ["PASS" if value >= ASK else "FAIL" for value in (filled, of_budget / best)]
    print(f"slots filled, packed:         {filled:.4f}   asked >= {ASK}   best padding {baseline:.4f}   {verdicts[0]}")
    print(f"budget filled, over the best: {of_budget / best:.4f}   asked >= {ASK}   ", end="")
    print(f"({of_budget:.4f} of {best:.4f})   {verdicts[1]}")
    print(
        f"attention slots / tokens that attend (with padding of buckets): {others['attention_slots_over_tokens']:.3f}"
    )
    print(f"dealt out to {NUM_RANKS} ranks: the fullest has {others['imbalance']:.3f} x the mean, at worst")
    print(f"planning takes {others['plan_ms']:.0f} ms a step")
    if options.json:
        figures: dict[str, Any] = {
            "benchmark": "packing",
            "sides": {name: vars(side) for name, side in sides.items()},
            "filled": filled,
            "of_budget_over_best": of_budget / best,
            **others,
            "pass": verdicts == ["PASS", "PASS"],
        }
        with options.json.open("a") as file:
            file.write(json.dumps(figures) + "\n")
    return 0 if verdicts == ["PASS", "PASS"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
