"""The reward ``code``: formats of tests, extraction, comparison, and what each ending of a program is worth."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from areal_x.api import AsyncRewardWrapper
from areal_x.api.errors import ConfigError, DataError
from areal_x.reward import get_reward_fn
from areal_x.reward.code import CodeReward
from areal_x.reward.code.cases import AssertCase, CallCase, PytestCase, StdioCase, read_cases
from areal_x.reward.code.extraction import complete_program, find_program
from areal_x.reward.code.outputs import same_output, same_value
from areal_x.reward.sandbox import SandboxError

FENCE = "Here it is:\n```python\n{}\n```\nDone."
DOUBLE = "print(int(input()) * 2)"
ADD = "def add(a, b):\n    return a + b"
SOLUTION = "class Solution:\n    def f(self, x: List[int]): return Counter(x)"
OPENRLHF = {"failed_value": 0.3, "timeout_value": -0.5, "crash_value": -1.0, "seconds": 3.0, "num_runners": 1}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rewards() -> AsyncIterator[dict[str, CodeReward]]:
    made = {"all": CodeReward(seconds=20.0), "fraction": CodeReward(score="fraction", seconds=3.0)}
    made["graded"] = CodeReward(**OPENRLHF)  # type: ignore[arg-type]
    yield made
    for reward in made.values():
        await reward.close()


in_module_loop = pytest.mark.asyncio(loop_scope="module")
APPS = {"inputs": ["1\n", "5"], "outputs": ["2\n", "10"]}
RIGHT: list[tuple[str, dict[str, Any]]] = [
    (DOUBLE, {"tests": [{"input": "1", "output": "2"}, {"input": "4", "expected_output": "8 \n"}]}),
    (DOUBLE, {"input_output": json.dumps(APPS)}),
    (DOUBLE, {"ground_truth": APPS}),
    (DOUBLE, {"public_tests": {"input": ["1"], "output": ["2"]}, "private_tests": {"input": ["3"], "output": ["6"]}}),
    ("print(*sorted(input().split()))", {"tests": {"inputs": [["b a", "x"]], "outputs": [["a b"]]}}),
    (ADD, {"input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], [[1], [2]]], "outputs": [[3], [1, 2]]})}),
    (ADD, {"tests": {"fn_name": "add", "inputs": ["1\n2", '"a"\n"b"'], "outputs": ["3", '"ab"']}}),
    (ADD, {"tests": [{"fn_name": "add", "args": [[1], [2]], "expected": [1, 2]}]}),
    (ADD, {"tests": {"assert_case": ["assert add(1, 1) == 2"], "inputs": [], "outputs": []}}),
    (ADD, {"tests": ["assert add(1, 1) == 2", "assert add('a', 'b') == 'ab'"]}),
    (ADD, {"test_list": ["assert add(math.pi, 0) > 3"], "test_imports": ["import math"], "challenge_test_list": []}),
    (ADD, {"test_list": ["assert add(X, 0) == 3"], "test_setup_code": "X = 3"}),
    (ADD, {"test": "def check(candidate):\n    assert candidate(1, 2) == 3\n", "entry_point": "add"}),
    (ADD, {"tests": "from solution import add\ndef test_add():\n    assert add(1, 2) == 3\n"}),
    (SOLUTION, {"tests": [{"fn_name": "f", "args": [[1, 1]], "expected": {"1": 2}}]}),
]  # fmt: skip


@in_module_loop
@pytest.mark.parametrize(("program", "columns"), RIGHT, ids=[str(number) for number in range(len(RIGHT))])
async def test_each_format_tells_right_from_wrong(
    rewards: dict[str, CodeReward], program: str, columns: dict[str, Any]
) -> None:
    good = await rewards["all"](FENCE.format(program), **columns)
    assert (good.value, good.parts) == (1.0, {"passed": 1.0}), good
    wrong = program.replace("* 2", "* 3").replace("a + b", "(a, b)").replace("sorted", "").replace("Counter", "")
    bad = await rewards["all"](FENCE.format(wrong), **columns)
    assert bad.value == 0.0 and bad.metadata["reason"] in ("code_failed", "code_crash")


@in_module_loop
async def test_part_of_the_cases_is_part_of_the_reward(rewards: dict[str, CodeReward]) -> None:
    tests = [{"input": str(n), "output": str(abs(n))} for n in (1, -1, 2, -2)]
    half = await rewards["fraction"](FENCE.format("print(int(input()))"), tests=tests)
    assert (half.value, half.parts, half.metadata["reason"]) == (0.5, {"passed": 0.5}, "code_failed")
    assert (await rewards["all"](FENCE.format("print(int(input()))"), tests=tests)).value == 0.0
    file = "from solution import add\n" + "".join(f"def test_{n}(): assert add({n}, 1) == 3\n" for n in range(4))
    assert (await rewards["fraction"](FENCE.format(ADD), tests=file)).value == 0.25
    limited = await rewards["fraction"](FENCE.format("n = int(input())\nwhile n < 0: pass\nprint(n)"), tests=tests)
    assert (limited.value, limited.metadata["reason"]) == (0.5, "code_time_limit")


TEST_FILE = "from solution import add\ndef test_add():\n    assert add(1, 2) == 3\n"


@in_module_loop
@pytest.mark.parametrize(
    ("completion", "value", "reason"),
    [
        (FENCE.format(ADD), 1.0, None),
        (FENCE.format(ADD.replace("+", "-")), 0.3, "code_failed"),
        ("I cannot do it.", 0.0, "no_program"),
        (FENCE.format("while True: pass"), -0.5, "code_time_limit"),
        (FENCE.format("def add(a, b):\n    while True: pass"), -0.5, "code_time_limit"),
        (FENCE.format("raise ValueError"), -1.0, "code_crash"),
        (FENCE.format("def add(a:"), -1.0, "code_crash"),
        (FENCE.format("import os; os._exit(0)"), -1.0, "code_crash"),
        (FENCE.format("x = bytes(1 << 40)"), 0.0, "code_memory_limit"),
    ],
)
async def test_endings_have_values_of_their_own(
    rewards: dict[str, CodeReward], completion: str, value: float, reason: str | None
) -> None:
    result = await rewards["graded"](completion, tests=TEST_FILE)
    assert (result.value, result.metadata.get("reason")) == (value, reason), result


@in_module_loop
async def test_all_cases_together_have_a_limit() -> None:
    reward = CodeReward(score="fraction", seconds=20.0, total_seconds=4.5, num_runners=1, limit_value=-2.0)
    tests = [{"input": "", "output": "1"}] * 10
    result = await reward(FENCE.format("import time; time.sleep(2.5); print(2)"), tests=tests)
    await reward.close()
    assert result.value == 0.0 and result.metadata["reason"] == "code_failed"
    assert reward.metrics()["cases"] == 2


@in_module_loop
async def test_what_is_wrong_with_the_data_is_an_error(rewards: dict[str, CodeReward]) -> None:
    reward = rewards["all"]
    with pytest.raises(ValueError, match="needs test cases in a column tests or test_cases"):
        await reward(FENCE.format(ADD), answer="3")
    with pytest.raises(SyntaxError):
        await reward(FENCE.format(ADD), tests=["assert ("])
    with pytest.raises(ValueError, match="has no tests"):
        await reward(FENCE.format(ADD), tests="import pytest\n")
    with pytest.raises(DataError, match=r"needs a column tests or .* the data has: answer, prompt"):
        reward.check_columns(["prompt", "answer"])
    reward.check_columns(["input_output"])


@in_module_loop
async def test_a_broken_sandbox_is_an_outcome_and_no_number() -> None:
    reward = CodeReward(num_runners=1)
    wrapper = AsyncRewardWrapper(reward)
    await wrapper.start()
    good = await wrapper.outcome("", FENCE.format(ADD), tests=["assert add(1, 2) == 3"])
    assert (good.status, good.value) == ("ok", 1.0)
    await reward._sandboxes[False].close()
    bad = await wrapper.outcome("", FENCE.format(ADD), tests=["assert add(1, 2) == 3"])
    assert bad.status == "error" and bad.value is None and SandboxError.__name__ in str(bad.error)
    await wrapper.close()


@in_module_loop
async def test_many_at_once_wait_for_a_place_and_not_for_a_deadline() -> None:
    reward = CodeReward(num_runners=1)
    wrapper = AsyncRewardWrapper(reward, timeout_seconds=0.2)
    await wrapper.start()
    completion = FENCE.format("import time; time.sleep(0.05); print(input())")
    outcomes = await asyncio.gather(
        *(wrapper.outcome("", completion, tests=[{"input": "a", "output": "a"}]) for _ in range(12))
    )
    await wrapper.close()
    assert {(outcome.status, outcome.value) for outcome in outcomes} == {("ok", 1.0)}
    assert reward.metrics()["programs"] == reward.metrics()["cases"] == 12


def test_the_registry_knows_it() -> None:
    for name in ("apps", "codeparrot/apps", "deepmind/code_contests", "mbpp", "openai_humaneval", "BAAI/TACO"):
        assert isinstance(get_reward_fn(None, dataset=name), CodeReward)
    with pytest.raises(ConfigError, match="score='some' of reward 'code' is not one of: all, fraction"):
        get_reward_fn("code", score="some")
    with pytest.raises(ConfigError, match="limit seconds of the sandbox must be above 0"):
        get_reward_fn("code", seconds=0)


def test_cases_are_read() -> None:
    assert read_cases({"tests": [{"input": "a", "output": "b"}]}) == [StdioCase("a", "b")]
    assert read_cases({"x": ["assert f()"]}, "x") == [AssertCase("assert f()")]
    assert read_cases({"tests": "def test_f(): pass"}) == [PytestCase("def test_f(): pass")]
    assert read_cases({"tests": {"fn_name": "f", "inputs": [[1]], "outputs": [[2]]}}) == [CallCase("f", [1], [2], True)]


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("{broken", "holds no valid JSON"),
        ([], "holds no test case"),
        (3, "is a int, expected test cases"),
        ([3], "a test case in column 'tests' is a int"),
        ([{"question": "a"}], r"has the keys \['question'\]"),
        ({"inputs": ["1"], "outputs": []}, "has 1 inputs and 0 outputs"),
        ({"questions": 1}, r"has the keys \['questions'\]; expected 'inputs' and 'outputs'"),
        ({"fn_name": "f", "inputs": [5], "outputs": [5]}, "arguments of a function case are a int"),
    ],
)
def test_cases_in_no_known_format_are_an_error(tests: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_cases({"tests": tests})


@pytest.mark.parametrize(
    ("text", "blocks", "program"),
    [
        ("```python\na\n```", "python", "a\n"),
        ("```python\na\n```\n```py\nb\n```\nbye", "python", "b\n"),
        ("```python\na\n```\n```\noutput\n```", "python", "a\n"),
        ("```python\na\n```\n```\noutput\n```", "any", "output\n"),
        ("```Python3 title=x\na\n```", "python", "a\n"),
        ("```python\nunfinished", "python", None),
        ("```python\na\n```\n```python\nunfinished", "python", "a\n"),
        ("<think>```python\na\n```", "python", None),
        ("<think>```python\na\n```</think>```python\nb\n```", "python", "b\n"),
        ("<think>```python\na\n```</think>\n```python\nb\n```", "python", "b\n"),
        ("```python\n\n```", "python", None),
        ("```python\nx = '''\n``` in text\n'''\n```", "python", "x = '''\n``` in text\n'''\n"),
        ("print(1)", "none", "print(1)"),
        ("print(1)", "python", None),
        ("", "none", None),
        ("```" * 10_000, "any", None),
    ],
)
def test_the_last_complete_block_is_the_program(text: str, blocks: str, program: str | None) -> None:
    assert find_program(text, blocks=blocks) == program


def test_a_function_is_completed_with_the_prompt() -> None:
    prompt = 'import math\ndef area(r):\n    """Area."""\n'
    assert complete_program("    return math.pi * r\n", prompt, "area") == prompt + "    return math.pi * r\n"
    whole = complete_program("def area(r):\n    return math.pi * r", prompt, "area")
    space: dict[str, Any] = {}
    exec(whole, space)
    assert 3 < space["area"](1) < 4
    assert complete_program("x = 1", "Write a poem.", "area") == "x = 1"
    chat = f"user: complete this\n```python\n{prompt}```\nassistant:"
    assert complete_program("    return r\n", chat, "area") == prompt + "    return r\n"


@pytest.mark.parametrize(
    ("printed", "expected", "tokens", "exact", "close"),
    [
        ("1 2\n3", "1 2 3\n", True, False, True),
        ("1 2 \n\n", "1 2", True, True, True),
        ("1.0", "1", False, False, True),
        ("0.3000000001", "0.3", False, False, True),
        ("0.31", "0.3", False, False, False),
        ("nan", "nan", True, True, True),
        ("abc", "abd", False, False, False),
        ("1", "1 2", False, False, False),
        ("", "", True, True, True),
    ],
)
def test_outputs_are_compared(printed: str, expected: str, tokens: bool, exact: bool, close: bool) -> None:
    found = [same_output(printed, expected, comparison, 1e-6) for comparison in ("tokens", "exact", "float")]
    assert found == [tokens, exact, close]


@pytest.mark.parametrize(
    ("returned", "expected", "same"),
    [
        ((1, (2,)), [1, [2]], True),
        ({1: [2]}, {"1": [2]}, True),
        ({1: 2}, {"1": 3}, False),
        ([1], [1, 2], False),
        (1, 1.0, True),
        (0.1 + 0.2, 0.3, False),
        ("1", 1, False),
        ({1}, [1], False),
        (None, None, True),
    ],
)
def test_values_are_compared(returned: Any, expected: Any, same: bool) -> None:
    assert same_value(returned, expected, "tokens", 1e-6) is same
    assert same_value(0.1 + 0.2, 0.3, "float", 1e-6)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert not same_value(deep, deep, "tokens", 1e-6)
