"""SGLang itself, spoken to by ``SglangDialect``: one server of a small model with tied embeddings for all tests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from server_by_hand import KEY, ServerByHand, server_by_hand
from server_models import LETTERS, MAX_LENGTH, Policy, make_policy
from transformers import AutoTokenizer

from areal_x.api.records import ModelRequest, ModelResponse, SamplingParams, VersionSpan
from areal_x.engine.servers.client import ServerClient
from areal_x.engine.servers.dialect import KvOnUpdate, ServerError
from areal_x.engine.servers.sglang_dialect import SglangDialect
from areal_x.engine.transfer.make_transport import make_transport
from areal_x.engine.transfer.transport import WeightTransport

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(900)]

DIALECT = SglangDialect()
PROMPT = (2, 3, 4)


@dataclass
class Served:
    """The policy, the server that began with it, and the stop string that the tokenizer writes as one token."""

    policy: Policy
    server: ServerByHand
    one_token: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("sglang_dialect")
    policy = make_policy(folder / "model", tied=True)
    word = "".join(LETTERS[token - 2] for token in greedy(policy, 12) if token >= 2)[2:8]
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    tokenizer.add_tokens([word])
    tokenizer.save_pretrained(policy.path)
    assert len(tokenizer.encode(word, add_special_tokens=False)) == 1
    with server_by_hand("sglang", policy.path, folder) as server:
        yield Served(policy, server, word)


@pytest.fixture
async def client(served: Served) -> AsyncIterator[ServerClient]:
    client = ServerClient(served.server.url, "", api_key=KEY)
    await DIALECT.set_version(client, max(served.policy.versions))
    yield client
    await client.close()


@pytest.fixture
def disk(served: Served, tmp_path: Path) -> Iterator[WeightTransport]:
    transport = transport_of(served, "disk", tmp_path)
    yield transport
    transport.close()


def transport_of(served: Served, way: str, folder: Path) -> WeightTransport:
    return make_transport(
        way,
        served.policy.named_weights(),
        engine="sglang",
        dtype=torch.float32,
        directory=folder / "weights",
        timeout_seconds=200.0,
    )


def greedy(policy: Policy, number: int) -> list[int]:
    """The most likely tokens after ``PROMPT`` under the newest version, by plain forward passes."""
    ids = list(PROMPT)
    version = max(policy.versions)
    for _ in range(number):
        ids.append(int(policy.next_logprobs(version, np.array(ids, np.int32)).argmax()))
    return ids[len(PROMPT) :]


def text_of(response: ModelResponse) -> str:
    return "".join(LETTERS[token - 2] if token >= 2 else "\0" for token in response.output_ids)


async def generate(
    client: ServerClient,
    name: str,
    ids: Any = PROMPT,
    on_tokens: Callable[[int], None] = lambda number: None,
    change: Callable[[dict[str, Any]], None] = lambda body: None,
    **sampling: Any,
) -> ModelResponse:
    """One request to its end; ``on_tokens`` hears how many there are, ``change`` may spoil the body."""
    request = ModelRequest(np.array(ids), SamplingParams(**{"ignore_eos": True, **sampling}), request_id=name)
    body = DIALECT.request_body(request, name, list(ids), request.sampling.max_new_tokens, request.sampling.seed)
    change(body)
    reply = DIALECT.reply_reader()
    tokens: list[int] = []
    logprobs: list[float] = []
    finish = None
    async with aclosing(client.stream(DIALECT.generate_path, body)) as messages:
        async for message in messages:
            piece = reply.read(message)
            if piece is not None:
                assert finish is None
                tokens += piece.token_ids
                logprobs += piece.logprobs
                finish = piece.finish
                on_tokens(len(tokens))
    assert finish is not None
    return ModelResponse(
        name,
        request.input_ids,
        np.array(tokens, np.int32),
        np.array(logprobs, np.float32),
        [VersionSpan(*span) for span in finish.spans],
        finish.reason,
    )


async def started(client: ServerClient, name: str, number: int = 20, **sampling: Any) -> asyncio.Task[ModelResponse]:
    """A request that has made at least ``number`` tokens."""
    reached = asyncio.Event()
    task = asyncio.create_task(
        generate(client, name, on_tokens=lambda count: reached.set() if count >= number else None, **sampling)
    )
    async with asyncio.timeout(300):
        await reached.wait()
    return task


async def update(
    client: ServerClient,
    served: Served,
    transport: WeightTransport,
    kv_on_update: KvOnUpdate = "recompute",
    meanwhile: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Pause, load a new version, go on."""
    version = served.policy.change()
    transport.write(version, served.policy.named_weights())
    await DIALECT.pause(client, kv_on_update)
    if meanwhile is not None:
        await meanwhile()
    await load(client, transport, version, kv_on_update)
    await DIALECT.resume(client)
    return version


