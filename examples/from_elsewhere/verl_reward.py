r"""Rewards as they are written for verl: for one sample, and for its batch reward manager.

Command:  cd examples/from_elsewhere && areal-x train --config-name gsm8k data.path=train.jsonl \
          reward.fn=verl:verl_reward.py 'reward.kwargs={format_score: 0.1}'
For the group: reward.fn=verl:verl_reward.py::compute_score_batched 'reward.kwargs={group: true}'

Try it:   areal-x reward test verl:verl_reward.py --data train.jsonl --dataset gsm8k
Without a column data_source, that of verl is the name of the data set: data.name in a run, --dataset here.
"""

import re


def compute_score(data_source, solution_str, ground_truth, extra_info=None, format_score=0.0, score=1.0):
    """custom_reward_function.path=verl_reward.py"""
    if "gsm8k" not in data_source:
        raise NotImplementedError(
            f"{data_source=} is not supported; name the data set: data.name=gsm8k or --dataset gsm8k"
        )
    solutions = re.findall(r"#### (-?[0-9.,]+)", solution_str[-300:])
    if not solutions:
        return {"score": 0.0, "acc": False, "pred": None}
    pred = solutions[-1].replace(",", "").rstrip(".")
    acc = pred == ground_truth.split("####")[-1].strip().replace(",", "")
    return {"score": score if acc else format_score, "acc": acc, "pred": pred}


def compute_score_batched(data_sources, solution_strs, ground_truths, extra_infos, **kwargs):
    """reward_model.reward_manager=batch"""
    return [
        compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)
        for data_source, solution_str, ground_truth, extra_info in zip(
            data_sources, solution_strs, ground_truths, extra_infos, strict=True
        )
    ]
