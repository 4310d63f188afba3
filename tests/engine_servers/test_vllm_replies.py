"""What vLLM 0.32 is asked and how its replies are read, without a server; its refusals, from a fake one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from areal_x.api.records import ModelRequest, SamplingParams
from areal_x.engine.servers.client import ServerClient
from areal_x.engine.servers.dialect import Finish, Piece, ServerError
from areal_x.engine.servers.vllm_dialect import VllmDialect, VllmReply


def body(dialect: VllmDialect | None = None, **sampling: Any) -> dict[str, Any]:
    request = ModelRequest(np.array([5, 6]), SamplingParams(**sampling), request_id="request-1")
    made = (dialect or VllmDialect()).request_body(request, "request-1-2", [5, 6, 7], 9, sampling.get("seed"))
    assert json.loads(json.dumps(made)) == made
    return made


def message(
    tokens: list[tuple[int, float]], reason: str | None = None, spans: list[tuple[str, int, int]] | None = None
) -> bytes:
    """One message of a stream, as the server sends it."""
    choice = {
        "index": 0,
        "token_ids": [token for token, _ in tokens],
        "logprobs": {"content": [{"token_id": t, "logprob": p, "rank": 1, "top_logprobs": []} for t, p in tokens]},
        "finish_reason": reason,
        "stop_reason": None,
        "weight_versions": spans and [{"version": v, "start": a, "end": b} for v, a, b in spans],
    }
    return json.dumps({"request_id": "generate-tokens-request-1-2", "choices": [choice]}).encode()


def test_a_request_asks_for_tokens_and_their_logprobs() -> None:
    made = body(temperature=0.7, top_p=0.9, top_k=40, seed=3)
    assert made["token_ids"] == [5, 6, 7] and made["stream"] is True and "model" not in made
    assert made["sampling_params"] == {
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "logprobs": 0,
        "ignore_eos": False,
        "detokenize": False,
        "seed": 3,
    }
    assert body(VllmDialect("policy"))["model"] == "policy"


def test_completions_shorter_than_a_message_are_not_streamed() -> None:
    assert body(VllmDialect(max_plain_tokens=9))["stream"] is False
    assert body(VllmDialect(max_plain_tokens=8))["stream"] is True


async def test_a_plain_reply_is_one_message() -> None:
    whole = message([(8, -0.5), (7, 0.0)], "length", [("4", 0, 2)])
    async with fake({"/inference/v1/generate": (200, json.loads(whole))}) as server:
        messages = [VllmReply().read(text) async for text in server.stream("/inference/v1/generate", {})]
    assert messages == [Piece([8, 7], [-0.5, 0.0], Finish("length", [(0, 2, 4)]))]


def test_text_is_decoded_only_for_stop_strings() -> None:
    made = body(stop=("\n\n",), stop_token_ids=(7, 8), ignore_eos=True)["sampling_params"]
    assert made["detokenize"] and made["include_stop_str_in_output"] and made["stop"] == ["\n\n"]
    assert made["stop_token_ids"] == [7, 8] and made["ignore_eos"] and "seed" not in made


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63, 2**64 - 1, 2**70])
def test_every_seed_is_one_that_the_server_takes(seed: int) -> None:
    """It would read -1 as no seed, and has 64 bits for all others."""
    assert 0 <= body(seed=seed)["sampling_params"]["seed"] < 2**63


def test_a_reply_is_read_piece_by_piece() -> None:
    reply = VllmReply()
    assert reply.read(message([(9, -1.5)])) == Piece([9], [-1.5])
    assert reply.read(message([(8, -0.5), (7, 0.0)])) == Piece([8, 7], [-0.5, 0.0])
    assert reply.read(message([(1, -2.0)], "stop", [("3", 0, 2), ("4", 2, 4)])) == Piece(
        [1], [-2.0], Finish("stop", [(0, 2, 3), (2, 4, 4)])
    )
    assert reply.read(b'{"request_id":"x","choices":[],"usage":{"prompt_tokens":3}}') is None


@pytest.mark.parametrize("reason", ["stop", "length", "abort"])
def test_reasons_to_end(reason: str) -> None:
    piece = VllmReply().read(message([(1, -2.0)], reason, [("-1", 0, 1)]))
    assert piece is not None and piece.finish == Finish(reason, [(0, 1, -1)])  # type: ignore[arg-type]


def test_an_abort_before_the_first_token_has_no_versions() -> None:
    piece = VllmReply().read(message([], "abort"))
    assert piece == Piece([], [], Finish("abort", []))
    piece = VllmReply().read(message([], "abort", []))
    assert piece is not None and piece.finish == Finish("abort", [])


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (message([(1, -2.0)], "error", [("3", 0, 1)]), "ended the request with 'error'"),
        (message([(1, -2.0)], "repetition", [("3", 0, 1)]), "ended the request with 'repetition'"),
        (message([(1, -2.0)], "stop", [("default", 0, 1)]), "given a version before"),
        (message([(1, -2.0)], "stop", [("3", 0, [])]), "version spans"),  # type: ignore[list-item]
        (message([(1, -9999.0)]), "weights finite"),
        (message([(1, float("nan"))]), "weights finite"),
        (message([(1, 0.5)]), "weights finite"),
        (message([(1, -2.0)]).replace(b'"token_ids": [1]', b'"token_ids": [1, 2]'), "2 tokens with 1 log-prob"),
        (message([(1, -2.0)]).replace(b'"logprobs"', b'"other"'), "not what version 0.32 sends"),
        (b"[]", "not what version 0.32 sends"),
        (b"{", "not what version 0.32 sends"),
        (b'{"choices": [{"token_ids": "x"}]}', "not what version 0.32 sends"),
        (message([(1, -2.0)]).replace(b'"token_ids": [1]', b'"token_ids": [1e999]'), "not what version 0.32 sends"),
        (b"[" * 100_000, "not what version 0.32 sends"),
        (message([(1, -2.0)], ["stop"], [("3", 0, 1)]), "ended the request with"),  # type: ignore[arg-type]
        (message([(1, -2.0)], "stop", [("--5", 0, 1)]), "version spans"),
        (message([(1, -2.0)], "stop", [("\u00b2", 0, 1)]), "version spans"),
        (message([(1, -2.0)], "stop", [("9" * 5000, 0, 1)]), "version spans"),
    ],
)
def test_what_cannot_be_is_an_error(sent: bytes, words: str) -> None:
    with pytest.raises(ServerError, match=words) as caught:
        VllmReply().read(sent)
    assert caught.value.status == 0


@pytest.mark.parametrize("code", [400, 500])
def test_an_error_in_the_stream_says_whose_it_is(code: int) -> None:
    sent = {"error": {"message": "Token id 9 is out of vocabulary", "type": "x", "param": None, "code": code}}
    with pytest.raises(ServerError, match="out of vocabulary") as caught:
        VllmReply().read(json.dumps(sent).encode())
    assert caught.value.status == code


Answers = dict[str, tuple[int, Any]]


@asynccontextmanager
async def fake(answers: Answers, asked: list[tuple[str, str, Any]] | None = None) -> AsyncIterator[ServerClient]:
    """A fake server: (status, JSON) for each path; all others are 404."""

    async def answer(request: web.Request) -> web.Response:
        if asked is not None:
            asked.append((request.path, request.query_string, await request.json() if request.can_read_body else None))
        status, found = answers.get(request.path, (404, {"detail": "Not Found"}))
        return web.json_response(found, status=status)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    client = ServerClient(f"http://127.0.0.1:{runner.addresses[0][1]}", "")
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


READY: Answers = {
    "/v1/models": (200, {"data": [{"id": "m", "max_model_len": 64, "parent": None}, {"id": "a", "parent": "m"}]}),
    "/is_paused": (200, {"is_paused": False}),
    "/inference/v1/generate": (400, {"error": {"message": "token_ids: Field required"}}),
}


async def test_facts_of_a_server_that_has_all_routes() -> None:
    async with fake(READY) as server:
        facts = await VllmDialect().facts(server)
    assert (facts.model_name, facts.max_length) == ("m", 64)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/is_paused", 404, "VLLM_SERVER_DEV_MODE=1"),
        ("/inference/v1/generate", 403, "--enable-scale-out"),
        ("/inference/v1/generate", 404, "--enable-scale-out"),
        ("/inference/v1/generate", 200, "took a request without tokens"),
        ("/v1/models", 401, "401"),
    ],
)
async def test_a_route_that_is_missing_is_named_with_its_fix(path: str, status: int, words: str) -> None:
    async with fake({**READY, path: (status, {"error": {"message": "no"}})}) as server:
        with pytest.raises(ServerError, match=words):
            await VllmDialect().facts(server)


async def test_an_update_that_was_left_open_is_gone_on_with() -> None:
    asked: list[tuple[str, str, Any]] = []
    already = (500, {"error": {"message": "Call to collective_rpc method failed: a weight update is already active."}})
    answers: Answers = {
        "/is_paused": (200, {"is_paused": True}),
        "/start_weight_update": already,
        "/update_weights": (200, {}),
        "/finish_weight_update": (200, {}),
    }
    order = {"way": "shared_memory", "version": 5}
    async with fake(answers, asked) as server:
        await VllmDialect().load(server, order, 5, "recompute")
        assert asked[-2:] == [
            ("/update_weights", "", {"update_info": {"order": order}}),
            ("/finish_weight_update", "", {"weight_version": "5"}),
        ]
        answers["/start_weight_update"] = (500, {"error": {"message": "Weight transfer not configured."}})
        with pytest.raises(ServerError, match="not configured"):
            await VllmDialect().load(server, order, 5, "recompute")


@pytest.mark.parametrize(
    ("ties", "device", "works"),
    [
        (False, "cpu", True),
        (True, "cpu", False),
        (None, "cpu", False),
        (True, "cuda", True),
        (True, None, False),
    ],
)
async def test_tied_models_are_not_reloaded_by_a_plain_server_on_a_cpu(
    tmp_path: Path, ties: bool | None, device: str | None, works: bool
) -> None:
    """A server without pip in its environment cannot say what it runs on."""
    if ties is not None:
        (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": ties}))
    asked: list[tuple[str, str, Any]] = []
    answers: Answers = {
        "/is_paused": (200, {"is_paused": True}),
        "/collective_rpc": (500, {"error": {"message": "Method 'areal_x_ways' is not implemented."}}),
        "/server_info": (200, {"vllm_config": {"device_config": {"device": device}}})
        if device
        else (500, {"error": {"message": "Could not collect pip list output"}}),
        "/update_weight_version": (200, {}),
    }

    async with fake(answers, asked) as server:
        post = server.post

        async def post_and_learn(path: str, *args: Any, **kwargs: Any) -> Any:
            try:
                return await post(path, *args, **kwargs)
            finally:
                answers["/collective_rpc"] = (200, {"results": [None]})

        server.post = post_and_learn  # type: ignore[method-assign]
        load = VllmDialect().load(server, {"way": "disk", "path": str(tmp_path), "version": 4}, 4, "recompute")
        if works:
            await load
            assert ("/update_weight_version", "", {"new_version": "4"}) in asked
            reload = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path)}}
            assert ("/collective_rpc", "", reload) in asked
        else:
            with pytest.raises(ServerError, match="tied embeddings" if device else "tied embeddings .* install pip"):
                await load


@pytest.mark.parametrize(
    ("kv_on_update", "query"),
    [
        ("recompute", "mode=keep&clear_cache=true"),
        ("keep", "mode=keep&clear_cache=false"),
        ("abort", "mode=abort&clear_cache=true"),
    ],
)
async def test_what_a_pause_does_to_requests(kv_on_update: Any, query: str) -> None:
    asked: list[tuple[str, str, Any]] = []
    async with fake({"/pause": (200, {"status": "paused"})}, asked) as server:
        await VllmDialect().pause(server, kv_on_update)
    assert asked == [("/pause", query, None)]


async def test_a_server_that_never_slept_is_asked_once_whether_it_sleeps() -> None:
    asked: list[tuple[str, str, Any]] = []
    answers: Answers = {path: (200, {}) for path in ("/wake_up", "/resume", "/sleep")}
    async with fake({**answers, "/is_sleeping": (200, {"is_sleeping": True})}, asked) as server:
        dialect = VllmDialect()
        await dialect.resume(server)
        asked.clear()
        await dialect.resume(server)
        assert [path for path, _, _ in asked] == ["/resume"]
        await dialect.sleep(server)
        await dialect.wake_up(server)
        asked.clear()
        await dialect.resume(server)
        assert [path for path, _, _ in asked] == ["/is_sleeping", "/wake_up", "/resume"]


async def test_a_server_that_sleeps_gets_its_cache_before_it_goes_on() -> None:
    asked: list[tuple[str, str, Any]] = []
    answers: Answers = {path: (200, {}) for path in ("/wake_up", "/resume", "/sleep")}
    async with fake({**answers, "/is_sleeping": (200, {"is_sleeping": True})}, asked) as server:
        await VllmDialect().resume(server)
        assert [(path, query) for path, query, _ in asked[1:]] == [("/wake_up", "tags=kv_cache"), ("/resume", "")]
        asked.clear()
        await VllmDialect().wake_up(server)
        assert [(path, query) for path, query, _ in asked] == [("/wake_up", "tags=weights")]


@pytest.mark.parametrize("nonsense", ["<html>", {}, [], None])
async def test_answers_that_vllm_never_gives_are_refusals(nonsense: Any) -> None:
    order = {"way": "disk", "path": "/nowhere"}
    async with fake({"/is_paused": (200, nonsense), "/is_sleeping": (200, nonsense)}) as server:
        for call in (VllmDialect().load(server, order, 1, "recompute"), VllmDialect().resume(server)):
            with pytest.raises(ServerError, match=r"does not answer as vLLM 0\.32 does.*rollout\.base_urls"):
                await call
