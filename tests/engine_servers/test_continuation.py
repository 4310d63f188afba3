"""A completion that visits several servers equals what one faultless server says, whatever breaks and wherever."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.records import ModelRequest, SamplingParams, VersionSpan
from areal_x.engine.servers.continuation import Completion, Part, checked_spans, find_seam_stop, part_seed
from areal_x.engine.servers.dialect import Finish, Piece, ServerError

VOCAB = 97
EOS = 96
PROMPT = [5, 6, 7]


def oracle(context: list[int], version: int) -> tuple[int, float]:
    """The next token and its log-probability: of everything before it and of the version."""
    state = hash((tuple(context), version))
    return state % VOCAB, -float(state % 1000) / 100 - version


@dataclass
class Server:
    """Samples one request like a server would: buffers tokens, pauses, takes new weights, dies."""

    prompt: list[int]
    version: int
    part: Part
    epoch: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    sent: int = 0

    def sample(self) -> None:
        token, logprob = oracle(self.prompt + self.tokens, self.version)
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.versions.append(self.version)

    def send(self, reason: Literal["stop", "length", "abort"] | None = None) -> None:
        start, self.sent = self.sent, len(self.tokens)
        finish = None if reason is None else Finish(reason, spans_of(self.versions))
        self.part.add(Piece(self.tokens[start:], self.logprobs[start:], finish), self.epoch)

    def update(self) -> None:
        """New weights on a paused server; the epoch counts from the moment that it is told to go on."""
        self.version += 1
        self.epoch += 1


def spans_of(versions: list[int]) -> list[tuple[int, int, int]]:
    edges = [i for i in range(len(versions)) if i == 0 or versions[i] != versions[i - 1]]
    ends = [*edges[1:], len(versions)] if edges else []
    return [(a, b, versions[a]) for a, b in zip(edges, ends, strict=True)]


def completion_of(max_new_tokens: int, **sampling: object) -> Completion:
    params = SamplingParams(max_new_tokens=max_new_tokens, **sampling)  # type: ignore[arg-type]
    return Completion(ModelRequest(np.array(PROMPT), params), max_new_tokens, 11, (EOS,))


STEPS = st.lists(st.sampled_from(["sample", "sample", "sample", "send", "update", "die", "abort"]), max_size=120)


@given(steps=STEPS, max_new_tokens=st.integers(1, 40))
def test_any_cuts_deaths_and_updates_give_a_faultless_completion(steps: list[str], max_new_tokens: int) -> None:
    completion = completion_of(max_new_tokens)
    version = 3
    thrown_away = 0

    def fresh() -> Server:
        return Server(completion.input_ids, version, completion.begin(version, 0))

    server = fresh()
    for step in [*steps, *["sample"] * max_new_tokens]:
        if completion.stop_reason is not None:
            break
        if step == "sample":
            server.sample()
            if server.tokens[-1] == EOS:
                server.send("stop")
            elif len(server.tokens) == server.part.max_new_tokens:
                server.send("length")
        elif step == "send":
            server.send()
        elif step == "update":
            server.update()
            version = server.version
        elif step == "abort":
            server.send("abort")
        if server.part.finish is not None or step == "die":
            before = len(completion.token_ids)
            completion.settle(server.part, server.version)
            if step == "die":
                thrown_away += len(server.part.token_ids) - (len(completion.token_ids) - before)
            server = fresh()
    response = completion.response(VOCAB, False, 0.0, 1.0)
    tokens = response.output_ids.tolist()
    assert len(tokens) == max_new_tokens or tokens[-1] == EOS
    assert response.stop_reason == ("stop" if tokens[-1] == EOS else "length")
    assert completion.num_thrown_away == thrown_away
    end = 0
    for span in response.version_spans:
        assert span.start == end < span.end
        end = span.end
        for place in range(span.start, span.end):
            assert oracle(PROMPT + tokens[:place], span.version) == (
                tokens[place],
                pytest.approx(float(response.logprobs[place]), abs=1e-4),
            )
    assert end == len(tokens)
    assert EOS not in tokens[:-1]


def test_a_death_after_an_update_keeps_only_what_came_before_it() -> None:
    completion = completion_of(20)
    server = Server(PROMPT, 4, completion.begin(4, 0))
    for _ in range(5):
        server.sample()
    server.send()
    server.sample()
    server.update()
    server.sample()
    server.send()
    completion.settle(server.part, 5)
    assert completion.token_ids == server.tokens[:5]
    assert completion.num_thrown_away == 2
    assert (completion.remaining, completion.stop_reason) == (15, None)
    assert completion.input_ids == PROMPT + server.tokens[:5]


def test_a_completion_that_was_all_sent_needs_no_final_message() -> None:
    completion = completion_of(2)
    part = completion.begin(0, 0)
    part.add(Piece([1, 2], [-1.0, -1.0]), 0)
    completion.settle(part, 0)
    assert completion.stop_reason == "length"
    completion = completion_of(9)
    part = completion.begin(0, 0)
    part.add(Piece([1, EOS], [-1.0, -1.0]), 0)
    completion.settle(part, 0)
    assert completion.stop_reason == "stop"
    completion = completion_of(9, ignore_eos=True)
    part = completion.begin(0, 0)
    part.add(Piece([1, EOS], [-1.0, -1.0]), 0)
    completion.settle(part, 0)
    assert completion.stop_reason is None


def test_fewer_tokens_than_asked_for_are_gone_on_from() -> None:
    completion = completion_of(4)
    part = completion.begin(1, 0)
    part.add(Piece([7], [-1.0], Finish("length", [(0, 1, 1)])), 0)
    completion.settle(part, 1)
    assert (completion.stop_reason, completion.remaining) == (None, 3)


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ([], "do not cover the 4 tokens"),
        ([(0, 3, 2)], "do not cover the 4 tokens"),
        ([(0, 5, 2)], "do not cover the 4 tokens"),
        ([(0, 2, 2), (3, 4, 2)], "without gaps"),
        ([(0, 3, 2), (2, 4, 2)], "without gaps"),
        ([(1, 4, 2)], "without gaps"),
        ([(0, 0, 2), (0, 4, 2)], "without gaps"),
        ([(0, 4, "2")], "without gaps"),
        ([(0, 4, 2.0)], "without gaps"),
        ([(0, 4, True)], "without gaps"),
        ([(0, 4, 1)], "was given versions 2 to 3"),
        ([(0, 4, 4)], "was given versions 2 to 3"),
        ([(0, 2, 3), (2, 4, 2)], "was given versions 2 to 3"),
    ],
)
def test_versions_are_never_guessed(spans: list[tuple[int, int, int]], words: str) -> None:
    with pytest.raises(ServerError, match=words):
        checked_spans(Finish("stop", spans), 4, 2, 3)


def test_neighbouring_spans_of_one_version_are_joined() -> None:
    finish = Finish("stop", [(0, 1, 2), (1, 2, 2), (2, 4, 3)])
    assert checked_spans(finish, 4, 2, 3) == [VersionSpan(0, 2, 2), VersionSpan(2, 4, 3)]
    assert checked_spans(Finish("stop", []), 0, 2, 3) == []


def test_a_lie_about_versions_leaves_the_completion_as_it_was() -> None:
    completion = completion_of(4)
    part = completion.begin(1, 0)
    part.add(Piece([7], [-1.0], Finish("stop", [(0, 1, 9)])), 0)
    with pytest.raises(ServerError):
        completion.settle(part, 1)
    assert (completion.token_ids, completion.stop_reason) == ([], None)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([Piece([1, 2], [-1.0])], "2 tokens with 1 log-prob"),
        ([Piece([1] * 5, [-1.0] * 5)], "5 tokens where 4"),
        ([Piece([1], [-1.0], Finish("stop", [(0, 1, 0)])), Piece([2], [-1.0])], "after the end"),
    ],
)
def test_pieces_that_do_not_fit_are_errors(pieces: list[Piece], words: str) -> None:
    part = Part(0, 0, 4)
    with pytest.raises(ServerError, match=words):
        for piece in pieces:
            part.add(piece, 0)


def finished(token: int, logprob: float) -> Completion:
    completion = completion_of(1)
    part = completion.begin(0, 0)
    part.add(Piece([token], [logprob], Finish("length", [(0, 1, 0)])), 0)
    completion.settle(part, 0)
    return completion


@pytest.mark.parametrize("token", [-1, VOCAB, 2**40, 2**80])
def test_ids_outside_the_vocabulary_are_errors(token: int) -> None:
    with pytest.raises(ServerError, match=f"sampled id {token}, outside"):
        finished(token, -1.0).response(VOCAB, False, 0.0, 1.0)


def test_missing_logprobs_are_errors_unless_allowed() -> None:
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ServerError, match="no finite number"):
            finished(3, value).response(VOCAB, False, 0.0, 1.0)
    assert math.isnan(finished(3, math.nan).response(VOCAB, True, 0.0, 1.0).logprobs[0])
    with pytest.raises(ServerError, match="no finite number"):
        finished(3, math.inf).response(VOCAB, True, 0.0, 1.0)


@given(seed=st.integers(-(2**70), 2**70), offset=st.integers(0, 10**6))
def test_seeds_fit_every_server_and_differ_by_place(seed: int, offset: int) -> None:
    assert 0 <= part_seed(seed, offset) < 2**63
    assert part_seed(seed, offset + 1) != part_seed(seed, offset + 2)
    assert part_seed(seed % 2**63, 0) == seed % 2**63


def letters(ids: list[int]) -> str:
    return "".join(chr(97 + token) for token in ids)


@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    seams=st.lists(st.integers(1, 29), max_size=3),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=2),
)
def test_stop_strings_across_a_seam_are_found_like_by_one_server(
    tokens: list[int], seams: list[int], stop: list[str]
) -> None:
    seams = sorted({seam for seam in seams if seam < len(tokens)})
    edges = [0, *seams, len(tokens)]
    decode: Callable[[list[int]], str] = letters
    # No part holds a stop string: its server would have ended there.
    if any(text in letters(tokens[a:b]) for a, b in itertools.pairwise(edges) for text in stop):
        return
    ends = [end for end in range(1, len(tokens) + 1) if any(text in letters(tokens[:end]) for text in stop)]
    assert find_seam_stop(tokens, seams, stop, decode) == (ends[0] if ends else None)


def test_a_cut_completion_is_whole() -> None:
    completion = completion_of(6)
    for token, version in ((1, 2), (2, 3)):
        part = completion.begin(version, 0)
        part.add(Piece([token] * 3, [-1.0] * 3, Finish("abort", [(0, 3, version)])), 0)
        completion.settle(part, version)
    completion.cut(4)
    response = completion.response(VOCAB, False, 0.0, 1.0)
    assert response.output_ids.tolist() == [1, 1, 1, 2]
    assert len(response.logprobs) == 4
    assert response.version_spans == [VersionSpan(0, 3, 2), VersionSpan(3, 4, 3)]
    assert response.stop_reason == "stop"
