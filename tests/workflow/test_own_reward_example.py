"""The example that users copy does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from areal_x.api.records import SamplingParams
from areal_x.api.reward_api import AsyncRewardWrapper
from areal_x.reward import get_reward_fn
from areal_x.workflow.build import build_workflow

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_reward.py"


@pytest.mark.parametrize(
    ("completion", "value"),
    [("64", 1.0), (" 64\n", 1.0), ("65", 0.5), ("6", 0.5), ("", 0.0), ("6400", 0.5), ("46", 0.0)],
)
def test_its_reward_is_the_share_of_right_digits(completion: str, value: float) -> None:
    assert get_reward_fn(f"{EXAMPLE}:right_digits")(completions=completion, answer="64") == value


async def test_its_workflow_runs_with_its_reward_in_a_worker(plain_tokenizer: Any, scripted: Any) -> None:
    available = {
        "reward_fn": AsyncRewardWrapper(get_reward_fn(f"{EXAMPLE}:right_digits"), timeout_seconds=30.0),
        "tokenizer": plain_tokenizer,
        "sampling": SamplingParams(),
        "prompt_key": "prompt",
    }
    workflow = build_workflow(f"{EXAMPLE}:AskOnce", available, {})
    engine = scripted([plain_tokenizer("72")["input_ids"]])
    trajectory: Any = await workflow.arun_episode(engine, {"prompt": "48and24", "answer": "74"})
    assert (trajectory.outcome.status, trajectory.outcome.value) == ("ok", 0.5)
    assert (trajectory.prompt, trajectory.completion) == ("48and24", "72")
    assert trajectory.loss_mask.tolist() == [False] * 7 + [True] * 2
