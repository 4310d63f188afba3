r"""Rewards as they are written for slime: one for each sample, one for a group, and a hook for the rewards of a batch.

Command:  cd examples/from_elsewhere && areal-x train --config-name gsm8k data.path=train.jsonl \
          reward.fn=slime:slime_rm.py:custom_rm 'reward.kwargs={reward_key: score}'
For the group: reward.fn=slime:slime_rm.py:group_rm 'reward.kwargs={group: true, length_weight: 0.2}'
"""

import asyncio
import re

from slime.utils.types import Sample


def last_number(text):
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return numbers[-1].replace(",", "").rstrip(".") if numbers else None


async def custom_rm(args, sample: Sample, **kwargs):
    """--custom-rm-path slime_rm.custom_rm --reward-key score"""
    gold = last_number(sample.label)
    await asyncio.sleep(0)  # Here a verifier would be asked.
    found = last_number(sample.response.split("</think>")[-1])
    return {"score": 1.0 if found == gold else 0.0, "acc": found == gold, "pred": found}


async def group_rm(args, samples: list[Sample], **kwargs):
    """--group-rm: right answers first, and among them the shortest. Cut off answers get nothing."""
    right = [
        sample.status != Sample.Status.TRUNCATED and last_number(sample.response) == last_number(sample.label)
        for sample in samples
    ]
    longest = max(sample.response_length for sample in samples) or 1
    return [
        1.0 - args.length_weight * sample.response_length / longest if is_right else 0.0
        for sample, is_right in zip(samples, right, strict=True)
    ]


def post_process(args, samples):
    """--custom-reward-post-process-path: rewards relative to the mean of the other samples of the prompt."""
    raw = [sample.get_reward_value(args) for sample in samples]
    groups = {}
    for sample, reward in zip(samples, raw, strict=True):
        groups.setdefault(sample.group_index, []).append(reward)
    processed = []
    for sample, reward in zip(samples, raw, strict=True):
        group = groups[sample.group_index]
        others = len(group) - 1
        processed.append(reward - (sum(group) - reward) / others if others else 0.0)
    return raw, processed
