"""The sandbox: programs run, limits hold, tests cannot be faked, and what cannot be isolated is not run."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from areal_x.api.errors import ConfigError
from areal_x.reward.sandbox import Limits, Sandbox, SandboxError

SMALL = Limits(seconds=0.6, memory_mb=128, processes=8, output_kb=64, disk_mb=4)
LONG = Limits(seconds=60.0)
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(2, packages=["pytest"], preload=["pytest"]) as box:
        yield box


async def test_a_script_reads_prints_and_ends(sandbox: Sandbox) -> None:
    result = await sandbox.run("import sys\nprint(input()[::-1])\nprint('no', file=sys.stderr)\nsys.exit(3)", "olleh\n")
    assert (result.stdout, result.stderr, result.exit_code, result.limit) == ("hello\n", "no\n", 3, None)
    assert not result.ok and 0 < result.seconds < 10 and result.memory_bytes > 1 << 20


@pytest.mark.parametrize(
    ("program", "stdout", "exit_code"),
    [
        ("if __name__ == '__main__': print('main')", "main\n", 0),
        ("import atexit; atexit.register(print, 'bye')", "bye\n", 0),
        (
            "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.05), print('late'))).start()",
            "late\n",
            0,
        ),
        ("out = open(1, 'w', closefd=False)\nout.write('kept')", "kept", 0),
        ("import sys\nfor line in sys.stdin: print(int(line) + 1)", "2\n3\n", 0),
        ("print(open(0).read())", "1\n2\n\n", 0),
        ("import sys; sys.setrecursionlimit(10**6)\ndef f(n): return n and f(n - 1)\nprint(f(50000))", "0\n", 0),
        ("from multiprocessing import Pool\nwith Pool(2) as p: print(p.map(abs, [-1, -2]))", "[1, 2]\n", 0),
        ("import asyncio\nasync def f(): print('async')\nasyncio.run(f())", "async\n", 0),
        (
            (
                "import subprocess, sys\n"
                "print(subprocess.run([sys.executable, '-c', 'print(5)'], "
                "capture_output=True).stdout)"
            ),
            "b'5\\n'\n",
            0,
        ),
        ("import numpy", "", 1),
        ("raise SystemExit('reason')", "", 1),
        ("def broken(:", "", 1),
        ("import os; os._exit(7)", "", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "", -signal.SIGSEGV),
        ("import os; os.abort()", "", -signal.SIGABRT),
        ("import ctypes; ctypes.string_at(1)", "", -signal.SIGSEGV),
        ("print('a\\udc80'.encode('utf-8', 'surrogateescape'))", "b'a\\x80'\n", 0),
    ],
)
async def test_scripts_end_as_in_an_interpreter(sandbox: Sandbox, program: str, stdout: str, exit_code: int) -> None:
    result = await sandbox.run(program, "1\n2\n")
    assert (result.stdout, result.exit_code) == (stdout, exit_code), result.stderr


@pytest.mark.parametrize(
    ("program", "limit"),
    [
        ("while True: pass", "time"),
        ("import time; time.sleep(60)", "time"),
        ("import os\nif os.fork() == 0: os.wait\nimport time; time.sleep(60)", "time"),
        ("x = 'a' * (1 << 30)", "memory"),
        ("x = []\nwhile True: x.append(bytes(1 << 20))", "memory"),
        ("print('x' * (1 << 20))", "output"),
        ("import sys\nwhile True: sys.stderr.write('x' * 4096)", "output"),
        ("import os, time\nwhile True:\n if os.fork() == 0: time.sleep(60)", "processes"),
        (
            "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            "processes",
        ),
        ("while True: open('f', 'ab').write(bytes(1 << 20))", "disk"),
    ],
)
async def test_limits_are_verdicts(sandbox: Sandbox, program: str, limit: str) -> None:
    limits = SMALL if limit == "time" else dataclasses.replace(SMALL, seconds=30.0)
    started = time.monotonic()
    result = await sandbox.run(program, limits=limits)
    assert result.limit == limit, result
    assert not result.ok and time.monotonic() - started < 30
    assert (await sandbox.run("print(1)")).ok


async def test_functions_are_called_and_values_come_back_exactly(sandbox: Sandbox) -> None:
    program = "def f(*args): return args\nclass Solution:\n def g(self, x): return x + 1"
    values = [
        1,
        -(10**30),
        2.5,
        float("inf"),
        "é\ud800",
        None,
        True,
        (1, [2]),
        {1: {"a"}},
        b"\0",
        1 + 2j,
        frozenset({1}),
    ]
    called = await sandbox.call(program, "f", values)
    assert called.returned and called.value == tuple(values)
    assert (await sandbox.call(program, "g", [1])).value == 2
    missing = await sandbox.call(program, "h", [1])
    assert not missing.returned and missing.loaded and "'h' is not defined" in missing.error
    broken = await sandbox.call("1/0", "f", [])
    assert not broken.returned and not broken.loaded and "ZeroDivisionError" in broken.error
    with pytest.raises(TypeError, match="plain data, got a Sandbox"):
        await sandbox.call(program, "f", [sandbox])


EVIL_VALUE = (
    "class E:\n"
    + "".join(
        f" def __{n}__(self, *a): return True\n" for n in ("eq", "ne", "lt", "le", "gt", "ge", "contains", "bool")
    )
    + "".join(f" def __{n}__(self, *a): return 0.0\n" for n in ("sub", "rsub", "abs", "float", "add", "radd"))
    + "def f(x): return E()"
)
FORGE = (
    "import os\ndef f(x): return 0\nfor fd in range(256):\n"
    ' for line in (b\'{"program":"ok","passed":true,"tests":{"a":true}}\\n\', b\'["result",4]\\n\'):\n'
    "  try: os.write(fd, line)\n  except OSError: pass"
)
FAKES = {
    "exit_at_import": "import os; os._exit(0)",
    "exit_in_call": "import os\ndef f(x): os._exit(0)",
    "system_exit_at_import": "raise SystemExit(0)",
    "system_exit_in_call": "import sys\ndef f(x): sys.exit(0)",
    "exit_later": (
        "import os, threading\nthreading.Timer(0.02, os._exit, (0,)).start()\ndef f(x): import time; time.sleep(1)"
    ),
    "equal_to_everything": EVIL_VALUE,
    "int_equal_to_everything": (
        "class E(int):\n def __eq__(s, o): return True\n __hash__ = int.__hash__\ndef f(x): return E(0)"
    ),
    "stop_iteration": "def f(x): raise StopIteration",
    "patched_builtins": (
        "import builtins\n"
        "for n in ('all', 'any', 'abs', 'isinstance'): setattr(builtins, n, lambda *a: True)\n"
        "def f(x): return 0"
    ),
    "own_abs_and_all": "def f(x): return 0\ndef abs(x): return 0\ndef all(x): return True\ndef map(*a): return []",
    "own_isclose_and_counter": "def isclose(*a): return True\ndef Counter(x): return 0\ndef f(x): return 0\nnp = f",
    "own_math": "class math:\n isclose = staticmethod(lambda *a: True)\ndef f(x): return 0",
    "other_math": "import operator as math, operator\nfrom operator import not_ as abs\ndef f(x): return 0",
    "patched_assertion_error": (
        "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\ndef f(x): return 0"
    ),
    "patched_pytest": (
        "import sys, types\nm = sys.modules['pytest'] = types.ModuleType('pytest')\n"
        "m.main = lambda *a, **k: 0\ndef f(x): return 0"
    ),
    "patched_json": "import json, os\njson.dumps = lambda *a, **k: '[\"result\",true]'\ndef f(x): return 0",
    "printed_report": "print('1 passed in 0.01s')\nprint('{\"passed\": true}')\ndef f(x): return 0",
    "exit_handler": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "forged_report": FORGE,
    "forged_report_later": FORGE.replace("def f(x): return 0\n", "def f(x):\n g()\n return 0\ndef g():\n")
    .replace("\nfor", "\n for")
    .replace("\n  for", "\n   for")
    .replace("\n   try", "\n     try")
    .replace("\n   except", "\n     except"),
    "no_answer": "def f(x):\n while True: pass",
    "flood_of_answers": "import os\ndef f(x):\n while True: os.write(5, b'[' * 65536)",
    "deep_answer": "import os\ndef f(x): os.write(5, b'[' * 100000 + b'\\n')",
    "kill_everything": "import os, signal\ndef f(x): os.kill(-1, signal.SIGKILL)",
    "stop_itself": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)",
    "find_the_test": (
        "import gc, sys\ndef f(x):\n for o in gc.get_objects():\n"
        "  if isinstance(o, dict) and 'EXPECTED' in o: return o['EXPECTED']\n return 0"
    ),
    "read_the_test": "def f(x): return int(open('test_program.py').read().split('==')[1].split()[0])",
    "exception_with_a_mark": "def f(x): raise type('Skipped', (Exception,), {})('skip')",
}
TESTS = [
    "assert f(2) == 4",
    "assert abs(f(2) - 4.0) < 1e-6",
    "assert f(2) in (4, 5) and 4 in [f(2)]",
    "assert all(map(lambda x: f(x) == x * x, [2, 3]))",
    "EXPECTED = 4\nassert not f(2) != EXPECTED",
    "from math import isclose\nassert isclose(f(2), 4.0)",
    "assert isclose(f(2), 4.0) and Counter([f(2)]) == Counter([4]) and math.isclose(f(2), 4.0)",
]


@pytest.mark.parametrize("name", FAKES)
async def test_a_program_cannot_fake_a_pass(sandbox: Sandbox, name: str) -> None:
    limits = Limits(seconds=0.3)
    checks = await asyncio.gather(*(sandbox.check(FAKES[name], test, limits=limits) for test in TESTS))
    assert [check.passed for check in checks] == [False] * len(TESTS)
    file = "from solution import f\ndef test_f():\n    assert f(2) == 4\n"
    tested = await sandbox.pytest(FAKES[name], file, Limits(seconds=0.8))
    assert not any(tested.tests.values()), tested


async def test_the_tests_pass_for_a_right_program(sandbox: Sandbox) -> None:
    program = "import math\nfrom math import isclose\nfrom collections import Counter\ndef f(x): return x * x"
    checks = await asyncio.gather(*(sandbox.check(program, test) for test in TESTS))
    # A function under test may have any name.
    checks += [await sandbox.check("def sum(a, b): return a + b", "assert sum(1, 2) == 3")]
    checks += [await sandbox.check("def bisect(a): return a // 2", "assert bisect(4) == 2")]
    assert all(check.passed and check.loaded for check in checks), checks


CLASSES = """
import math
LIMIT = 10
class TooMuch(ValueError): pass
class Stack:
    kind = 'stack'
    def __init__(self, *items): self.items = list(items)
    def push(self, x):
        if x > LIMIT: raise TooMuch(f'{x} is too much')
        self.items.append(x)
        return self
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
    def __add__(self, other): return Stack(*self.items, *other.items)
    def __getitem__(self, i): return self.items[i]
    def __contains__(self, x): return x in self.items
