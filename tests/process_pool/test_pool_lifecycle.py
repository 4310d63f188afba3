"""Start, registration, close, and the death of the process that owns the pool."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pool_functions as functions
import pytest
from pool_checks import marked_processes, wait_until

from areal_x.process_pool import FunctionTransferError, PoolClosedError, PoolError, ProcessPool, import_function

HERE = Path(__file__).parent


def test_modules_are_imported_once_in_the_helper(run_with_pool):
    async def test(pool):
        imported_by = await pool.register(functions.imported_by)
        results = await asyncio.gather(*(pool.call(imported_by, {}, 20.0) for _ in range(50)))
        importers = {result.value[0] for result in results}
        assert importers == {pool.process_ids()[0]}

    run_with_pool(test)


def test_a_later_registration_reaches_all_workers(run_with_pool):
    async def test(pool):
        nap, double = await pool.register(functions.nap), await pool.register(functions.double)
        busy = asyncio.create_task(pool.call(nap, {"seconds": 0.2, "value": 5.0}, 20.0))
        assert (await pool.call(double, {"x": 1}, 20.0)).value == 2
        echo = await pool.register(functions.echo)
        results = await asyncio.gather(*(pool.call(echo, {"value": i}, 20.0) for i in range(20)))
        assert [result.value for result in results] == list(range(20))
        assert (await busy).value == 5.0
        assert await pool.register(functions.echo) is echo

    run_with_pool(test)


def test_partials_objects_and_methods_are_functions_too(run_with_pool):
    async def test(pool):
        for function in (functools.partial(functions.Adder(3), 4), functions.Adder(7).add, functions.Adder(7)):
            handle = await pool.register(function)
            kwargs = {} if isinstance(function, functools.partial) else {"x": 0}
            assert (await pool.call(handle, kwargs, 20.0)).value == 7

    run_with_pool(test)


def test_a_function_of_a_file(run_with_pool, tmp_path):
    (tmp_path / "my_reward.py").write_text("OFFSET = 5\n\ndef score(x):\n    return x + OFFSET\n")

    async def test(pool):
        handle = await pool.register(import_function(f"{tmp_path}/my_reward.py:score"))
        assert (await pool.call(handle, {"x": 1}, 20.0)).value == 6

    run_with_pool(test)


def test_what_cannot_be_sent_is_refused_with_the_fix(run_with_pool):
    async def test(pool):
        y = 1

        def closure(x):
            return x + y

        for function in (lambda x: x, closure, functools.partial(closure, x=1)):
            with pytest.raises(FunctionTransferError, match=r"top level of a module.*functools\.partial"):
                await pool.register(function)

    run_with_pool(test)


def test_a_module_that_fails_to_import_is_named(run_with_pool, tmp_path, monkeypatch):
    (tmp_path / "fails_in_helper.py").write_text(
        "import os\nif os.environ.get('AREAL_X_FAIL') == str(os.getppid()):\n    raise RuntimeError('not here')\n"
        "def score(x):\n    return x\n"
    )
    function = import_function(f"{tmp_path}/fails_in_helper.py:score")

    async def test(pool):
        with pytest.raises(FunctionTransferError, match=r"score.*RuntimeError: not here"):
            await pool.register(function)
        assert (await pool.call(await pool.register(functions.double), {"x": 1}, 20.0)).value == 2

    monkeypatch.setenv("AREAL_X_FAIL", str(os.getpid()))
    run_with_pool(test)


def test_bad_names_of_functions():
    with pytest.raises(FunctionTransferError, match="no file"):
        import_function("nowhere.py:score")
    with pytest.raises(FunctionTransferError, match=r"it has: .*double"):
        import_function("pool_functions:doubel")
    with pytest.raises(FunctionTransferError, match="cannot import"):
        import_function("no_such_package.module:f")
    with pytest.raises(FunctionTransferError, match="names no function"):
        import_function("score")


def test_close_ends_calls_and_is_final(run_with_pool):
    async def test(pool):
        nap = await pool.register(functions.nap)
        tasks = [asyncio.create_task(pool.call(nap, {"seconds": 30.0}, 60.0)) for _ in range(10)]
        await asyncio.sleep(0.1)
        await pool.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, PoolClosedError) for result in results)
        with pytest.raises(PoolClosedError):
            await pool.call(nap, {"seconds": 0.0}, 20.0)
        with pytest.raises(PoolClosedError):
            await pool.register(functions.echo)

    run_with_pool(test)


def test_close_while_the_helper_imports(run_with_pool, tmp_path):
    path = tmp_path / f"slow_import_{os.urandom(3).hex()}.py"
    path.write_text(
        "import os, time\nif os.environ.get('AREAL_X_SLOW') == str(os.getppid()):\n    time.sleep(30)\n"
        "def score(x):\n    return x\n"
    )
    function = import_function(f"{path}:score")

    async def test(pool):
        pool.import_timeout_seconds = 0.3
        os.environ["AREAL_X_SLOW"] = str(os.getpid())
        with pytest.raises(FunctionTransferError, match=r"more than 0\.3 s"):
            await pool.register(function)

    os.environ["AREAL_X_SLOW"] = str(os.getpid())
    try:
        run_with_pool(test)
    finally:
        del os.environ["AREAL_X_SLOW"]


def test_one_pool_belongs_to_one_loop():
    pool = ProcessPool(1)

    async def start_and_leave():
        await pool.start()

    async def use():
        with pytest.raises(PoolError, match="another event loop"):
            await pool.register(functions.double)

    async def close():
        await pool.close()

    with asyncio.Runner() as first:
        first.run(start_and_leave())
        asyncio.run(use())
        first.run(close())


def run_script(tmp_path, body, marker, *, kill=False):
    """Run a script that uses functions of its own ``__main__``; returns its output."""
    script = tmp_path / "user_script.py"
    script.write_text(
        "import asyncio, os, sys, time\nfrom areal_x.process_pool import ProcessPool\n" + textwrap.dedent(body)
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    if kill:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    output, _ = process.communicate(timeout=100)
    assert kill or process.returncode == 0, output
    return output


MAIN = """
    OFFSET = 10

    class Point:
        def __init__(self, x):
            self.x = x

    def score(x):
        return Point(x.x + OFFSET)

    async def main():
        async with ProcessPool(1) as pool:
            handle = await pool.register(score)
            result = await pool.call(handle, {"x": Point(1)}, 20.0)
            print(result.value.x, type(result.value) is Point)

    if __name__ == "__main__":
        asyncio.run(main())
