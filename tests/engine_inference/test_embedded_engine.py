"""The engine in its own process: requests, updates in flight, cancellation, refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from tiny_models import EOS, VOCAB, perturb, plain_logprobs, save_model, tiny_model
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedModel

from areal_x.api.errors import EngineError, PromptTooLongError, RequestError
from areal_x.api.records import ModelRequest, ModelResponse, SamplingParams
from areal_x.engine.inference import EmbeddedEngine
from areal_x.engine.transfer.staging import LiveWeights
from areal_x.engine.weights import SharedWeights, StagedSync

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUM_SLOTS, MAX_LENGTH = 8, 128
LETTERS = [chr(ord("a") + i % 26) + ("" if i < 26 else str(i // 26)) for i in range(VOCAB)]


def write_tokenizer(path: Path) -> None:
    """Token i is a letter, or a letter and a digit."""
    tokenizer = Tokenizer(models.WordLevel({text: i for i, text in enumerate(LETTERS)}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


@dataclass
class Running:
    """A started engine and the policy that feeds it. ``policies`` keeps a copy of each version published."""

    engine: EmbeddedEngine
    policy: PreTrainedModel
    sync: StagedSync
    policies: dict[int, dict[str, torch.Tensor]]

    async def publish(self) -> int:
        version = max(self.policies) + 1
        perturb(self.policy, version)
        self.policies[version] = {name: tensor.clone() for name, tensor in self.policy.state_dict().items()}
        await self.sync.stage(version)
        await self.sync.publish(version)
        return version


async def make_running(path: Path, **options: Any) -> Running:
    policy = save_model(path)
    write_tokenizer(path)
    shared = SharedWeights.create(policy.named_parameters())
    engine = EmbeddedEngine(path, num_slots=NUM_SLOTS, max_length=MAX_LENGTH, device="cpu", weights=shared, **options)
    await engine.start()
    policies = {0: {name: tensor.clone() for name, tensor in policy.state_dict().items()}}
    return Running(engine, policy, StagedSync(LiveWeights(policy.named_parameters), shared, [engine]), policies)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    running = await make_running(tmp_path_factory.mktemp("model"))
    yield running
    await running.engine.close()
    await running.engine.close()


def request(ids: Any = (2, 3, 4), **sampling: Any) -> ModelRequest:
    return ModelRequest(np.asarray(ids, np.int32), SamplingParams(**{"ignore_eos": True, "seed": 1, **sampling}))


def assert_spans_are_exact(running: Running, response: ModelResponse) -> None:
    """Each span equals the forward pass of its own version over the whole prefix."""
    model = tiny_model()
    edges = [span.start for span in response.version_spans] + [response.version_spans[-1].end]
    assert edges[0] == 0 and edges[-1] == len(response.output_ids) and edges == sorted(set(edges))
    versions = [span.version for span in response.version_spans]
    assert versions == sorted(set(versions))
    for start, end, version in response.version_spans:
        model.load_state_dict(running.policies[version])
        expected = plain_logprobs(model, response)[start:end]
        np.testing.assert_allclose(response.logprobs[start:end], expected, atol=1e-5, rtol=0)


async def paused_in_flight(running: Running, *requests: ModelRequest) -> list[asyncio.Task[ModelResponse]]:
    """Requests that a pause met in the middle of their work; on a busy machine they may have ended before."""
    engine = running.engine
    for _ in range(100):
        before = (await engine.health()).num_generated_tokens
        tasks = [asyncio.create_task(engine.agenerate(item)) for item in requests]
        await asyncio.sleep(0.01)
        await engine.pause()
        health = await engine.health()
        if health.num_running + health.num_waiting == len(requests) and health.num_generated_tokens > before:
            return tasks
        await engine.resume()
        await asyncio.gather(*tasks)
    raise AssertionError("no pause came before the end of a request")


async def test_updates_reach_requests_in_flight_and_every_span_is_exact(running: Running) -> None:
    engine = running.engine
    rng = np.random.default_rng(0)
    requests = [request(rng.integers(0, VOCAB, 1 + i), max_new_tokens=100, seed=i) for i in range(12)]
    tasks = await paused_in_flight(running, *requests)
    for _ in range(3):
        await engine.pause()
        await running.publish()
        await engine.resume()
        await asyncio.sleep(0.01)
    responses = await asyncio.gather(*tasks)
    for response in responses:
        assert len(response.output_ids) == 100 and response.stop_reason == "length"
        assert_spans_are_exact(running, response)
    assert any(len(response.version_spans) > 1 for response in responses)
    report = engine.last_update
    assert report is not None and report.version == max(running.policies)
    assert 0.0 < report.copy_seconds <= report.blocked_seconds


async def test_an_update_while_idle_counts_for_the_next_request(running: Running) -> None:
    version = await running.publish()
    response = await running.engine.agenerate(request(max_new_tokens=10))
    assert [span.version for span in response.version_spans] == [version]
    assert_spans_are_exact(running, response)
    health = await running.engine.health()
    assert (health.version, health.num_running, health.num_waiting) == (version, 0, 0)


async def test_pause_stops_and_resume_goes_on(running: Running) -> None:
    engine = running.engine
    (task,) = await paused_in_flight(running, request(max_new_tokens=60))
    before = await engine.health()
    again = await engine.health()
    assert before.num_generated_tokens == again.num_generated_tokens
    assert before.num_running + before.num_waiting == 1 and not task.done()
    await engine.resume()
    response = await task
    after = await engine.health()
    assert len(response.output_ids) == 60
    assert after.num_generated_tokens > before.num_generated_tokens
    assert after.busy_seconds > 0.0 and response.started_at <= response.finished_at


async def test_cancelling_frees_the_slot(running: Running) -> None:
    engine = running.engine
    await engine.pause()
    tasks = [asyncio.create_task(engine.agenerate(request(max_new_tokens=120, seed=i))) for i in range(NUM_SLOTS + 4)]
    await asyncio.sleep(0)
    kept = asyncio.create_task(engine.agenerate(request(max_new_tokens=5)))
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    health = await engine.health()
    assert health.num_running + health.num_waiting == 1
    await engine.resume()
    assert len((await kept).output_ids) == 5
    while_running = [asyncio.create_task(engine.agenerate(request(max_new_tokens=120))) for _ in range(NUM_SLOTS)]
    await asyncio.sleep(0.005)
    for task in while_running[1:]:
        task.cancel()
    assert len((await while_running[0]).output_ids) == 120
    assert (await engine.health()).num_running == 0


async def test_impossible_requests_are_refused_one_by_one(running: Running) -> None:
    engine = running.engine
    with pytest.raises(PromptTooLongError, match=f"128 tokens.*max_length {MAX_LENGTH}"):
        await engine.agenerate(request(np.full(128, 2)))
    assert len((await engine.agenerate(request(np.full(127, 2)))).output_ids) == 1
    for ids, word in (([2, VOCAB], f"id {VOCAB}"), ([-1], "id -1"), ([], "at least one id")):
        with pytest.raises(RequestError, match=word):
            await engine.agenerate(request(ids))
    for bad in (
        {"max_new_tokens": 0}, {"temperature": -0.5}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1},
        {"top_k": -1}, {"stop": ("",)},
    ):  # fmt: skip
        with pytest.raises(RequestError, match=next(iter(bad))):
            await engine.agenerate(request(**bad))
    mixed = await engine.agenerate_batch([request(max_new_tokens=3), request([VOCAB]), request(max_new_tokens=2)])
    assert [isinstance(result, RequestError) for result in mixed] == [False, True, False]


async def test_stop_strings_end_a_completion(running: Running) -> None:
    engine = running.engine
    free = await engine.agenerate(request(max_new_tokens=60, seed=11))
    text = [LETTERS[i] for i in free.output_ids]
    # A string across a token boundary, first found where the model first wrote it.
    stop = text[20][-1] + text[21]
    first = next(i for i in range(len(text)) if stop in "".join(text[: i + 1]))
    stopped = await engine.agenerate(request(max_new_tokens=60, seed=11, stop=("never", stop)))
    assert stopped.stop_reason == "stop"
    assert stopped.output_ids.tolist() == free.output_ids[: first + 1].tolist()


async def test_end_of_sequence_ends_a_completion(running: Running) -> None:
    assert running.engine.eos_ids == (EOS,)
    responses = await asyncio.gather(
        *(running.engine.agenerate(request(max_new_tokens=120, seed=i, ignore_eos=False)) for i in range(40))
    )
    stopped = [response for response in responses if response.stop_reason == "stop"]
    assert stopped
    for response in responses:
        assert (response.output_ids[:-1] != EOS).all()
        assert (response.output_ids[-1] == EOS) == (response.stop_reason == "stop")


async def test_ordered_batches_repeat_bitwise(running: Running) -> None:
    engine = running.engine
    rng = np.random.default_rng(4)
    batch = [request(rng.integers(0, VOCAB, 1 + i % 9), max_new_tokens=5 + i % 31, seed=i) for i in range(30)]
    # The second run meets a busy engine; its batch must share no forward pass with what is there or comes later.
    first = await engine.agenerate_batch(batch)
    before = [asyncio.create_task(engine.agenerate(request(max_new_tokens=25, seed=i))) for i in range(3)]
    await asyncio.sleep(0)
    running_batch = asyncio.create_task(engine.agenerate_batch(batch))
    await asyncio.sleep(0)
    after = [asyncio.create_task(engine.agenerate(request(max_new_tokens=4, seed=i))) for i in range(3)]
    second = await running_batch
    await asyncio.gather(*before, *after)
    for a, b in zip(first, second, strict=True):
        assert isinstance(a, ModelResponse) and isinstance(b, ModelResponse)
        assert a.output_ids.tobytes() == b.output_ids.tobytes() and a.logprobs.tobytes() == b.logprobs.tobytes()


async def test_requests_without_a_seed_differ(running: Running) -> None:
    responses = await asyncio.gather(*(running.engine.agenerate(request(seed=None)) for _ in range(6)))
    assert len({response.output_ids.tobytes() for response in responses}) == 6


async def test_a_version_that_was_never_written_is_an_error(running: Running) -> None:
    with pytest.raises(EngineError, match="starts once"):
        await running.engine.start()


async def test_keep_leaves_the_prefix_as_it_was(tmp_path: Path) -> None:
    running = await make_running(tmp_path, kv_on_update="keep")
    try:
        (task,) = await paused_in_flight(running, request(max_new_tokens=100))
        version = await running.publish()
        await running.engine.resume()
        response = await task
        assert [span.version for span in response.version_spans] == [0, version]
        report = running.engine.last_update
        assert report is not None and report.prefix_lengths == ()
        with pytest.raises(AssertionError):
            assert_spans_are_exact(running, response)
    finally:
        await running.engine.close()


async def test_an_engine_of_16_bits_takes_weights_trained_in_32(tmp_path: Path) -> None:
    policy = save_model(tmp_path)
    shared = SharedWeights.create(policy.named_parameters(), torch.bfloat16)
    engine = EmbeddedEngine(
        tmp_path, num_slots=2, max_length=64, device="cpu", dtype="bfloat16", weights=shared, initial_version=-1
    )
    await engine.start()
    sync = StagedSync(LiveWeights(policy.named_parameters), shared, [engine])
    perturb(policy, 1)
    await sync.stage(0)
    await sync.publish(0)
    response = await engine.agenerate(request(max_new_tokens=8))
    await engine.close()
    shared.close()
    assert [span.version for span in response.version_spans] == [0]
    np.testing.assert_allclose(response.logprobs, plain_logprobs(policy, response), atol=0.1)
