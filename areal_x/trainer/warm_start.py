"""Supervised fine-tuning on prompts and completions, with the train engine and the prompt rendering of the run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from areal_x.api.config import ExperimentConfig
from areal_x.api.engine_api import TrainEngine
from areal_x.api.errors import DataError
from areal_x.api.records import IntArray, TrainBatch
from areal_x.observe.display import RunDisplay
from areal_x.observe.run_writer import RunWriter
from areal_x.trainer.trainer_thread import TrainerThread
from areal_x.workflow.rendering import PromptRenderer

__all__ = ["SupervisedExamples", "tokenize_examples", "warm_start"]

LOSS_REPORTS = 5


class SupervisedExamples:
    """Tokenised prompt and completion pairs, drawn in a new order each epoch.

    ``prompts`` and ``completions`` are lists of int32 arrays of the same length.
    """

    def __init__(self, prompts: list[IntArray], completions: list[IntArray], seed: int) -> None:
        self.prompts = prompts
        self.completions = completions
        self._generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.prompts)

    def batches(self, batch_size: int) -> Iterator[TrainBatch]:
        """Endless batches; an epoch's rest that fills no batch is carried into the next epoch."""
        queue = np.empty(0, dtype=np.int64)
        while True:
            while len(queue) < batch_size:
                queue = np.concatenate([queue, self._generator.permutation(len(self))])
            chosen, queue = queue[:batch_size], queue[batch_size:]
            yield self._batch(chosen)

    def _batch(self, chosen: np.ndarray[Any, np.dtype[np.int64]]) -> TrainBatch:
        parts = [ids for i in chosen for ids in (self.prompts[i], self.completions[i])]
        part_lengths = np.array([len(part) for part in parts], dtype=np.int32)
        lengths = part_lengths.reshape(-1, 2).sum(axis=1, dtype=np.int32)
        input_ids = np.concatenate(parts)
        is_completion = np.repeat(np.tile([False, True], len(chosen)), part_lengths)
        zeros = np.zeros(len(input_ids), dtype=np.float32)
        return TrainBatch(input_ids, is_completion, zeros, zeros, lengths, np.arange(len(chosen), dtype=np.int64))


def tokenize_examples(
    items: Sequence[dict[str, Any]],
    *,
    tokenizer: Any,
    encode_prompt: Callable[[dict[str, Any]], IntArray],
    completion_key: str,
    last_lines: int | None = None,
    max_length: int,
    seed: int,
) -> SupervisedExamples:
    """Encode every item once; a completion ends with the end-of-sequence token.

    Raises:
        DataError: a column is missing, or no example fits into ``max_length`` tokens.
    """
    prompts: list[IntArray] = []
    completions: list[IntArray] = []
    for number, item in enumerate(items):
        if not isinstance(completion := item.get(completion_key), str):
            raise DataError(
                f"item {number} has no text in column {completion_key!r} (sft.completion_key); it has {', '.join(item)}"
            )
        prompt_ids = encode_prompt(item)
        if last_lines is not None:
            completion = "\n".join(completion.splitlines()[-last_lines:])
        completion_ids = [*tokenizer.encode(completion, add_special_tokens=False), tokenizer.eos_token_id]
        if len(prompt_ids) + len(completion_ids) <= max_length:
            prompts.append(prompt_ids)
            completions.append(np.array(completion_ids, dtype=np.int32))
    if not prompts:
        raise DataError(f"no supervised example fits into rollout.max_length={max_length} tokens; raise it")
    return SupervisedExamples(prompts, completions, seed)


async def warm_start(
    config: ExperimentConfig,
    items: Sequence[dict[str, Any]],
    tokenizer: Any,
    train_engine: TrainEngine,
    thread: TrainerThread,
    *,
    writer: RunWriter,
    display: RunDisplay,
) -> None:
    """Fine-tune the policy for ``sft.steps`` steps on the trainer's thread."""
    sft, data = config.sft, config.data
    renderer = PromptRenderer(tokenizer, data.prompt_key, data.system_prompt, data.chat_template)
    examples = await thread.call(
        lambda: tokenize_examples(
            items,
            tokenizer=tokenizer,
            encode_prompt=lambda item: renderer.render(item).ids,
            completion_key=sft.completion_key,
            last_lines=sft.last_lines,
            max_length=config.rollout.max_length,
            seed=config.seed,
        )
    )
    display.phase(f"warm start: {sft.steps} supervised steps of {sft.batch_size} on {len(examples)} examples")
    rates = (sft.learning_rate, sft.lr_schedule, sft.warmup_steps, sft.steps)
    await thread.call(train_engine.reset_optimizer, *rates)
    started = time.monotonic()
    report_every = max(1, sft.steps // LOSS_REPORTS)
    for step, batch in enumerate(itertools.islice(examples.batches(sft.batch_size), sft.steps), start=1):
        stats = await thread.call(train_engine.sft_step, batch)
        if step % report_every == 0:
            display.print(f"warm start {step}/{sft.steps}: loss {stats['sft/loss']:.4f}")
    writer.add_span("warm_start", f"{sft.steps} steps", started, time.monotonic())
