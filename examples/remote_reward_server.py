"""A reward server that `remote_rm` can ask, in the shapes of slime and of OpenRLHF.

What it does: gives the share of right digits. Put your model in place of `score`. Several copies on several ports make
a set of servers among which the calls are balanced and failed over.

Command:  python examples/remote_reward_server.py 8100
          python examples/remote_reward_server.py 8101
          cd examples && areal-x train ./remote_reward.yaml
Hardware: 2 CPU cores, no GPU, no network beside this machine. At most 4 minutes.
Curve:    the mean reward begins near 0.75, since most digits are right after the warm start, and ends above 0.95.
Sample:   82+98= -> 081 (the last digit comes first), reward 1.0
"""

import sys

from aiohttp import web


def score(prompt: str, response: str, label: str) -> float:
    """The share of digits that stand in their place."""
    pairs = zip(response.strip().ljust(len(label)), label, strict=False)
    return sum(a == b for a, b in pairs) / max(len(label), len(response.strip()))


async def slime(request: web.Request) -> web.Response:
    """{"prompt", "response", "label"} -> a number"""
    sample = await request.json()
    return web.json_response(score(sample["prompt"], sample["response"], sample["label"]))


async def openrlhf(request: web.Request) -> web.Response:
    """{"query": [...], "prompts": [...], "labels": [...]} -> {"rewards": [...], "scores": [...], "extra_logs": {}}"""
    batch = await request.json()
    responses = [query.removeprefix(prompt) for query, prompt in zip(batch["query"], batch["prompts"], strict=True)]
    rewards = [score(*sample) for sample in zip(batch["prompts"], responses, batch["labels"], strict=True)]
    lengths = [float(len(response)) for response in responses]
    return web.json_response({"rewards": rewards, "scores": rewards, "extra_logs": {"length": lengths}})


if __name__ == "__main__":
    app = web.Application(client_max_size=1 << 26)
    app.add_routes([web.post("/slime", slime), web.post("/openrlhf", openrlhf)])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None)
