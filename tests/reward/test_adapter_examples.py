"""The examples from other libraries on GSM8K items, through the wrapper: plain functions in real worker processes."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from areal_x.api import AsyncRewardWrapper, RewardOutcome, RewardSample, ScoredSample
from areal_x.cli import main
from areal_x.process_pool import ProcessPool
from areal_x.reward import get_reward_fn
from areal_x.reward.adapters import adapt_post_process

EXAMPLES = Path(__file__).parents[2] / "examples" / "from_elsewhere"
FUNCTIONS = Path(__file__).with_name("adapted_functions.py")

# Items of GSM8K (OpenAI, MIT License).
CLIPS = {
    "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?",
    "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
}
HOUSE = {
    "question": "Josh decides to try flipping a house.  He buys a house for $80,000 and then puts in $50,000 in "
    "repairs.  This increased the value of the house by 150%.  How much profit did he make?",
    "answer": "So the new value of the house is 120,000+80,000=$<<120000+80000=200000>>200,000\n"
    "So he made a profit of 200,000-130,000=$<<200000-130000=70000>>70,000\n#### 70000",
}
RIGHT = r"48/2 = 24, so 48+24 = 72. The answer is \boxed{72}" + "\n#### 72"
RIGHT_HOUSE = r"200,000-130,000 = 70,000. The answer is \boxed{70,000}" + "\n#### 70,000"
WRONG = r"48*2 = 96. The answer is \boxed{96}" + "\n#### 96"
EMPTY = "I do not know."


@pytest.fixture
async def pool():
    async with ProcessPool(2) as pool:
        yield pool


def wrap(spec: str, pool: ProcessPool, timeout_seconds: float = 30.0, **kwargs: Any) -> AsyncRewardWrapper:
    return AsyncRewardWrapper(get_reward_fn(spec, dataset="gsm8k", **kwargs), timeout_seconds, pool=pool)


async def score(reward: AsyncRewardWrapper, item: dict[str, str], completion: str) -> RewardOutcome:
    return await reward.outcome(item["question"], completion, [1, 2, 3], [4, 5, 6, 7], answer=item["answer"])


def group(*completions: str, item: dict[str, str] = CLIPS) -> list[RewardSample]:
    data = {"answer": item["answer"]}
    return [RewardSample(item["question"], text, [1, 2, 3], list(range(len(text))), data) for text in completions]


SINGLE = {
    "slime:{}/slime_rm.py:custom_rm": ({"reward_key": "score"}, [1.0, 1.0, 0.0, 0.0]),
    "openrlhf:{}/openrlhf_reward_func.py": ({}, [1.0, 1.0, 0.1, 0.0]),
    "verl:{}/verl_reward.py": ({"format_score": 0.1}, [1.0, 1.0, 0.1, 0.0]),
    "areal:{}/areal_reward.py:gsm8k_reward_fn": ({}, [1.0, 1.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("spec", SINGLE)
async def test_functions_of_one_sample(spec, pool):
    kwargs, expected = SINGLE[spec]
    reward = wrap(spec.format(EXAMPLES), pool, **kwargs)
    assert reward.is_async == ("slime" in spec) and not reward.is_group
    cases = [(CLIPS, RIGHT), (HOUSE, RIGHT_HOUSE), (CLIPS, WRONG), (CLIPS, EMPTY)]
    outcomes = [await score(reward, item, completion) for item, completion in cases]
    assert [(outcome.status, outcome.error) for outcome in outcomes] == [("ok", None)] * 4
    assert [outcome.value for outcome in outcomes] == pytest.approx(expected)
    right, wrong = outcomes[0], outcomes[2]
    if "verl" in spec or "slime" in spec:
        assert (right.parts["acc"], right.metadata["pred"], wrong.metadata["pred"]) == (1.0, "72", "96")
    if "openrlhf" in spec:
        assert (right.parts, wrong.parts) == ({"scores": 1.0, "marked": 1.0}, {"scores": 0.0, "marked": 1.0})


async def test_trl_s_accuracy_on_a_group(pool):
    reward = wrap(f"trl:{EXAMPLES}/trl_rewards.py:accuracy_reward", pool, conversational=True)
    outcomes = await reward.group_outcomes(group(RIGHT, WRONG, EMPTY))
    assert [outcome.value for outcome in outcomes] == [1.0, 0.0, 0.0]
    assert [outcome.parts for outcome in outcomes] == [{"has_number": pytest.approx(2 / 3)}] * 3
    assert [outcome.metadata["found"] for outcome in outcomes] == ["72", "96", ""]
    unanswered = await reward.group_outcomes(group(RIGHT, item={**CLIPS, "answer": "no number"}))
    assert [outcome.status for outcome in unanswered] == ["not_applicable"]


async def test_trl_s_coroutine_runs_on_the_loop(pool):
    reward = wrap(f"trl:{EXAMPLES}/trl_rewards.py:brevity_reward", pool)
    assert reward.is_async and reward.is_group
    assert [outcome.value for outcome in await reward.group_outcomes(group("1234", "12"))] == [0.0, 0.5]


async def test_slime_s_group_form(pool):
    reward = wrap(f"slime:{EXAMPLES}/slime_rm.py:group_rm", pool, group=True, length_weight=0.5)
    samples = group(RIGHT, WRONG, "72", "72")
    samples[3].truncated = True
    values = [outcome.value for outcome in await reward.group_outcomes(samples)]
    assert values == [0.5, 0.0, 1 - 0.5 * 2 / len(RIGHT), 0.0]


async def test_verl_s_batch_form(pool):
    reward = wrap(f"verl:{EXAMPLES}/verl_reward.py::compute_score_batched", pool, group=True, format_score=0.1)
    outcomes = await reward.group_outcomes(group(RIGHT, WRONG, EMPTY))
    assert [outcome.value for outcome in outcomes] == [1.0, 0.1, 0.0]
    assert [outcome.parts["acc"] for outcome in outcomes] == [1.0, 0.0, 0.0]


async def test_openrlhf_s_function_takes_a_whole_group(pool):
    reward = wrap(f"openrlhf:{EXAMPLES}/openrlhf_reward_func.py", pool, group=True)
    assert [outcome.value for outcome in await reward.group_outcomes(group(RIGHT, EMPTY))] == pytest.approx([1.0, 0.0])


def test_slime_s_hook_leaves_one_out():
    rewards = [(1.0, 5), (0.0, 5), (1.0, 5), (7.0, 6)]
    batch = [ScoredSample("Q?", "A", data={"answer": "1"}, reward=value, group_id=group) for value, group in rewards]
    hook = adapt_post_process("slime", f"{EXAMPLES}/slime_rm.py:post_process", {})
    assert hook(batch) == ([1.0, 0.0, 1.0, 7.0], [0.5, -1.0, 0.5, 0.0])


COUNTED = """
import os
with open({imports!r}, "a") as imports:
    imports.write(f"{{os.getpid()}}\\n")