"""


def test_functions_and_classes_of_a_script(tmp_path, marker):
    assert run_script(tmp_path, MAIN, marker) == "11 True\n"
    assert wait_until(lambda: marked_processes(marker) == [], 20.0)


def test_functions_typed_at_a_prompt(marker):
    program = MAIN.replace("Point(x.x + OFFSET)", "math.floor(x + OFFSET + 0.5)").replace('{"x": Point(1)}', '{"x": 1}')
    program = program.replace("result.value.x, type(result.value) is Point", "result.value")
    program = "import asyncio, math\nfrom areal_x.process_pool import ProcessPool\n" + textwrap.dedent(program)
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    for arguments in (["-c", program], ["-"]):
        done = subprocess.run(
            [sys.executable, *arguments], input=program, capture_output=True, text=True, env=environment, timeout=60
        )
        assert done.stdout == "11\n", done.stderr


HANG = """
    def hang():
        if os.fork() == 0:
            os.setsid()
        while True:
            pass

    async def main():
        pool = ProcessPool(2)
        handle = await pool.register(hang)
        calls = [asyncio.create_task(pool.call(handle, {}, 60.0)) for _ in range(2)]
        await asyncio.sleep(0.3)
        print("running", flush=True)
        await asyncio.sleep(LEAVE)

    if __name__ == "__main__":
        asyncio.run(main())
"""


@pytest.mark.parametrize("kill", [True, False])
def test_all_processes_end_with_their_owner(tmp_path, marker, kill):
    run_script(tmp_path, HANG.replace("LEAVE", "30" if kill else "0"), marker, kill=kill)
    assert wait_until(lambda: marked_processes(marker) == [], 30.0)


FORK_AND_LEAVE = """
        child = os.fork()
        if child == 0:
            os.close(1)
            time.sleep(1000)
        print(child, flush=True)
        os._exit(0)
"""


def test_a_forked_child_of_the_owner_keeps_nothing_alive(tmp_path, marker):
    output = run_script(tmp_path, HANG.replace("        await asyncio.sleep(LEAVE)", FORK_AND_LEAVE[1:-1]), marker)
    child = int(output.removeprefix("running\n"))
    try:
        assert wait_until(lambda: marked_processes(marker) == [child], 30.0)
    finally:
        os.kill(child, signal.SIGKILL)
