"""A reward and a workflow of one's own, in one file.

What it does: a small Qwen3, made at random, learns to add two-digit numbers. The reward is the share of right digits;
the workflow asks once and scores the answer. Both are named in `own_reward.yaml`.

Command:  cd examples && areal-x train ./own_reward.yaml
Hardware: 2 CPU cores, no GPU, no network. At most 3 minutes.
Curve:    the mean reward begins near 0.75, since most digits are right after the warm start, and ends above 0.95.
Sample:   82+98= -> 081 (the last digit comes first), reward 1.0
"""

from areal_x.api.records import ModelRequest, Trajectory
from areal_x.api.workflow_api import RolloutWorkflow


def right_digits(completions: str, answer: str) -> float:
    """Arguments come by name: the completion's text, and any column of the data. It runs in a worker process."""
    pairs = zip(completions.strip().ljust(len(answer)), answer, strict=False)
    return sum(a == b for a, b in pairs) / max(len(answer), len(completions.strip()))


class AskOnce(RolloutWorkflow):
    """One class with one asynchronous method. The run hands its constructor what it names."""

    def __init__(self, reward_fn, tokenizer, sampling):
        self.reward_fn, self.tokenizer, self.sampling = reward_fn, tokenizer, sampling

    async def arun_episode(self, engine, data):
        ids = self.tokenizer(data["prompt"])["input_ids"]
        response = await engine.agenerate(ModelRequest(ids, self.sampling))
        text = self.tokenizer.decode(response.output_ids, skip_special_tokens=True)
        outcome = await self.reward_fn.outcome(data["prompt"], text, answer=data["answer"])
        return Trajectory.from_response(response, outcome, prompt=data["prompt"], completion=text)
