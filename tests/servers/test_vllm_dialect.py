"""What a real vLLM does with what the dialect tells it, trap by trap."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
import torch
from running_engines import request
from server_models import EXACT, LETTERS, MAX_LENGTH, VOCAB
from vllm_served import KEY, Served, serve

from areal_x.engine.inference import EmbeddedEngine
from areal_x.engine.servers.client import ServerClient
from areal_x.engine.servers.dialect import ServerError
from areal_x.engine.servers.vllm_dialect import VllmDialect, _reload_from_disk
from areal_x.engine.transfer.broadcast import GlooTransport
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.make_transport import make_transport

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def untied(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    served = await serve(tmp_path_factory.mktemp("untied"))
    yield served
    await served.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tied(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    served = await serve(tmp_path_factory.mktemp("tied"), tied=True)
    yield served
    await served.close()


def prompts(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCAB, rng.integers(1, 60)) for _ in range(count)]


async def test_it_says_what_it_serves(untied: Served) -> None:
    facts = await untied.dialect.facts(untied.client)
    assert facts.model_name == str(untied.policy.path) and facts.max_length == MAX_LENGTH
    other = ServerClient(untied.client.base_url, "other", api_key=KEY)
    with pytest.raises(ServerError, match=r"serves no model 'other'.*rollout\.server\.model_name"):
        await untied.dialect.facts(other)
    await other.close()


@pytest.mark.parametrize("path", ["/is_paused", "/health", "/v1/models", "/server_info", "/metrics"])
async def test_no_route_is_open_without_the_key(untied: Served, path: str) -> None:
    """vLLM's own key guards the routes that generate, not those that pause and update."""
    async with aiohttp.ClientSession() as session:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with session.get(untied.client.base_url + path, headers=headers) as reply:
                assert reply.status == 401
        async with session.post(untied.client.base_url + "/collective_rpc", json={"method": "areal_x_ways"}) as reply:
            assert reply.status == 401


@pytest.mark.parametrize("sampling", [{"top_p": 0.7}, {"top_k": 5}, {"temperature": 0.6, "top_p": 0.8, "top_k": 20}])
async def test_truncated_sampling_is_renormalised(untied: Served, sampling: dict[str, float]) -> None:
    """Beside greedy requests in the same batch, which keep the whole distribution."""
    temperature = sampling.get("temperature", 1.0)
    wanted = [request(ids, max_new_tokens=16, seed=i, **sampling) for i, ids in enumerate(prompts(6))]
    greedy = [request(ids, max_new_tokens=16, **{**sampling, "temperature": 0.0}) for ids in prompts(3, 1)]
    *sampled, one, two, three = await asyncio.gather(*map(untied.run, wanted + greedy))
    for response in (one, two, three):
        untied.policy.assert_exact(response)
    for response in sampled:
        for place, token in enumerate(response.output_ids):
            prefix = np.concatenate([response.input_ids, response.output_ids[:place]])
            full = untied.policy.next_logprobs(untied.version, prefix, temperature)
            kept = truncated(full, sampling.get("top_p", 1.0), int(sampling.get("top_k", 0)))
            assert kept[token], "a token outside the nucleus was sampled"
            expected = full[token] - np.log(np.exp(full[kept]).sum())
            assert response.logprobs[place] == pytest.approx(expected, abs=EXACT)


def truncated(logprobs: np.ndarray, top_p: float, top_k: int) -> np.ndarray:
    """The tokens that stay: the ``top_k`` likeliest, of which the fewest that make up ``top_p``."""
    order = np.argsort(-logprobs)
    if top_k:
        order = order[:top_k]
    probs = np.exp(logprobs[order])
    before = np.cumsum(probs / probs.sum()) - probs / probs.sum()
    kept = np.zeros(len(logprobs), np.bool_)
    kept[order[before < top_p]] = True
    return kept