def count():
    yield from (1, 2, 3)
def sort(x): x.sort()
def apply(f, xs): return [f(x) for x in xs]
def adder(n): return lambda x: x + n
"""


@pytest.mark.parametrize(
    "test",
    [
        "s = Stack(1)\nassert s.push(2) == Stack(1, 2) and len(s) == 2 and list(s) == [1, 2] and s[1] == 2",
        "assert (Stack(1) + Stack(2)).items == [1, 2] and Stack(1) != Stack(2) and Stack(1) != [1]",
        "assert isinstance(Stack(), Stack) and Stack.kind == 'stack' and 1 in Stack(1) and not Stack()",
        "s = Stack()\ns.items = [7]\nassert s[0] == 7 and not hasattr(s, 'nothing')",
        "assert list(count()) == [1, 2, 3] and next(count()) == 1",
        "x = [2, 1]\nsort(x)\nassert x == [1, 2]",
        "assert apply(lambda x: x * LIMIT, [1, 2]) == [10, 20] and adder(2)(3) == 5",
        "try:\n Stack().push(99)\nexcept TooMuch as error:\n assert '99' in str(error)\nelse:\n raise AssertionError",
        "assert math.pi > 3 and apply(str, [1]) == ['1']",
        "assert sum(adder(1)(x) for x in range(3)) == 6",
    ],
)
async def test_tests_use_objects_of_the_program(sandbox: Sandbox, test: str) -> None:
    result = await sandbox.check(CLASSES, test)
    assert result.passed, result.error


async def test_a_test_file_is_counted_test_by_test(sandbox: Sandbox) -> None:
    file = (
        "import pytest\nimport solution\nfrom solution import Stack, TooMuch\n"
        "@pytest.mark.parametrize('n', [1, 2, 99])\ndef test_push(n):\n    assert len(Stack().push(n)) == 1\n"
        "def test_raises():\n    with pytest.raises(TooMuch, match='too much'):\n        Stack().push(11)\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
        "@pytest.fixture\ndef stack():\n    return Stack(5)\n"
        "def test_fixture(stack, tmp_path):\n    assert list(stack) == [5] and solution.LIMIT == 10\n"
    )
    result = await sandbox.pytest(CLASSES, file)
    passed = {"test_push[1]": True, "test_push[2]": True, "test_push[99]": False, "test_raises": True}
    assert result.tests == {**passed, "test_skipped": False, "test_fixture": True}, result.error
    assert result.completed and "99 is too much" in result.error


async def test_importing_everything_takes_no_builtins(sandbox: Sandbox) -> None:
    program = "def abs(x): return 0\ndef f(x): return 0\nLIMIT = 3"
    everything = "from solution import *\ndef test_f():\n    assert LIMIT == 3 and abs(f(2) - 4) < 1e-6\n"
    assert (await sandbox.pytest(program, everything)).tests == {"test_f": False}
    by_name = "from solution import abs\ndef test_abs():\n    assert abs(-2) == 0\n"
    assert (await sandbox.pytest(program, by_name)).tests == {"test_abs": True}


async def test_broken_tests_are_an_error_and_no_verdict(sandbox: Sandbox) -> None:
    with pytest.raises(SyntaxError):
        await sandbox.check("x = 1", "assert (")
    with pytest.raises(SyntaxError):
        await sandbox.pytest("x = 1", "def test_(:")


async def test_runs_share_nothing(sandbox: Sandbox) -> None:
    await asyncio.gather(
        *(
            sandbox.run("import os, builtins\nbuiltins.left = 1\nopen('left', 'w')\nos.environ['LEFT'] = '1'")
            for _ in range(4)
        )
    )
    results = await asyncio.gather(
        *(
            sandbox.run(
                "import os, builtins\nprint(os.listdir('.'), hasattr(builtins, 'left'), os.environ.get('LEFT'))"
            )
            for _ in range(8)
        )
    )
    assert {result.stdout for result in results} == {"[] False None\n"}


async def test_runs_are_repeatable(sandbox: Sandbox) -> None:
    program = "import random\nprint(random.random(), set('abcdef'), hash('x'))"
    results = await asyncio.gather(*(sandbox.run(program) for _ in range(6)))
    assert len({result.stdout for result in results}) == 1


async def test_a_cancelled_run_ends_at_once_and_frees_its_place() -> None:
    async with Sandbox(1) as box:
        task = asyncio.create_task(box.run("import time; time.sleep(60)", limits=LONG))
        await asyncio.sleep(0.1)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await box.run("print(2)")).stdout == "2\n"
        assert time.monotonic() - started < 30


async def test_a_helper_that_dies_is_replaced() -> None:
    async with Sandbox(1) as box:
        process = box._links[0]._process
        assert process is not None
        run = asyncio.create_task(box.run("import time; time.sleep(0.3); print('done')"))
        await asyncio.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        assert (await run).stdout == "done\n"
        assert (await box.run("print(1)")).ok


async def test_closing_ends_what_runs() -> None:
    box = Sandbox(1)
    await box.start()
    run = asyncio.create_task(box.run("import time; time.sleep(60)", limits=LONG))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    await box.close()
    with pytest.raises(SandboxError):
        await run
    assert time.monotonic() - started < 30
    with pytest.raises(SandboxError, match="not started, or closed"):
        await box.run("print(1)")


KILLED_DRIVER = """
import asyncio, os, signal
from areal_x.reward.sandbox import Sandbox
async def main():
    box = Sandbox(1)
    await box.start()
    print(box._links[0]._process.pid, flush=True)
    await box.run("import time; time.sleep(60)")
