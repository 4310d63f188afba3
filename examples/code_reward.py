"""Scores of programs, run in the sandbox: a pytest file, and a reward of one's own around the built-in one.

`python examples/code_reward.py` scores five completions with a pytest file as OpenRLHF's example does: passed 1.0,
failed 0.3, no program 0.0, time-out -0.5, crash -1.0.

`cd examples && areal-x train ./code_reward.yaml` trains the quickstart's small model. It writes digits and no programs,
so `DigitsAsProgram` puts them into one. Hardware: 2 CPU cores, no GPU, no network. At most 4 minutes.
"""

import asyncio

from areal_x.reward import get_reward_fn
from areal_x.reward.code import CodeReward

SCORES = {"passed_value": 1.0, "failed_value": 0.3, "no_program_value": 0.0, "timeout_value": -0.5, "crash_value": -1.0}

TESTS = """
import pytest
from solution import median

@pytest.mark.parametrize(("numbers", "expected"), [([3, 1, 2], 2), ([4, 1, 3, 2], 2.5), ([7], 7)])
def test_median(numbers, expected):
    assert median(numbers) == expected

def test_no_numbers():
    with pytest.raises(ValueError):
        median([])
"""

COMPLETIONS = {
    "right": "def median(n):\n    import statistics\n    return statistics.median(n)",
    "wrong": "def median(n):\n    return sorted(n)[len(n) // 2]",
    "endless": "def median(n):\n    while True:\n        pass",
    "crash": "raise RuntimeError('I give up')",
    "none": None,
}


class DigitsAsProgram(CodeReward):
    """1 if the digits of the completion, put into a program, pass the test; else 0. Options are those of `code`."""

    def check_columns(self, columns):
        """The tests are made from the column `answer`, which the call asks for by name."""

    async def __call__(self, completions: str, answer: str):
        program = f"```python\ndef digits():\n    return {completions.strip()!r}\n```"
        return await super().__call__(program, tests=[{"fn_name": "digits", "args": [], "expected": answer}])


async def main() -> None:
    reward = get_reward_fn("code", **SCORES, seconds=2.0)
    await reward.start()
    for name, program in COMPLETIONS.items():
        text = "I do not know." if program is None else f"```python\n{program}\n```"
        result = await reward(text, tests=TESTS)
        print(f"{name:8} {result.value:5.1f}  passed {result.parts['passed']:.2f}  {result.metadata.get('reason', '')}")
    await reward.close()


if __name__ == "__main__":
    asyncio.run(main())
