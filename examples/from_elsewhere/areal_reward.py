r"""A reward as it is written for AReaL.

Command:  cd examples/from_elsewhere && areal-x train --config-name gsm8k data.path=train.jsonl \
          reward.fn=areal:areal_reward.py:gsm8k_reward_fn
"""

import re


def gsm8k_reward_fn(prompt, completions, prompt_ids, completion_ids, answer, **kwargs) -> float:
    """Is the last number of the completion the one behind ####?"""
    gold = answer.split("####")[-1].strip().replace(",", "")
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", completions)
    return bool(numbers) and float(numbers[-1].replace(",", "")) == float(gold)
