"""The example for trying a judge without one: its server, a process of its own, and its configuration agree."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import yaml

from areal_x.api import AsyncRewardWrapper
from areal_x.reward import get_reward_fn

EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_the_example_s_judge_gives_the_share_of_right_digits() -> None:
    kwargs = yaml.safe_load((EXAMPLES / "judge_reward.yaml").read_text())["reward"]["kwargs"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "judge_server.py"), str(port)], stdout=subprocess.DEVNULL
    ) as server:
        try:
            # It takes a moment to come up; until then connections fail, which is tried again.
            options = {"base_url": f"http://127.0.0.1:{port}/v1", "max_attempts": 200, "backoff_seconds": 0.05}
            reward = AsyncRewardWrapper(get_reward_fn("judge", **{**kwargs, **options}))
            reward.check_columns(["prompt", "answer"], "prompt")
            outcomes = await asyncio.gather(
                *[reward.outcome("82+98=", text, answer="081") for text in ("081", "081\n", "080", "", "08", "999")]
            )
            assert [outcome.value for outcome in outcomes] == [1.0, 1.0, 0.667, 0.0, 0.667, 0.0]
            await reward.close()
        finally:
            server.kill()