def rm(args, sample):
    return {{"reward": 1.0, "worker": os.getpid()}}
"""


async def test_the_module_is_imported_once_here_and_once_in_the_helper(pool, tmp_path):
    imports = tmp_path / "imports"
    (tmp_path / "counted.py").write_text(COUNTED.format(imports=str(imports)))
    reward = wrap(f"slime:{tmp_path}/counted.py:rm", pool)
    await reward.start()
    at_start = imports.read_text().split()
    assert len(at_start) == len(set(at_start)) == 2
    outcomes = await asyncio.gather(*(reward.outcome("", "") for _ in range(20)))
    assert [outcome.value for outcome in outcomes] == [1.0] * 20
    assert imports.read_text().split() == at_start


async def test_relative_files_and_lambdas_reach_the_workers(pool, tmp_path, monkeypatch):
    (tmp_path / "reward.py").write_text(FUNCTIONS.read_text())
    monkeypatch.chdir(tmp_path)
    reward = wrap("slime:./reward.py:a_lambda", pool)
    assert reward.name == "slime:./reward.py:a_lambda"
    monkeypatch.chdir("/")
    assert (await reward.outcome("", "four")).value == 4.0


@pytest.mark.parametrize(
    ("spec", "status", "message"),
    [
        ("areal:{}:areal_raises", "error", "ZeroDivisionError: no reward today"),
        ("slime:{}:slime_hangs", "timeout", "slime_hangs did not return within 0.5 s; its worker was killed"),
        ("slime:{}:slime_slow", "timeout", "slime_slow did not return within 0.5 s"),
        ("slime:{}:slime_exits", "crash", "slime_exits"),
        ("verl:{}:verl_returns", "error", "DataError: the data has none of the columns reward_model"),
    ],
)
async def test_failures_keep_their_kind(spec, status, message, pool):
    outcome = await wrap(spec.format(FUNCTIONS), pool, timeout_seconds=0.5).outcome("Q?", "A", [1], [2])
    assert (outcome.status, outcome.value) == (status, None)
    assert message in outcome.error


@pytest.mark.parametrize(
    ("spec", "kwargs"),
    [
        ("slime:{}:slime_returns", {"value": float("nan")}),
        ("slime:{}:slime_returns", {"value": "1.0"}),
        ("openrlhf:{}:openrlhf_returns", {"value": {"rewards": []}}),
        ("verl:{}:verl_returns", {"value": {"acc": 1}, "ground_truth": "1"}),
    ],
)
async def test_what_is_no_reward_is_an_error(spec, kwargs, pool):
    outcome = await wrap(spec.format(FUNCTIONS), pool, **kwargs).outcome("Q?", "A", [1], [2])
    assert (outcome.status, outcome.value) == ("error", None)


async def test_a_group_of_the_wrong_size_fails_as_a_whole(pool):
    reward = wrap(f"trl:{FUNCTIONS}:trl_returns", pool, value=[1.0])
    outcomes = await reward.group_outcomes(group("A", "B"))
    assert [outcome.status for outcome in outcomes] == ["error", "error"]


def commands() -> list[list[str]]:
    """The words of every command that an example's docstring shows, with those for groups."""
    found = []
    for file in sorted(EXAMPLES.glob("*.py")):
        text = file.read_text()
        command = re.search(r"Command: .*? && areal-x (.*?)\n(?:For|\"\"\")", text, re.DOTALL)
        words = shlex.split(command.group(1).replace("\\\n", " "))
        found.append(words)
        for other in re.findall(r"^For the group: (.*)$", text, re.MULTILINE):
            found.append([word for word in words if not word.startswith("reward.")] + shlex.split(other))
    return found


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[-1])
def test_the_commands_of_the_examples_compose(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "train.jsonl").write_text(json.dumps(CLIPS) + "\n")
    monkeypatch.chdir(EXAMPLES)
    words = [f"data.path={tmp_path}/train.jsonl" if word == "data.path=train.jsonl" else word for word in words]
    assert main([*words, "--dry-run"]) == 0
    assert "reward" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reward.fn=verl:no.py"], "reward.fn=verl:no.py: no such file: no.py"),
        (["reward.fn=slime:no_package.rm"], "there is no package 'no_package'"),
        (["reward.fn=slime:slime_rm.py:custom"], "slime_rm.py has no 'custom'; it has: "),
        (["reward.fn=trl:accuracy_reward"], "reward.fn='trl:accuracy_reward': names no module"),
        (["reward.fn=verl:verl_reward.py", "reward.kwargs={format: 1}"], "reward.kwargs.format is not an argument of"),
    ],
)
def test_mistakes_are_found_before_a_run(words, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "train.jsonl").write_text(json.dumps(CLIPS) + "\n")
    monkeypatch.chdir(EXAMPLES)
    assert main(["train", "--config-name", "gsm8k", f"data.path={tmp_path}/train.jsonl", *words, "--dry-run"]) == 2
    assert message in capsys.readouterr().err