asyncio.run(main())
"""


async def test_nothing_outlives_a_killed_driver() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED_DRIVER, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    helper = int(await process.stdout.readline())
    await asyncio.sleep(0.2)
    process.kill()
    await process.wait()
    async with asyncio.timeout(30):
        while Path(f"/proc/{helper}").exists():
            await asyncio.sleep(0.02)


REFUSED = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[1])
from areal_x.reward.sandbox import Sandbox, SandboxUnavailableError
from sandbox_escapes.attempt import deny_unshare
os.environ["PATH"] = ""
deny_unshare()
async def main():
    try:
        async with Sandbox(1) as box:
            print(await box.run("print(1)"))
    except SandboxUnavailableError as error:
        print(error)
asyncio.run(main())
"""


async def test_without_isolation_nothing_runs() -> None:
    words = [sys.executable, "-c", REFUSED, str(Path(__file__).parent)]
    result = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "refuses to run programs" in result.stdout and "RunResult" not in result.stdout
    assert "unshare(CLONE_NEW" in result.stdout
    for hint in (
        "CAP_SYS_ADMIN",
        "kernel.unprivileged_userns_clone=1",
        "apt install bubblewrap",
        "--cap-add SYS_ADMIN",
    ):
        assert hint in result.stdout


async def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="num_runners must be at least 1, got 0"):
        Sandbox(0)
    with pytest.raises(ConfigError, match="limit seconds of the sandbox must be above 0, got -1"):
        Limits(seconds=-1)
    with pytest.raises(ConfigError, match="'no-such-thing' is not installed; pip install no-such-thing"):
        Sandbox(packages=["no-such-thing"])
    async with Sandbox(1) as box:
        with pytest.raises(ConfigError, match=r"packages=\['pytest'\]"):
            await box.pytest("", "")
    with pytest.raises(SandboxError, match="cannot be started"):
        await Sandbox(1, python="/nowhere/python").start()
