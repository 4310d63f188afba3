"""Evaluation against an endpoint: messages in, text out, and what becomes of everything that goes wrong."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from fake_endpoint import KEY, FakeEndpoint, completion, refusal, running
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.errors import (
    ConfigError,
    DataError,
    EngineDiedError,
    EngineError,
    PromptTooLongError,
    RequestError,
)
from areal_x.api.records import ModelRequest, ModelResponse, SamplingParams
from areal_x.engine.servers.openai_engine import OpenAIEngine
from areal_x.engine.servers.text_tokenizer import TextTokenizer, messages_from_ids, text_from_ids
from areal_x.workflow.multi_turn import MultiTurnWorkflow
from areal_x.workflow.rlvr import RLVRWorkflow

TOKENIZER = TextTokenizer()
WRONG_KEY = "no-key-of-this-endpoint"
USER = [{"role": "user", "content": "1 + 1?"}]
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1\ufdd2"))


def chat_ids(messages: list[dict[str, str]]) -> np.ndarray[Any, Any]:
    return np.array(TOKENIZER.apply_chat_template(messages, tokenize=True, add_generation_prompt=True), np.int32)


async def ask(endpoint: FakeEndpoint, sampling: SamplingParams | None = None, ids: Any = None, **options: Any) -> Any:
    """One request to a running fake endpoint."""
    async with running(endpoint):
        options = {"model_name": "m", "api_key": KEY, "pause_seconds": 0.001} | options
        engine = OpenAIEngine(endpoint.base_url, **options)
        try:
            await engine.start()
            request = ModelRequest(chat_ids(USER) if ids is None else ids, sampling or SamplingParams())
            return await engine.agenerate(request)
        finally:
            await engine.close()


@given(st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), max_size=5))
def test_messages_come_back_from_ids(messages: list[dict[str, str]]) -> None:
    assert messages_from_ids(chat_ids(messages).tolist()) == messages


@given(texts)
def test_text_comes_back_from_ids(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(np.array(ids, np.int32)) == text
    assert text_from_ids(ids) == text


def test_a_part_of_a_character_is_no_error() -> None:
    assert TOKENIZER.decode(list("好".encode()[:2])) == "\ufffd"
    framed = TOKENIZER.apply_chat_template(USER, add_generation_prompt=True)
    ids = TOKENIZER(framed)["input_ids"]
    assert TOKENIZER.decode(ids) == framed
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "user1 + 1?assistant"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"role": "user", "content": [{"type": "image_url"}]},
        {"role": "user", "content": "a\ufdd2b"},
        {"role": "tool", "content": "a", "tool_call_id": "3"},
    ],
)
def test_a_message_that_cannot_be_framed_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="message"):
        TOKENIZER.apply_chat_template([message])


@pytest.mark.parametrize("text", ["a\ufdd0user\ufdd1b", "\ufdd0user\ufdd1hi\ufdd2", "\ufdd1", "\ufdd0\ufdd0"])
def test_ids_that_are_not_framed_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="endpoint"):
        messages_from_ids(TOKENIZER(text)["input_ids"])


async def test_a_reply_is_bytes_without_log_probabilities() -> None:
    endpoint = FakeEndpoint(lambda body: completion("zwölf", "length"))
    sampling = SamplingParams(max_new_tokens=7, temperature=0.5, top_p=0.9, stop=("\n",), seed=2**63 + 5)
    response: ModelResponse = await ask(endpoint, sampling, version=4)
    assert TOKENIZER.decode(response.output_ids) == "zwölf" and response.stop_reason == "length"
    assert np.isnan(response.logprobs).all() and response.version_spans == [(0, 6, 4)]
    assert endpoint.paths == ["/v1/chat/completions"]
    body = dict(endpoint.bodies[0])
    assert 0 <= body.pop("seed") < 2**31
    expected = {"model": "m", "messages": USER, "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop": ["\n"]}
    assert body == expected


async def test_plain_text_is_completed_as_text() -> None:
    endpoint = FakeEndpoint(lambda body: completion(" 2", chat=False))
    response = await ask(endpoint, ids=np.array(TOKENIZER("1 + 1 =")["input_ids"], np.int32))
    assert TOKENIZER.decode(response.output_ids) == " 2" and response.stop_reason == "stop"
    assert endpoint.paths == ["/v1/completions"]
    assert endpoint.bodies == [{"model": "m", "prompt": "1 + 1 =", "max_tokens": 256, "temperature": 1.0}]


@pytest.mark.parametrize(
    ("text", "reason"), [(None, "stop"), ("", "stop"), ("I", "content_filter"), (None, "tool_calls")]
)
async def test_a_reply_may_be_empty_or_withheld(text: str | None, reason: str) -> None:
    response = await ask(FakeEndpoint(lambda body: completion(text, reason)))
    assert len(response.output_ids) == len(response.logprobs) == len(text or "")
    assert response.stop_reason == ("stop" if reason == "stop" else "abort")


async def test_workflows_run_unchanged() -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        return completion("wrong" if len(body["messages"]) == 2 else "right")

    async def is_right(completions: str, **_: Any) -> float:
        return float(completions == "right")

    endpoint = FakeEndpoint(answer)
    async with running(endpoint):
        engine = OpenAIEngine(endpoint.base_url, "m", api_key=KEY)
        await engine.start()
        workflow = MultiTurnWorkflow(is_right, TOKENIZER, system_prompt="Think.", max_turns=3, feedback="again")
        trajectory = await workflow.arun_episode(engine, {"prompt": "How many?"})
        single = await RLVRWorkflow(is_right, TOKENIZER).arun_episode(engine, {"prompt": "How many?"})
        await engine.close()
    assert endpoint.bodies[1]["messages"] == [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "wrong"},
        {"role": "user", "content": "again"},
    ]
    assert trajectory.num_turns == 2 and trajectory.outcome is not None and trajectory.outcome.value == 0.9
    assert not isinstance(single, list) and single is not None and single.completion == "right"


@pytest.mark.parametrize("status", [429, 500, 503, 408])
async def test_what_may_pass_is_tried_again(status: int) -> None:
    endpoint = FakeEndpoint(lambda body: refusal(status, "busy") if len(endpoint.bodies) < 3 else completion("ok"))
    response = await ask(endpoint)
    assert TOKENIZER.decode(response.output_ids) == "ok" and len(endpoint.bodies) == 3


async def test_attempts_are_limited() -> None:
    endpoint = FakeEndpoint(lambda body: refusal(503, "overloaded"))
    with pytest.raises(EngineDiedError, match=r"503: overloaded; 3 attempts failed"):
        await ask(endpoint, max_attempts=3)
    assert len(endpoint.bodies) == 3


async def test_a_request_in_time_or_not_at_all() -> None:
    async def sleeping(request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.json_response({})

    endpoint = FakeEndpoint(lambda body: completion("never"))
    endpoint.complete = sleeping  # type: ignore[method-assign]
    with pytest.raises(EngineDiedError, match=r"did not answer within 0\.05 s; 2 attempts failed"):
        await ask(endpoint, timeout_seconds=0.05, max_attempts=2)


@pytest.mark.parametrize(
    ("status", "message", "error", "expected"),
    [
        (404, "The model `m` does not exist", EngineDiedError, "check rollout.server.model_name"),
        (403, "not allowed", EngineDiedError, "check what the key"),
        (429, "insufficient_quota: pay", EngineDiedError, "used up"),
        (400, "This model's maximum context length is 8 tokens", PromptTooLongError, "context length"),
        (400, "stop: too many", RequestError, "400: stop: too many"),
        (301, "moved", RequestError, "301"),
    ],
)
async def test_a_refusal_is_said_at_once(status: int, message: str, error: type[Exception], expected: str) -> None:
    endpoint = FakeEndpoint(lambda body: refusal(status, message))
    with pytest.raises(error, match=expected) as caught:
        await ask(endpoint)
    assert len(endpoint.bodies) == 1 and type(caught.value) is error


async def test_a_wrong_key_is_an_error_that_does_not_show_it() -> None:
    with pytest.raises(EngineDiedError, match=r"401: .*\(the key\); check the key in the variable") as caught:
        await ask(FakeEndpoint(lambda body: completion("x")), api_key=WRONG_KEY)
    assert WRONG_KEY not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(EngineDiedError, match="401"):
        await ask(FakeEndpoint(lambda body: completion("x")), api_key=None)


async def test_nobody_is_there() -> None:
    engine = OpenAIEngine("http://127.0.0.1:1/v1", "m")
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:1.*check that the endpoint runs, and rollout\.base_urls"):
        await engine.start()
    await engine.close()


@pytest.mark.parametrize(
    ("models", "expected"),
    [([], "lists no models; name one"), (["a", "b"], r"lists 2 models \(a, b\); name one"), (None, "lists no models")],
)
async def test_the_model_must_be_clear(models: list[str] | None, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"rollout\.server\.model_name is not set.*{expected}"):
        await ask(FakeEndpoint(lambda body: completion("x"), models), model_name=None)


async def test_the_only_model_is_taken() -> None:
    endpoint = FakeEndpoint(lambda body: completion("x"), ["only"])
    await ask(endpoint, model_name=None)
    assert endpoint.bodies[0]["model"] == "only"


async def test_the_newer_name_of_the_limit_is_found() -> None:
    def answer(body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            return refusal(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return completion("ok")

    endpoint = FakeEndpoint(answer)
    async with running(endpoint):
        engine = OpenAIEngine(endpoint.base_url, "m", api_key=KEY)
        for _ in range(2):
            await engine.agenerate(ModelRequest(chat_ids(USER), SamplingParams(max_new_tokens=9)))
        await engine.close()
    assert [body.get("max_completion_tokens") for body in endpoint.bodies] == [None, 9, 9]


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": ["x"]}, web.Response(text="<html>")])
async def test_a_reply_of_another_kind_is_an_error(reply: Any) -> None:
    with pytest.raises(RequestError, match="holds no choices"):
        await ask(FakeEndpoint(lambda body: reply))


@pytest.mark.parametrize("sampling", [SamplingParams(top_k=3), SamplingParams(stop_token_ids=(1,))])
async def test_what_endpoints_lack_is_refused(sampling: SamplingParams) -> None:
    endpoint = FakeEndpoint(lambda body: completion("x"))
    with pytest.raises(RequestError, match="has no top_k, stop_token_ids"):
        await ask(endpoint, sampling)
    assert not endpoint.bodies


async def test_so_many_at_once_and_no_more() -> None:
    most = running_now = 0

    async def counted(request: web.Request) -> web.Response:
        nonlocal most, running_now
        running_now += 1
        most = max(most, running_now)
        await asyncio.sleep(0.02)
        running_now -= 1
        return web.json_response(completion("x"))

    endpoint = FakeEndpoint(lambda body: completion("x"))
    endpoint.complete = counted  # type: ignore[method-assign]
    async with running(endpoint):
        engine = OpenAIEngine(endpoint.base_url, "m", api_key=KEY, max_concurrent=3)
        await engine.pause()
        requests = [asyncio.create_task(engine.agenerate(ModelRequest(chat_ids(USER)))) for _ in range(12)]
        await asyncio.sleep(0.05)
        assert most == 0 and (await engine.health()).num_waiting == 12
        await engine.resume()
        await asyncio.gather(*requests)
        health = await engine.health()
        await engine.close()
    assert most == 3 and health.num_running == health.num_waiting == 0 and health.num_generated_tokens == 12
    assert health.busy_seconds > 0.05
