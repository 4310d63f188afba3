"""Functions for other libraries that the adapters' tests call. Named by this file's path."""

from __future__ import annotations

import os
import time

import numpy as np

not_a_function = "Qwen/some-reward-model"


class SomeClass:
    pass


class Model:
    """Looks like a torch module."""

    def forward(self, ids):
        return ids

    def parameters(self):
        return []

    def __call__(self, ids):
        return ids


model = Model()
a_lambda = lambda args, sample: float(len(sample.response))  # noqa: E731


def slime_returns(args, sample):
    return args.value


def slime_echo(args, samples):
    return [{"score": sample.index, "status": sample.status.value, "label": sample.label} for sample in samples]


async def slime_sees(args, sample, **kwargs):
    sees = {name: getattr(sample, name) for name in args.fields}
    return {"reward": True, "kwargs": kwargs, **sees}


async def slime_unknown_argument(args, sample):
    return args.rollout_max_response_len


async def slime_slow(args, sample):
    import asyncio

    await asyncio.sleep(10)


def slime_hangs(args, sample):
    time.sleep(10)


def slime_exits(args, sample):
    os._exit(3)


def hands_back_a_coroutine(args, sample):
    return slime_slow(args, sample)


def post_returns(args, samples):
    return args.value


def post_reward_key(args, samples):
    raw = [sample.get_reward_value(args) for sample in samples]
    return np.array(raw), np.array(raw) - [sample.group_index for sample in samples]


async def post_async(args, samples):
    return [], []


def openrlhf_returns(queries, prompts, labels, value=None):
    return value


def openrlhf_echo(queries, prompts, labels):
    seen = {"queries": queries, "prompts": prompts, "labels": labels}
    return {"rewards": [1] * len(queries), "extra_logs": {**seen, "batch": len(queries)}}


def trl_returns(completions, value, **kwargs):
    return value[0]


def trl_echo(prompts, completions, completion_ids, log_extra, answer, level, **kwargs):
    log_extra("seen", [prompts, completions, completion_ids])
    log_extra("columns", [answer, level, sorted(kwargs)])
    return [1.0] * (len(prompts) - 1) + [None]


def trl_few_arguments(completions, answer):
    return [float(completion == gold) for completion, gold in zip(completions, answer, strict=True)]


def trl_step(completions, trainer_state, **kwargs):
    return [trainer_state.global_step] * len(completions)


def trl_logs(completions, log_metric, log_extra, nan=False, short=False, **kwargs):
    log_metric("mean_length", 2)
    log_metric("mean_length", np.float32(4))
    log_metric("odd", float("nan") if nan else True)
    log_extra("word", completions[1:] if short else completions)
    return np.arange(len(completions))


def verl_returns(data_source, solution_str, ground_truth, extra_info=None, value=None):
    return value


def verl_echo(data_source, solution_str, ground_truth, extra_info, more=None):
    return {"score": True, "data_source": data_source, "gold": ground_truth, "extra": extra_info, "more": more}


async def verl_batch(data_sources, solution_strs, ground_truths, extra_infos, drop=0):
    pairs = zip(solution_strs, ground_truths, strict=True)
    return [{"score": a == b, "index": index} for index, (a, b) in enumerate(pairs)][drop:]


def areal_echo(text, answer_text, ids, more_ids, answer, **data):
    return {"reward": len(ids) + len(more_ids), "seen": [text, answer_text, answer, sorted(data)]}


def areal_few(prompt, completions, prompt_ids, completion_ids, answer, scale=1):
    return scale * (completions == answer)


def areal_raises(prompt, completions, prompt_ids, completion_ids, **data):
    raise ZeroDivisionError("no reward today")
