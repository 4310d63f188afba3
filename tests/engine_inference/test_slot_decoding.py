"""Decoding through slots gives what plain forward passes give, for several kinds of models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import EOS, VOCAB, plain_logprobs, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from areal_x.api.errors import EngineError
from areal_x.api.records import ModelResponse, VersionSpan
from areal_x.engine.inference.continuous_batch import ContinuousBatch
from areal_x.engine.inference.messages import WireRequest, WireResponse
from areal_x.engine.inference.model_runner import ModelRunner
from areal_x.engine.inference.sampling import uniform_noise

MAX_LENGTH = 64


def wire(number: int, ids: Any, max_new_tokens: int = 8, temperature: float = 1.0, **fields: Any) -> WireRequest:
    values: dict[str, Any] = {
        "top_p": 1.0, "top_k": 0, "seed": number, "stop_token_ids": (), "stop": (), "ignore_eos": True, "batch": 0,
        **fields,
    }  # fmt: skip
    return WireRequest(number, np.asarray(ids, np.int32).tobytes(), max_new_tokens, temperature, **values)


def run_all(batch: ContinuousBatch) -> dict[int, WireResponse]:
    ended: dict[int, WireResponse] = {}
    while batch.has_work:
        ended.update((response.number, response) for response in batch.step())
    return ended


def as_response(request: WireRequest, response: WireResponse) -> ModelResponse:
    assert response.error is None
    return ModelResponse(
        str(request.number),
        np.frombuffer(request.input_ids, np.int32),
        np.frombuffer(response.output_ids, np.int32),
        np.frombuffer(response.logprobs, np.float32),
        [VersionSpan(*span) for span in response.version_spans],
        "stop" if response.stop_reason == "stop" else "length",
    )


def random_requests(count: int, seed: int, temperatures: tuple[float, ...] = (1.0,)) -> list[WireRequest]:
    rng = np.random.default_rng(seed)
    return [
        wire(
            i,
            rng.integers(0, VOCAB, rng.integers(1, 24)),
            int(rng.integers(1, 30)),
            temperatures[i % len(temperatures)],
        )
        for i in range(count)
    ]


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {}),
    "qwen3 untied": ("qwen3", {"tie_word_embeddings": False}),
    "qwen2 with biases": ("qwen2", {}),
    "llama": ("llama", {}),
    "llama without shared heads": ("llama", {"num_key_value_heads": 4}),
    "gpt2": ("gpt2", {}),
    "mistral with a window": ("mistral", {"sliding_window": 7}),
    "gemma2 with caps and windows": ("gemma2", {"sliding_window": 7, "query_pre_attn_scalar": 8}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
}


@pytest.mark.parametrize("name", MODELS)
def test_logprobs_equal_a_plain_forward_pass(name: str) -> None:
    kind, changes = MODELS[name]
    plain = tiny_model(kind, **changes)
    batch = ContinuousBatch(ModelRunner(tiny_model(kind, **changes), 5, MAX_LENGTH), 5, MAX_LENGTH)
    requests = random_requests(16, seed=3, temperatures=(1.0, 0.6, 0.0))
    # Four requests share a prompt, as the samples of a group do.
    requests[2:6] = [request._replace(input_ids=requests[2].input_ids) for request in requests[2:6]]
    batch.submit(requests)
    ended = run_all(batch)
    assert len(ended) == len(requests)
    for request in requests:
        response = as_response(request, ended[request.number])
        assert len(response.output_ids) == request.max_new_tokens
        expected = plain_logprobs(plain, response, request.temperature or 1.0)
        np.testing.assert_allclose(response.logprobs, expected, atol=1e-5, rtol=0)


def test_greedy_takes_the_most_likely_token() -> None:
    plain = tiny_model()
    batch = ContinuousBatch(ModelRunner(tiny_model(), 4, MAX_LENGTH), 4, MAX_LENGTH)
    request = wire(0, [3, 4, 5], 12, temperature=0.0, top_k=1, top_p=0.1)
    batch.submit([request])
    response = as_response(request, run_all(batch)[0])
    ids = torch.tensor([3, 4, 5, *response.output_ids.tolist()])[None]
    with torch.inference_mode():
        best = plain(input_ids=ids).logits[0, 2:-1].argmax(-1)
    assert best.tolist() == response.output_ids.tolist()


def test_a_seeded_request_does_not_depend_on_its_neighbours() -> None:
    runner = ModelRunner(tiny_model(), 6, MAX_LENGTH)
    target = wire(100, [5, 6, 7], 20, seed=77)
    outputs = []
    for others in (0, 3, 11):
        batch = ContinuousBatch(runner, 6, MAX_LENGTH)
        batch.submit([*random_requests(others, seed=others), target])
        outputs.append(run_all(batch)[100].output_ids)
    assert len(set(outputs)) == 1


def test_stop_ids_end_a_completion_and_are_kept() -> None:
    runner = ModelRunner(tiny_model(), 4, MAX_LENGTH)
    batch = ContinuousBatch(runner, 4, MAX_LENGTH, [EOS])
    batch.submit([wire(0, [2, 3], 40, seed=5)])
    free = np.frombuffer(run_all(batch)[0].output_ids, np.int32)
    stop = int(free[len(free) // 2])
    first = int(np.flatnonzero(free == stop)[0])
    batch.submit([wire(1, [2, 3], 40, seed=5, stop_token_ids=(stop,))])
    ended = run_all(batch)[1]
    assert ended.stop_reason == "stop"
    assert np.frombuffer(ended.output_ids, np.int32).tolist() == free[: first + 1].tolist()

    with_eos = ContinuousBatch(runner, 4, MAX_LENGTH, [stop])
    with_eos.submit([wire(2, [2, 3], 40, seed=5, ignore_eos=False), wire(3, [2, 3], 40, seed=5, ignore_eos=True)])
    ended_by_number = run_all(with_eos)
    assert len(ended_by_number[2].output_ids) == 4 * (first + 1)
    assert len(ended_by_number[3].output_ids) == 4 * 40


def test_max_length_ends_a_completion() -> None:
    batch = ContinuousBatch(ModelRunner(tiny_model(), 2, 16), 2, 16)
    batch.submit([wire(0, range(2, 12), 100)])
    ended = run_all(batch)[0]
    assert (len(ended.output_ids) // 4, ended.stop_reason) == (6, "length")


def test_weights_that_give_no_numbers_are_an_error_not_a_sample() -> None:
    model = tiny_model()
    runner = ModelRunner(model, 2, MAX_LENGTH)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    batch = ContinuousBatch(runner, 2, MAX_LENGTH)
    batch.submit([wire(0, [2, 3])])
    error = run_all(batch)[0].error
    assert error is not None and "not finite" in error


def test_an_ordered_batch_shares_no_step_with_others() -> None:
    batch = ContinuousBatch(ModelRunner(tiny_model(), 4, MAX_LENGTH), 4, MAX_LENGTH)
    batch.submit([wire(0, [2], 9), *(wire(i, [2, i], 5 + i, batch=1) for i in range(1, 7)), wire(7, [3], 2)])
    seen = []
    while batch.has_work:
        batch.step()
        seen.append({request.batch for request in batch.slots.requests if request is not None})
    assert all(len(batches) <= 1 for batches in seen)
    order = [next(iter(batches)) for batches in seen if batches]
    assert order == sorted(order, key=[0, 1, 2].index) or order[-1] == 0
    assert 1 in order


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1}, "sinks"),
        ("mamba", {"state_size": 4}, "not supported"),
    ],
)
def test_models_that_slots_cannot_run_are_refused(kind: str, changes: dict[str, Any], reason: str) -> None:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, **changes}
    if kind == "gpt_oss":
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.float32).eval()
    with pytest.raises(EngineError, match=reason):
        ModelRunner(model, 2, MAX_LENGTH)


def test_too_many_positions_are_refused() -> None:
    with pytest.raises(EngineError, match="256 positions"):
        ModelRunner(tiny_model(), 2, 257)


def test_noise_is_uniform_and_its_streams_differ() -> None:
    seeds = np.repeat(np.arange(64, dtype=np.uint64), 512)
    places = np.tile(np.arange(512, dtype=np.int64), 64)
    noise = uniform_noise(seeds, places).reshape(64, 512)
    assert noise.min() >= 0.0 and noise.max() < 1.0
    counts, _ = np.histogram(noise, 32, (0, 1))
    assert ((counts - 1024) ** 2 / 1024).sum() < 80  # 31 degrees of freedom: mean 31, standard deviation 7.9.
    correlations = np.corrcoef(noise)[~np.eye(64, dtype=bool)]
    assert abs(correlations).max() < 0.25 and abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.03
