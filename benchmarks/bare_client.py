"""A bare client of vLLM: one aiohttp session, plain bodies, whole replies, nothing else.

    python benchmarks/bare_client.py WORK.json

As a program it drives one server on its own, until its standard input ends. For each line there it sends all requests
of the work file and prints the seconds until they are answered; with ``"forever": true`` it never stops sending them,
and prints the time of its clock and how many were answered so far.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiohttp

PATH = "/inference/v1/generate"


class BareClient:
    """Sends what a loop that somebody writes in ten lines would send."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url + PATH
        self._headers = {"Authorization": f"Bearer {key}"}
        self.num_answered = 0

    async def __aenter__(self) -> BareClient:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def generate(self, prompt: list[int], sampling: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Token ids and log-probabilities of one completion."""
        async with self._session.post(self._url, json={"token_ids": prompt, "sampling_params": sampling}) as reply:
            reply.raise_for_status()
            choice = (await reply.json())["choices"][0]
        return choice["token_ids"], [token["logprob"] for token in choice["logprobs"]["content"]]

    async def keep_in_flight(
        self, prompts: Iterable[list[int]], max_new_tokens: int, in_flight: int, *, ignore_eos: bool = True
    ) -> float:
        """Seconds until all prompts are answered, so many in flight."""
        waiting = iter(enumerate(prompts))

        async def lane() -> None:
            for seed, prompt in waiting:
                sampling = {
                    "max_tokens": max_new_tokens, "temperature": 1.0, "logprobs": 0, "ignore_eos": ignore_eos,
                    "detokenize": False, "seed": seed,
                }  # fmt: skip
                token_ids, logprobs = await self.generate(prompt, sampling)
                assert len(token_ids) == len(logprobs) > 0
                self.num_answered += 1

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(lane())
        return time.perf_counter() - started


async def main(work: dict[str, Any]) -> None:
    limits = work["max_new_tokens"], work["in_flight"]
    async with BareClient(work["url"], work["key"]) as client:
        if not work.get("forever"):
            print("ready", flush=True)
            while await asyncio.to_thread(sys.stdin.readline):
                print(await client.keep_in_flight(work["prompts"], *limits), flush=True)
            return
        prompts = itertools.cycle(work["prompts"])
        sending = asyncio.create_task(client.keep_in_flight(prompts, *limits, ignore_eos=False))
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline) and not sending.done():
            print(time.perf_counter(), client.num_answered, flush=True)
        sending.cancel()
        await asyncio.wait([sending])


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
