"""What SGLang 0.5.23 is asked and how its replies are read, without a server."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest

from areal_x.api.errors import RequestError
from areal_x.api.records import ModelRequest, SamplingParams
from areal_x.engine.servers.continuation import Completion
from areal_x.engine.servers.dialect import Finish, Piece, ServerError
from areal_x.engine.servers.sglang_dialect import SglangDialect
from areal_x.engine.servers.sglang_reply import SglangReply


def body(**sampling: Any) -> dict[str, Any]:
    request = ModelRequest(np.array([5, 6]), SamplingParams(**sampling), request_id="request-1")
    made = SglangDialect().request_body(request, "request-1-2", [5, 6, 7], 9, sampling.get("seed"))
    assert json.loads(json.dumps(made)) == made
    return made


def message(
    tokens: list[tuple[int, float]],
    total: int,
    *,
    ids: list[int] | None = None,
    reason: dict[str, Any] | None = None,
    spans: list[tuple[str, int, int]] | None = None,
    **info: Any,
) -> bytes:
    """One message of a stream, as the server sends it."""
    meta = {
        "id": "request-1-2",
        "finish_reason": reason,
        "completion_tokens": total,
        "weight_version": "3",
        "output_token_logprobs": [[logprob, token, None] for token, logprob in tokens],
    }
    if spans is not None:
        meta["weight_versions"] = [{"version": version, "start": start, "end": end} for version, start, end in spans]
    return json.dumps(
        {"text": "", "output_ids": [token for token, _ in tokens] if ids is None else ids, "meta_info": meta | info}
    ).encode()


LENGTH = {"type": "length", "length": 3}
ABORTED = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
A, B, C, D = (11, -1.0), (12, -2.0), (13, -0.5), (14, -0.25)


def test_a_request_is_of_exact_ids_and_says_how_to_sample() -> None:
    made = body(temperature=0.5, max_new_tokens=100, stop_token_ids=(3, 4))
    assert made["input_ids"] == [5, 6, 7] and made["stream"] is True and made["return_logprob"] is True
    assert made["sampling_params"] == {
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": -1,
        "ignore_eos": False,
        "stop_token_ids": [3, 4],
    }


def test_an_adapter_answers_when_there_is_one() -> None:
    request = ModelRequest(np.array([5]))
    assert "lora_path" not in SglangDialect().request_body(request, "a", [5], 1, None)
    assert SglangDialect("policy").request_body(request, "a", [5], 1, None)["lora_path"] == "policy"


@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_seeds_fit_what_the_server_takes(seed: int) -> None:
    assert 0 <= body(seed=seed)["sampling_params"]["sampling_seed"] <= 2**63 - 1


def test_no_id_of_one_request_is_the_beginning_of_anothers() -> None:
    """The server ends every request whose id begins with what it is told."""
    request = ModelRequest(np.array([5]))
    rids = [SglangDialect().request_body(request, name, [5], 1, None)["rid"] for name in ("r-1", "r-10", "r-1/2")]
    assert not any(a != b and b.startswith(a) for a in rids for b in rids)


@pytest.mark.parametrize(
    ("sampling", "has_logprobs"),
    [
        ({"top_p": 0.9}, False),
        ({"top_k": 5}, False),
        ({"temperature": 0.0, "top_p": 0.9, "top_k": 5}, True),
        ({"temperature": 0.3}, True),
    ],
)
def test_logprobs_that_would_not_be_of_the_sampled_distribution_are_not_asked_for(
    sampling: dict[str, Any], has_logprobs: bool
) -> None:
    assert body(**sampling)["return_logprob"] is has_logprobs


@pytest.mark.parametrize("text", ["\n\n", "</answer>", "a.b|c*", "終わり", "\\Z", "🙂"])
def test_a_stop_string_becomes_an_expression_that_matches_it_alone(text: str) -> None:
    (expression,) = body(stop=(text,))["sampling_params"]["stop_regex"]
    assert re.search(expression, f"before{text}after") and not re.search(expression, "before" + text[:-1] + "after")
    for other in ("", "x" * 50, "before\n", "a.b"):
        assert not re.search(expression, other)


@pytest.mark.parametrize("text", ["ab", "終わり", "🙂🙂"])
def test_an_expression_is_as_long_as_the_tokens_that_may_make_its_string(text: str) -> None:
    (expression,) = body(stop=(text,))["sampling_params"]["stop_regex"]
    without, _, spare = expression.partition(r"|\Zx{")
    assert without == re.escape(text) and len(text) + int(spare[:-1]) > len(text.encode())


def test_a_stop_string_that_the_server_cannot_look_for_is_an_error() -> None:
    assert body(stop=("a" * 200,))["sampling_params"]["stop_regex"]
    with pytest.raises(RequestError, match=r"request-1: a stop string of 300 bytes"):
        body(stop=("ok", "a" * 300))


def test_new_tokens_alone_are_read() -> None:
    reply = SglangReply()
    assert reply.read(message([A], 1)) == Piece([11], [-1.0])
    assert reply.read(message([B, C], 3)) == Piece([12, 13], [-2.0, -0.5])
    last = reply.read(message([D], 4, reason=LENGTH, spans=[("3", 0, 2), ("4", 2, 4)]))
    assert last == Piece([14], [-0.25], Finish("length", [(0, 2, 3), (2, 4, 4)]))


def test_all_tokens_so_far_are_read_too() -> None:
    """As a server sends them that was started without --incremental-streaming-output."""
    reply = SglangReply()
    assert reply.read(message([A], 1)) == Piece([11], [-1.0])
    assert reply.read(message([A, B], 2)) == Piece([12], [-2.0])
    last = reply.read(message([A, B, C], 3, reason={"type": "stop", "matched": 13}, spans=[("3", 0, 3)]))
    assert last == Piece([13], [-0.5], Finish("stop", [(0, 3, 3)]))


def test_a_message_without_tokens_is_nothing() -> None:
    assert SglangReply().read(message([], 0)) is None


def test_an_aborted_request_keeps_each_token_once() -> None:
    """One that waits when it is aborted repeats its last id and all its log-probabilities."""
    reply = SglangReply()
    reply.read(message([A, B], 2))
    last = reply.read(message([A, B], 2, ids=[12], reason=ABORTED, spans=[("3", 0, 2)]))
    assert last == Piece([], [], Finish("abort", [(0, 2, 3)]))


def test_an_abort_that_was_joined_with_tokens_before_it_keeps_each_token_once() -> None:
    reply = SglangReply()
    reply.read(message([A], 1))
    last = reply.read(message([B, C, A, B, C], 3, ids=[12, 13, 13], reason=ABORTED, spans=[("3", 0, 3)]))
    assert last == Piece([12, 13], [-2.0, -0.5], Finish("abort", [(0, 3, 3)]))


def test_an_abort_before_the_first_token_has_none() -> None:
    last = SglangReply().read(message([], 0, reason=ABORTED, spans=[("3", 0, 0)]))
    assert last == Piece([], [], Finish("abort", []))


def test_versions_of_tokens_that_were_never_sent_are_left_out() -> None:
    reply = SglangReply()
    reply.read(message([A], 1))
    last = reply.read(message([A], 1, reason=ABORTED, spans=[("3", 0, 1), ("4", 1, 5)]))
    assert last is not None and last.finish == Finish("abort", [(0, 1, 3)])


def test_truncated_sampling_has_no_logprobs() -> None:
    reply = SglangReply()
    first = reply.read(message([A, B], 2, output_token_logprobs=None))
    assert first is not None and first.token_ids == [11, 12] and all(map(math.isnan, first.logprobs))
    last = reply.read(message([C], 3, output_token_logprobs=None, reason=LENGTH, spans=[("3", 0, 3)]))
    assert last is not None and last.token_ids == [13] and last.finish == Finish("length", [(0, 3, 3)])


def test_an_aborted_request_without_logprobs_keeps_what_it_surely_has() -> None:
    reply = SglangReply()
    reply.read(message([A], 1, output_token_logprobs=None))
    last = reply.read(
        message([A], 3, ids=[12, 13, 13], output_token_logprobs=None, reason=ABORTED, spans=[("3", 0, 3)])
    )
    assert last == Piece([], [], Finish("abort", [(0, 1, 3)]))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"{", "not what version 0.5.23 sends"),
        (b"[]", "not what version 0.5.23 sends"),
        (b'{"output_ids": [1]}', "not what version 0.5.23 sends"),
        (message([A], 1, completion_tokens="many"), "not what version 0.5.23 sends"),
        (message([A], 5), "1 tokens to go from 0 to 5"),
        (message([(11, math.nan)], 1), "log-probability that is none"),
        (message([(11, -math.inf)], 1), "log-probability that is none"),
        (message([(11, 0.5)], 1), "log-probability that is none"),
        (message([A], 1, reason=LENGTH, weight_versions=[{"version": "3"}]), "version spans"),
        (message([A], 1, reason=LENGTH, spans=[("default", 0, 1)]), "before it served"),
        (message([A], 1, reason={"type": "stop", "matched": "NaN happened"}, spans=[("3", 0, 1)]), "not numbers"),
        (message([A], 1, reason={"type": "thunder"}, spans=[("3", 0, 1)]), "'thunder'"),
        (message([A], 1, reason={"type": ["stop"]}, spans=[("3", 0, 1)]), "not what version 0.5.23 sends"),
        (message([A], 1, reason={"type": "abort", "status_code": "many"}), "not what version 0.5.23 sends"),
        (message([A], 1, completion_tokens=math.inf), "not what version 0.5.23 sends"),
        (message([A], 1, output_token_logprobs=[[]]), "not what version 0.5.23 sends"),
        (message([A], 1, reason=LENGTH, spans=[("--5", 0, 1)]), "before it served"),
        (message([A], 1, reason=LENGTH, spans=[("\u00b2", 0, 1)]), "before it served"),
        (b"[" * 100_000, "not what version 0.5.23 sends"),
    ],
)
def test_what_cannot_be_is_an_error(bad: bytes, words: str) -> None:
    with pytest.raises(ServerError, match=re.escape(words)):
        SglangReply().read(bad)


def test_a_server_may_not_take_tokens_back() -> None:
    reply = SglangReply()
    reply.read(message([A, B, C], 3))
    with pytest.raises(ServerError, match="from 3 to 2"):
        reply.read(message([B], 2))


def test_a_refusal_has_its_status() -> None:
    refused = {"error": {"message": "Duplicate request ID detected", "type": "invalid_request_error", "code": 400}}
    with pytest.raises(ServerError, match="Duplicate request ID") as caught:
        SglangReply().read(json.dumps(refused).encode())
    assert caught.value.status == 400
    failed = {"type": "abort", "message": "too long", "status_code": 400, "err_type": "BadRequestError"}
    with pytest.raises(ServerError, match="too long") as caught:
        SglangReply().read(message([], 0, reason=failed, spans=[("3", 0, 0)]))
    assert caught.value.status == 400


def test_a_completion_ends_at_its_stop_id_though_the_server_went_on() -> None:
    """SGLang heeds no stop ids when it ignores end of sequence."""
    sampling = SamplingParams(max_new_tokens=4, stop_token_ids=(12,), ignore_eos=True)
    completion = Completion(ModelRequest(np.array([5]), sampling), 4, 0, eos_ids=(11,))
    part = completion.begin(3, 0)
    reply = SglangReply()
    for text in (message([A, B, C], 3), message([D], 4, reason=LENGTH, spans=[("3", 0, 1), ("4", 1, 4)])):
        piece = reply.read(text)
        assert piece is not None
        part.add(piece, 0)
    completion.settle(part, 4)
    response = completion.response(100, allow_nan=False, started_at=0.0, finished_at=1.0)
    assert response.output_ids.tolist() == [11, 12] and response.logprobs.tolist() == [-1.0, -2.0]
    assert response.stop_reason == "stop" and response.version_spans == [(0, 1, 3), (1, 2, 4)]