async def load(client: ServerClient, transport: WeightTransport, version: int, kv_on_update: KvOnUpdate) -> None:
    await asyncio.gather(
        DIALECT.load(client, transport.load_order(), version, kv_on_update), asyncio.to_thread(transport.send)
    )


async def test_it_says_what_it_is_and_takes_no_other_key(served: Served, client: ServerClient) -> None:
    facts = await DIALECT.facts(client)
    assert facts.model_name == str(served.policy.path) and facts.max_length == MAX_LENGTH
    stranger = ServerClient(served.server.url, "", api_key="another")
    try:
        for route in ("/model_info", "/generate", "/update_weight_version"):
            with pytest.raises(ServerError, match="401"):
                await stranger.post(route, {})
        with pytest.raises(ServerError, match="401"):
            await DIALECT.facts(stranger)
    finally:
        await stranger.close()


def test_its_key_is_in_no_log_and_on_no_command_line(served: Served) -> None:
    process = served.server.process
    for one in [process, *process.children(recursive=True)]:
        assert KEY not in " ".join(one.cmdline())
    log = served.server.log_path.read_text()
    assert "server_args" in log and KEY not in log


async def test_a_server_without_a_version_is_no_guess(client: ServerClient, served: Served) -> None:
    await client.post("/update_weight_version", {"new_version": "default", "abort_all_requests": False})
    with pytest.raises(ServerError, match="version"):
        await generate(client, "nameless", max_new_tokens=2)


async def test_logprobs_of_any_mixture_of_temperatures(client: ServerClient, served: Served) -> None:
    temperatures = [0.0, 0.7, 1.0, 1.3, 0.0, 0.5] * 2
    responses = await asyncio.gather(
        *(
            generate(client, f"mixed-{place}", (2 + place, 5), temperature=temperature, max_new_tokens=40)
            for place, temperature in enumerate(temperatures)
        )
    )
    for response, temperature in zip(responses, temperatures, strict=True):
        assert len(response.output_ids) == 40 and response.stop_reason == "length"
        served.policy.assert_exact(response, temperature)


async def test_greedy_alone_takes_the_most_likely_token(client: ServerClient, served: Served) -> None:
    response = await generate(client, "greedy", temperature=0.0, max_new_tokens=12)
    assert response.output_ids.tolist() == greedy(served.policy, 12)
    served.policy.assert_exact(response)


async def test_a_sequence_may_fill_the_context(client: ServerClient, served: Served) -> None:
    response = await generate(client, "full", [3] * 12, max_new_tokens=MAX_LENGTH - 12)
    assert len(response.output_ids) == MAX_LENGTH - 12
    served.policy.assert_exact(response)
    assert len((await generate(client, "last", [3] * (MAX_LENGTH - 1), max_new_tokens=1)).output_ids) == 1


async def test_what_is_refused_has_a_status(client: ServerClient) -> None:
    for name, ids, sampling in (
        ("long", [3] * 600, {}),
        ("hot", [3], {"temperature": -1.0}),
        ("p", [3], {"top_p": 2.0}),
    ):
        with pytest.raises(ServerError) as caught:
            await generate(client, name, ids, max_new_tokens=1, **sampling)
        assert caught.value.status == 400


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 3}])
async def test_truncated_sampling_has_no_logprobs(client: ServerClient, sampling: dict[str, Any]) -> None:
    response = await generate(client, "cut", max_new_tokens=40, **sampling)
    assert len(response.output_ids) == 40 and all(map(math.isnan, response.logprobs))
    assert response.version_spans[-1].end == 40


