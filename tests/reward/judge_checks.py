"""What the tests of the judge share: a judge on a server that fails as told, and its accounts."""

from __future__ import annotations

import asyncio
from typing import Any

from http_faults import FaultServer, chat_reply

from areal_x.reward.judge import LLMJudge

__all__ = ["KEY", "answer_number", "check_accounts", "gather", "make"]

KEY = "sekret-0123456789-abcdef"
"""The key that ``make`` finds in the environment variable ``JUDGE_KEY``; each file sets it in a fixture."""


def answer_number(body: Any) -> Any:
    return chat_reply("Fine.\nScore: 7")


def make(server: FaultServer | str, **options: Any) -> LLMJudge:
    url = server if isinstance(server, str) else f"{server.url}/v1"
    defaults: dict[str, Any] = {
        "parser": "number",
        "timeout_seconds": 8.0,
        "deadline_seconds": 60.0,
        "backoff_seconds": 0.01,
    }
    return LLMJudge(model="stub", base_url=url, api_key_env="JUDGE_KEY", **{**defaults, **options})


async def gather(judge: LLMJudge, num_calls: int, **columns: Any) -> list[Any]:
    calls = [judge(prompt="2+2?", completions=f"answer {number}", **columns) for number in range(num_calls)]
    return await asyncio.gather(*calls, return_exceptions=True)


def check_accounts(judge: LLMJudge) -> dict[str, float]:
    """Every call and every request ended in exactly one way."""
    found = judge.metrics()
    assert found["calls"] == found["answered"] + found["failed"] + found["cancelled"] and found["in_flight"] == 0
    faults = sum(value for name, value in found.items() if name.startswith("fault/"))
    assert found["requests"] == found["replies"] + faults + found.get("requests_cancelled", 0)
    return found
