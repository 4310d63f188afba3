"""TRL's GRPOTrainer on the same model, data, group size and batch: the peer of ``bench_trl.py``, in its own process.

Configured as TRL's documentation says for a CPU: ``use_cpu``, full precision, no gradient checkpointing, no reference
model (``beta=0``), one optimiser step for each generated batch, all cores for every phase.

    python benchmarks/trl_peer.py --model DIR --data FILE.jsonl --reward exact --steps 12 --json OUT
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any


def exact_reward(prompts: list[str], completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 for a completion that equals the answer column, else 0."""
    return [float(completion.strip() == gold) for completion, gold in zip(completions, answer, strict=True)]


async def slow_reward(prompts: list[str], completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """The same verdicts, after every sample awaited one second (all samples at once)."""

    async def score(completion: str, gold: str) -> float:
        await asyncio.sleep(1.0)
        return float(completion.strip() == gold)

    return await asyncio.gather(*(score(c, gold) for c, gold in zip(completions, answer, strict=True)))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and return the wall-clock seconds of each step."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class StepClock(TrainerCallback):
        """Wall-clock time at the end of each optimiser step."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ends.append(time.perf_counter())

    rows = [json.loads(line) for line in Path(arguments.data).read_text(encoding="utf-8").splitlines()]
    clock = StepClock()
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=arguments.batch_size,
            gradient_accumulation_steps=1,
            num_generations=arguments.group_size,
            max_completion_length=arguments.max_new_tokens,
            max_steps=arguments.steps,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="constant",
            beta=0.0,
            temperature=1.0,
            num_iterations=1,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            seed=1,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(arguments.model),
            processing_class=AutoTokenizer.from_pretrained(arguments.model, padding_side="left"),
            reward_funcs=[slow_reward if arguments.reward == "slow" else exact_reward],
            args=config,
            train_dataset=Dataset.from_list(rows),
            callbacks=[clock],
        )
        trainer.train()
        history = [entry for entry in trainer.state.log_history if "reward" in entry]
    seconds = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    return {
        "step_seconds": seconds,
        "samples_per_step": arguments.batch_size,
        "rewards": [entry["reward"] for entry in history],
        "completion_tokens": [entry.get("completions/mean_length") for entry in history],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--reward", choices=["exact", "slow"], default="exact")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--json", required=True)
    arguments = parser.parse_args()
    Path(arguments.json).write_text(json.dumps(run(arguments)), encoding="utf-8")


if __name__ == "__main__":
    main()