async def test_a_stop_id_is_part_of_the_output(client: ServerClient, served: Served) -> None:
    free = await generate(client, "free", temperature=0.0, max_new_tokens=40)
    stop = int(free.output_ids[20])
    stopped = await generate(
        client, "ids", temperature=0.0, max_new_tokens=40, stop_token_ids=(stop,), ignore_eos=False
    )
    assert stopped.stop_reason == "stop"
    assert stopped.output_ids.tolist() == free.output_ids[: free.output_ids.tolist().index(stop) + 1].tolist()
    served.policy.assert_exact(stopped)


async def test_tokens_that_made_a_stop_string_are_kept(client: ServerClient, served: Served) -> None:
    free = await generate(client, "free", temperature=0.0, max_new_tokens=40)
    text = text_of(free)
    for place in (3, 14, 15, 16, 30):
        stop = text[place : place + 3]
        stopped = await generate(client, f"stop-{place}", temperature=0.0, max_new_tokens=40, stop=("never", stop))
        assert stopped.stop_reason == "stop"
        assert text_of(stopped) == text[: text.index(stop) + 3]
        served.policy.assert_exact(stopped)


async def test_a_stop_string_that_the_model_spells_in_small_pieces_is_found(
    client: ServerClient, served: Served, disk: WeightTransport
) -> None:
    """The tokenizer has one token for it, so SGLang's own ``stop`` looks at too few tokens."""

    def plainly(body: dict[str, Any]) -> None:
        body["sampling_params"]["stop"] = body["sampling_params"].pop("stop_regex")
        body["sampling_params"]["stop"] = [served.one_token]

    sampling = {"temperature": 0.0, "max_new_tokens": 40, "stop": (served.one_token,)}
    served.policy.model.load_state_dict(served.policy.versions[0], strict=False)
    version = max(served.policy.versions) + 1
    served.policy.keep(version)
    disk.write(version, served.policy.named_weights())
    await DIALECT.pause(client, "recompute")
    await load(client, disk, version, "recompute")
    await DIALECT.resume(client)
    missed = await generate(client, "plain", change=plainly, **sampling)
    assert served.one_token in text_of(missed) and missed.stop_reason == "length"
    found = await generate(client, "expression", **sampling)
    assert found.stop_reason == "stop" and text_of(found).endswith(served.one_token)


async def test_a_request_that_is_left_frees_its_slot(client: ServerClient) -> None:
    task = await started(client, "left", max_new_tokens=400)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(300):
        while (await client.get("/v1/loads"))["loads"][0]["num_running_reqs"]:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kv_on_update", ["recompute", "abort"])
async def test_each_span_is_of_its_own_version(
    client: ServerClient, served: Served, disk: WeightTransport, kv_on_update: KvOnUpdate
) -> None:
    tasks = [await started(client, f"{kv_on_update}-{n}", max_new_tokens=300, ids=(5 + n, 6)) for n in range(6)]
    before = max(served.policy.versions)
    late: list[asyncio.Task[ModelResponse]] = []

    async def new_requests_wait() -> None:
        late.append(asyncio.create_task(generate(client, "late", (5, 6), max_new_tokens=20)))
        await asyncio.sleep(0.3)
        assert not late[0].done()

    version = await update(client, served, disk, kv_on_update, new_requests_wait)
    for response in await asyncio.gather(*tasks):
        served.policy.assert_exact(response)
        if kv_on_update == "abort":
            assert response.stop_reason == "abort" and [span.version for span in response.version_spans] == [before]
        else:
            assert len(response.output_ids) == 300
            assert [span.version for span in response.version_spans] == [before, version]
    # The prompt was in the prefix cache of the version before.
    response = await late[0]
    assert [span.version for span in response.version_spans] == [version]
    served.policy.assert_exact(response)


