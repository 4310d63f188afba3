r"""A reward as it is written for OpenRLHF: lists in, tensors out.

Command:  cd examples/from_elsewhere && areal-x train --config-name gsm8k data.path=train.jsonl \
          reward.fn=openrlhf:openrlhf_reward_func.py
"""

import re

import torch


def reward_func(queries, prompts, labels, **kwargs):
    """--reward.remote_url openrlhf_reward_func.py"""
    scores, formats = [], []
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        gold = label.split("####")[-1].strip().replace(",", "")
        marked = re.findall(r"#### (-?[\d.,]+)", query[len(prompt) :])
        formats.append(float(bool(marked)))
        scores.append(float(bool(marked) and marked[-1].replace(",", "") == gold))
    scores, formats = torch.tensor(scores), torch.tensor(formats)
    # rewards: for the advantage. scores: 0 to 1, for dynamic filtering. extra_logs: for the logs.
    return {"rewards": 0.9 * scores + 0.1 * formats, "scores": scores, "extra_logs": {"marked": formats}}
