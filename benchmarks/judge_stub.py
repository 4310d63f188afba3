"""An OpenAI-compatible server for `bench_judge.py`: every reply takes 2 s, and a known share of requests fails.

    python benchmarks/judge_stub.py LATENCY_SECONDS

It prints its port. `GET /counts` tells what it received and injected, and sets the counts back; with `?faults=1`, of
each 100 requests from then on one is answered with 429, one is reset, and one is never answered.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

from aiohttp import web

FAULTS = {13: "http_429", 47: "reset", 71: "never"}
REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "stub",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Score: 7"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 250, "completion_tokens": 4, "total_tokens": 254},
    }
).encode()


class Stub:
    """The server's state."""

    def __init__(self, latency_seconds: float) -> None:
        self.latency_seconds = latency_seconds
        self.counts: Counter[str] = Counter()
        self.has_faults = False

    async def chat(self, request: web.Request) -> web.Response:
        """A reply after the latency, or a fault."""
        await request.read()
        number = self.counts["received"]
        self.counts["received"] += 1
        fault = FAULTS.get(number % 100) if self.has_faults else None
        if fault is not None:
            self.counts[fault] += 1
            if fault == "http_429":
                return web.json_response({"error": {"message": "slow down"}}, status=429)
            if fault == "never":
                await asyncio.Event().wait()
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        await asyncio.sleep(self.latency_seconds)
        return web.Response(body=REPLY, content_type="application/json")

    async def tell(self, request: web.Request) -> web.Response:
        """The counts so far, which begin anew."""
        counts, self.counts = self.counts, Counter()
        self.has_faults = request.query.get("faults") == "1"
        return web.json_response(counts)


async def main() -> None:
    """Serve until killed."""
    stub = Stub(float(sys.argv[1]))
    app = web.Application()
    app.router.add_post("/v1/chat/completions", stub.chat)
    app.router.add_get("/counts", stub.tell)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main())
    except ImportError:
        asyncio.run(main())