async def test_kept_keys_and_values_are_those_of_the_old_weights(
    client: ServerClient, served: Served, disk: WeightTransport
) -> None:
    task = await started(client, "kept", max_new_tokens=300)
    await update(client, served, disk, "keep")
    response = await task
    assert len(response.version_spans) == 2 and not served.policy.is_exact(response)
    await update(client, served, disk)
    served.policy.assert_exact(await generate(client, "after", max_new_tokens=20))


async def test_weights_come_by_broadcast_in_several_buckets(
    client: ServerClient, served: Served, tmp_path: Path
) -> None:
    from areal_x.engine.transfer.broadcast import GlooTransport
    from areal_x.engine.transfer.layout import TensorLayout

    layout = TensorLayout(list(served.policy.named_weights()), torch.float32)
    transport = GlooTransport(
        layout, num_ranks_per_server=1, timeout_seconds=200.0, device=torch.device("cpu"), bucket_bytes=2**16
    )
    try:
        for _ in range(2):  # A second time, as after a failure: the group of before is left.
            (order,) = transport.join_orders(1)
            await asyncio.gather(DIALECT.join(client, order), asyncio.to_thread(transport.join))
            version = await update(client, served, transport)
            assert len(transport.load_order()["buckets"]) > 1
            response = await generate(client, "sent", max_new_tokens=100)
            assert [span.version for span in response.version_spans] == [version]
            served.policy.assert_exact(response)
        await _fails_then_succeeds(client, served, transport)
    finally:
        transport.close()


async def _fails_then_succeeds(client: ServerClient, served: Served, transport: WeightTransport) -> None:
    """A load that fails half-way leaves SGLang's session open; the next one begins anew."""
    version = served.policy.change()
    transport.write(version, served.policy.named_weights())
    await DIALECT.pause(client, "recompute")
    with pytest.raises(ServerError, match="no such group"):
        await DIALECT.load(client, {**transport.load_order(), "group": "no such group"}, version, "recompute")
    await load(client, transport, version, "recompute")
    await DIALECT.resume(client)
    served.policy.assert_exact(await generate(client, "redone", max_new_tokens=20))


async def test_a_load_that_failed_is_done_again(client: ServerClient, served: Served, disk: WeightTransport) -> None:
    task = await started(client, "through", max_new_tokens=300)

    async def fail() -> None:
        with pytest.raises(ServerError, match="400"):
            await DIALECT.load(client, {"way": "disk", "path": "/nowhere/at/all"}, 999, "recompute")
        with pytest.raises(ServerError, match="carrier pigeon"):
            await DIALECT.load(client, {"way": "carrier pigeon"}, 999, "recompute")

    version = await update(client, served, disk, meanwhile=fail)
    response = await task
    assert response.version_spans[-1].version == version
    served.policy.assert_exact(response)


async def test_a_version_is_stamped_without_ending_requests(client: ServerClient, served: Served) -> None:
    task = await started(client, "stamped", max_new_tokens=300)
    await DIALECT.pause(client, "recompute")
    version = max(served.policy.versions) + 1
    served.policy.keep(version)
    await DIALECT.set_version(client, version)
    await DIALECT.resume(client)
    response = await task
    assert len(response.output_ids) == 300 and response.version_spans[-1].version == version
    served.policy.assert_exact(response)


async def test_requests_outlast_a_sleep(client: ServerClient, served: Served, disk: WeightTransport) -> None:
    task = await started(client, "asleep", max_new_tokens=300)
    version = served.policy.change()
    disk.write(version, served.policy.named_weights())
    await DIALECT.sleep(client)
    await DIALECT.wake_up(client)
    await load(client, disk, version, "recompute")
    await DIALECT.resume(client)
    response = await task
    assert len(response.output_ids) == 300 and len(response.version_spans) == 2
    served.policy.assert_exact(response)


async def test_seeds_do_not_repeat_samples(client: ServerClient) -> None:
    """What the documentation says of this server; a server that heeds seeds would be better, and is not this one."""
    first, second = [await generate(client, "seeded", seed=7, max_new_tokens=40) for _ in range(2)]
    assert first.output_ids.tolist() != second.output_ids.tolist()
