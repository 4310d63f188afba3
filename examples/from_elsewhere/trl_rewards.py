r"""Rewards as they are written for TRL's GRPOTrainer.

Command:  cd examples/from_elsewhere && areal-x train --config-name gsm8k data.path=train.jsonl \
          reward.fn=trl:trl_rewards.py:accuracy_reward 'reward.kwargs={conversational: true}'
"""

import asyncio
import re


def accuracy_reward(completions, answer, log_metric=None, log_extra=None, **kwargs):
    """Is the last number of the message the gold one? None where the gold answer is no number."""
    rewards, found = [], []
    for completion, gold in zip(completions, answer, strict=True):
        text = completion[0]["content"]
        numbers = re.findall(r"-?\d[\d,]*", text)
        found.append(numbers[-1].replace(",", "") if numbers else "")
        gold = re.search(r"####\s*(-?[\d,]+)", gold)
        rewards.append(None if gold is None else float(found[-1] == gold.group(1).replace(",", "")))
    if log_extra:
        log_extra("found", found)
    if log_metric:
        log_metric("has_number", sum(map(bool, found)) / len(found))
    return rewards


async def brevity_reward(prompts, completions, completion_ids, **kwargs):
    """The share of the group's longest completion that was saved. Completions are plain texts here."""
    await asyncio.sleep(0)  # Here a judge would be asked.
    longest = max(len(ids) for ids in completion_ids) or 1
    return [1 - len(ids) / longest for ids in completion_ids]