async def test_stops_are_those_of_the_embedded_engine(untied: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Same ids and reasons: the token that stopped, and those that made a stop string, are part of the output."""
    folder = tmp_path_factory.mktemp("same") / "model"
    untied.policy.model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((untied.policy.path / name).read_bytes())
    engine = EmbeddedEngine(folder, max_length=MAX_LENGTH, device="cpu")
    await engine.start()
    try:
        free = (await engine.agenerate(request(temperature=0.0, max_new_tokens=60))).output_ids.tolist()
        text = "".join(LETTERS[token - 2] if token > 1 else "" for token in free)
        stops = [
            {"stop_token_ids": (free[7],)},
            {"stop_token_ids": (free[7], free[3])},
            {"stop": (text[5:7],)},
            {"stop": (text[9:12], "no such text")},
            {"stop": (text[5:7],), "stop_token_ids": (free[2],)},
            {"stop": ("no such text",)},
            {"ignore_eos": False},
        ]
        for stop in stops:
            wanted = request(temperature=0.0, max_new_tokens=60, **stop)
            expected, found = await asyncio.gather(engine.agenerate(wanted), untied.run(wanted))
            assert found.output_ids.tolist() == expected.output_ids.tolist(), stop
            assert found.stop_reason == expected.stop_reason, stop
            untied.policy.assert_exact(found)
        seen = set()
        for seed in range(40):
            wanted = request(temperature=1.5, max_new_tokens=200, ignore_eos=False, seed=seed)
            found = await untied.run(wanted)
            seen.add(found.stop_reason)
            assert (found.stop_reason == "stop") == (found.output_ids[-1] in engine.eos_ids)
            assert not set(found.output_ids[:-1].tolist()) & set(engine.eos_ids)
        assert "stop" in seen
    finally:
        await engine.close()


async def test_seeds_repeat(untied: Served) -> None:
    first, second, other = await asyncio.gather(
        *(untied.run(request(max_new_tokens=30, seed=seed)) for seed in (2**70 + 5, 2**70 + 5, 6))
    )
    assert first.output_ids.tolist() == second.output_ids.tolist() != other.output_ids.tolist()


async def test_an_id_outside_the_vocabulary_is_refused_in_words(untied: Served) -> None:
    with pytest.raises(ServerError, match="out of vocabulary") as caught:
        await untied.run(request((5, VOCAB + 500)))
    assert caught.value.status == 400
    with pytest.raises(ServerError, match=str(MAX_LENGTH)) as caught:
        await untied.run(request([5] * (MAX_LENGTH + 1)))
    assert caught.value.status == 400


async def test_an_update_of_a_running_server_is_refused(untied: Served) -> None:
    version = untied.version
    order = dict(untied.transport.load_order()) if untied.transport.version is not None else {"way": "shared_memory"}
    task = await untied.in_flight("unpaused")
    with pytest.raises(ServerError, match="is not paused"):
        await untied.dialect.load(untied.client, order, version + 1, "recompute")
    response = await task
    assert [span.version for span in response.version_spans] == [version]
    untied.policy.assert_exact(response)


async def test_recompute_is_exact_for_requests_in_flight(untied: Served) -> None:
    before = untied.version
    others = [asyncio.ensure_future(untied.run(request(max_new_tokens=300, seed=seed))) for seed in range(4)]
    task = await untied.paused_in_flight("recompute")
    version = await untied.update("recompute")
    response = await task
    assert [span.version for span in response.version_spans] == [before, version]
    untied.policy.assert_exact(response)
    for other in await asyncio.gather(*others):
        untied.policy.assert_exact(other)


async def test_keep_leaves_old_keys_and_values(untied: Served) -> None:
    before = untied.version
    task = await untied.paused_in_flight("keep")
    version = await untied.update("keep")
    response = await task
    assert [span.version for span in response.version_spans] == [before, version]
    split = response.version_spans[0].end
    expected = untied.policy.logprobs(before, response)[:split]
    np.testing.assert_allclose(response.logprobs[:split], expected, atol=EXACT, rtol=0)
    assert not untied.policy.is_exact(response), "old keys and values were meant to stay"


async def test_abort_ends_requests_with_what_they_have(untied: Served) -> None:
    before = untied.version
    task = await untied.paused_in_flight("abort")
    await untied.update("abort")
    response = await task
    assert response.stop_reason == "abort" and [span.version for span in response.version_spans] == [before]
    untied.policy.assert_exact(response)


async def test_a_new_request_waits_for_the_end_of_a_pause(untied: Served) -> None:
    version = untied.stage()
    await untied.dialect.pause(untied.client, "recompute")
    task = asyncio.get_running_loop().create_task(untied.run(request(max_new_tokens=8)))
    await untied.dialect.load(untied.client, untied.transport.load_order(), version, "recompute")
    await asyncio.sleep(0.2)
    assert not task.done()
    await untied.dialect.resume(untied.client)
    response = await task
    assert [span.version for span in response.version_spans] == [version]
    untied.policy.assert_exact(response)


@pytest.mark.parametrize("is_tied", [False, True])
async def test_the_prefix_cache_does_not_outlive_the_weights(untied: Served, tied: Served, is_tied: bool) -> None:
    served = tied if is_tied else untied
    ids = np.arange(2, 90).tolist() * 3
    wanted = request(ids)
    served.policy.assert_exact(await served.run(wanted))
    for _ in range(3):
        version = await served.publish()
        response = await served.run(wanted)
        assert [span.version for span in response.version_spans] == [version]
        served.policy.assert_exact(response)


async def test_tied_embeddings_are_right_after_each_way(tied: Served) -> None:
    await tied.publish()
    tied.policy.assert_exact(await tied.run(request(max_new_tokens=40)))
    disk = make_transport(
        "disk",
        tied.policy.named_weights(),
        engine="vllm",
        dtype=None,
        directory=tied.folder / "disk",
        timeout_seconds=60,
        model_path=str(tied.policy.path),
    )
    version = tied.stage(disk)
    await tied.dialect.pause(tied.client, "recompute")
    await tied.dialect.load(tied.client, disk.load_order(), version, "recompute")
    await tied.dialect.resume(tied.client)
    response = await tied.run(request(max_new_tokens=40))
    assert [span.version for span in response.version_spans] == [version]
    tied.policy.assert_exact(response)
    disk.close()


async def test_a_server_without_the_extension_reloads_from_disk(untied: Served, tied: Served) -> None:
    """Spoken to as if it were one: the call that is left there is right for untied models and refused for tied ones."""
    for served in (untied, tied):
        disk = make_transport(
            "disk",
            served.policy.named_weights(),
            engine="vllm",
            dtype=None,
            directory=served.folder / "plain",
            timeout_seconds=60,
            model_path=str(served.policy.path),
        )
        version = served.stage(disk)
        path = str(disk.load_order()["path"])
        await served.dialect.pause(served.client, "recompute")
        if served is tied:
            with pytest.raises(ServerError, match="tied embeddings"):
                await _reload_from_disk(served.client, path)
            await served.dialect.load(served.client, disk.load_order(), version, "recompute")
        else:
            await _reload_from_disk(served.client, path)
            await served.dialect.set_version(served.client, version)
        await served.dialect.resume(served.client)
        served.policy.assert_exact(await served.run(request(max_new_tokens=40)))
        disk.close()


async def test_a_bad_order_leaves_the_old_weights(untied: Served) -> None:
    version = untied.version
    untied.stage()
    order = untied.transport.load_order()
    specs = order["specs"]
    bad = [
        ({**order, "specs": [[specs[0][0], specs[0][1][::-1], specs[0][2]], *specs[1:]]}, "has shape"),
        ({**order, "specs": specs[1:]}, "missing"),
        ({**order, "specs": [*specs, ["another.weight", [3], "float32"]]}, "bytes|another.weight"),
        ({**order, "version": 10**6}, "not in shared memory"),
        ({**order, "path": "/proc/1/fd/none"}, "cannot be opened"),
        ({**order, "way": "pigeon"}, "no way 'pigeon'"),
        ({"way": "broadcast", "group": "g", "names": [], "dtypes": [], "shapes": []}, "has not joined"),
    ]
    task = await untied.paused_in_flight()
    for wrong, words in bad:
        with pytest.raises(ServerError, match=words):
            await untied.dialect.load(untied.client, wrong, version + 1, "recompute")
    await untied.dialect.resume(untied.client)
    untied.policy.versions.pop(version + 1)
    response = await task
    assert [span.version for span in response.version_spans] == [version]
    untied.policy.assert_exact(response)
    untied.policy.assert_exact(await untied.run(request(max_new_tokens=20)))
    await untied.publish()


def gloo(served: Served, bucket_bytes: int) -> GlooTransport:
    """Small buckets, so that a layer's parts come in several."""
    return GlooTransport(
        TensorLayout(served.policy.named_weights()),
        num_ranks_per_server=1,
        timeout_seconds=200,
        device=torch.device("cpu"),
        bucket_bytes=bucket_bytes,
    )


async def joined(served: Served, transport: GlooTransport) -> None:
    (order,) = transport.join_orders(1)
    await asyncio.gather(served.dialect.join(served.client, order), asyncio.to_thread(transport.join))


@pytest.mark.parametrize("is_tied", [False, True])
async def test_broadcasts_are_exact_and_groups_can_be_joined_again(untied: Served, tied: Served, is_tied: bool) -> None:
    served = tied if is_tied else untied
    transport = gloo(served, 4096)
    try:
        for _ in range(2):
            await joined(served, transport)
            for _ in range(2):
                version = served.stage(transport)
                await served.dialect.pause(served.client, "recompute")
                await asyncio.gather(
                    served.dialect.load(served.client, transport.load_order(), version, "recompute"),
                    asyncio.to_thread(transport.send),
                )
                await served.dialect.resume(served.client)
                response = await served.run(request(max_new_tokens=40))
                assert [span.version for span in response.version_spans] == [version]
                served.policy.assert_exact(response)
    finally:
        transport.close()


@pytest.mark.parametrize("is_tied", [False, True])
async def test_an_update_cut_half_way_is_done_again_in_whole(untied: Served, tied: Served, is_tied: bool) -> None:
    """Part of a fused layer has come when the sender is gone; what follows must not count it twice."""
    served = tied if is_tied else untied
    before = served.version
    task = await served.paused_in_flight()
    transport = gloo(served, 4096)
    await joined(served, transport)
    version = served.stage(transport)
    order = transport.load_order()
    buckets = transport._buckets
    names = order["names"]
    last = next(place for place, name in enumerate(names) if name.endswith("layers.1.self_attn.q_proj.weight"))
    cut = next(number for number, (start, stop) in enumerate(buckets) if start <= last < stop)
    transport._buckets = buckets[: cut + 1]

    def send_a_part() -> None:
        transport.send()
        threading.Event().wait(0.3)
        transport.close()

    results = await asyncio.gather(
        served.dialect.load(served.client, order, version, "recompute"),
        asyncio.to_thread(send_a_part),
        return_exceptions=True,
    )
    assert isinstance(results[0], ServerError), results
    assert not served.process.status
    served.transport.write(version, served.policy.named_weights())
    await served.dialect.load(served.client, served.transport.load_order(), version, "recompute")
    await served.dialect.resume(served.client)
    response = await task
    assert [span.version for span in response.version_spans] == [before, version]
    served.policy.assert_exact(response)


async def test_it_sleeps_and_wakes_with_new_weights(untied: Served) -> None:
    before = untied.version
    task = await untied.paused_in_flight()
    await untied.dialect.sleep(untied.client)
    assert (await untied.client.get("/is_sleeping"))["is_sleeping"]
    version = untied.stage()
    await untied.dialect.wake_up(untied.client)
    assert (await untied.client.get("/is_paused"))["is_paused"], "it must not go on before it has weights"
    await untied.dialect.load(untied.client, untied.transport.load_order(), version, "recompute")
    await untied.dialect.resume(untied.client)
    response = await task
    assert [span.version for span in response.version_spans] == [before, version]
    untied.policy.assert_exact(response)


async def test_versions_are_stamped(untied: Served) -> None:
    before = untied.version
    await untied.dialect.set_version(untied.client, 77)
    response = await untied.run(request(max_new_tokens=4))
    assert [span.version for span in response.version_spans] == [77]
    await untied.dialect.set_version(untied.client, before)
    assert dataclasses.is_dataclass(await VllmDialect().facts(untied.client))
