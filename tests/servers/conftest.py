"""One engine of each kind for all tests that can share one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from running_engines import KINDS, Running, start_running
from server_models import make_policy


def mark_kind(kind: str) -> object:
    """A parameter whose tests are chosen by ``-m vllm`` and ``-m sglang``."""
    return pytest.param(kind, marks=[] if kind == "embedded" else [getattr(pytest.mark, kind)])


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=[mark_kind(kind) for kind in KINDS])
async def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """An engine that recomputes prefixes when its weights change."""
    folder: Path = tmp_path_factory.mktemp(f"shared_{request.param}")
    # Of what is generated the tests hear at once, so that they meet requests in flight on a fast machine, too.
    running = await start_running(request.param, make_policy(folder / "model"), folder / "logs", stream_interval=8)
    yield running
    await running.close()


RESTS_ON_THE_ENGINE = ("test_two_servers.py", "test_killed_driver.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What rests on the engine alone is proved with vLLM each time; with SGLang, slow to start, by `make soak`."""
    for item in items:
        if item.path.name in RESTS_ON_THE_ENGINE and item.get_closest_marker("sglang") is not None:
            item.add_marker(pytest.mark.soak)
