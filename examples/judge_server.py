"""An OpenAI-compatible server in the place of a judging language model, to try the reward `judge` without one.

What it does: reads the answer and the reference from the question, and answers as a judge would: a JSON object with a
reason and the share of right digits as a score from 0 to 10. It needs no model, so it costs nothing. For a real judge
set `model`, `base_url` and `api_key_env` in `judge_reward.yaml` to those of your server.

Command:  python examples/judge_server.py 8200
          cd examples && areal-x train ./judge_reward.yaml
Hardware: 2 CPU cores, no GPU, no network beside this machine. At most 6 minutes.
Curve:    the mean reward begins near 0.75, since most digits are right after the warm start, and ends above 0.95.
Sample:   82+98= -> 081 (the last digit comes first), reward 1.0
"""

import json
import re
import sys

from aiohttp import web


def judge(question: str) -> dict[str, object]:
    """The verdict on the text between <answer> tags, by that between <reference> tags."""
    answer, reference = (
        re.search(rf"<{tag}>\n?(.*?)\n?</{tag}>", question, re.DOTALL) for tag in ("answer", "reference")
    )
    if answer is None or reference is None:
        return {"reason": "nothing to compare", "score": 0}
    given, wanted = answer.group(1).strip(), reference.group(1).strip()
    right = sum(a == b for a, b in zip(given.ljust(len(wanted)), wanted, strict=False))
    return {"reason": f"{right} digits are right", "score": round(10 * right / max(len(given), len(wanted)), 2)}


async def chat(request: web.Request) -> web.Response:
    """POST /v1/chat/completions"""
    body = await request.json()
    question = body["messages"][-1]["content"]
    text = json.dumps(judge(question))
    message = {"role": "assistant", "content": text}
    reply = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": len(question) // 4, "completion_tokens": len(text) // 4},
    }
    return web.json_response(reply)


if __name__ == "__main__":
    app = web.Application(client_max_size=1 << 26)
    app.add_routes([web.post("/v1/chat/completions", chat)])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None)
