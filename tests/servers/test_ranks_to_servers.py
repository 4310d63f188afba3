"""Two ranks that train a sharded policy, and two vLLM servers that serve what they publish."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from running_engines import make_server_running, request
from server_models import DEVICE, MAX_LENGTH, VOCAB, make_policy

from areal_x.api.config import AlgorithmConfig, ModelConfig, ServerConfig, TrainConfig
from areal_x.api.records import ModelRequest, TrainBatch
from areal_x.engine.ranks.local_ranks import LocalRanks
from areal_x.engine.train.ranked_engine import RankedTrainEngine
from areal_x.engine.transfer.staging import RankWeights
from areal_x.engine.weights import StagedSync

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.vllm, pytest.mark.timeout(900)]

LEARNING_RATE = 0.01


def batch(seed: int) -> TrainBatch:
    """Sequences of random tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 40, 16).astype(np.int32)
    ids = rng.integers(2, VOCAB, lengths.sum()).astype(np.int32)
    zeros = np.zeros(len(ids), np.float32)
    mask = np.ones(len(ids), np.bool_)
    mask[np.concatenate([[0], np.cumsum(lengths)[:-1]])] = False
    return TrainBatch(ids, mask, zeros, zeros, lengths, np.arange(16))


async def test_two_servers_serve_what_two_ranks_trained(tmp_path: Path) -> None:
    """Requests in flight meet the updates; each token is exact under the weights that the ranks held then."""
    policy = make_policy(tmp_path / "model", tied=True)
    train = TrainConfig(num_ranks=2, learning_rate=LEARNING_RATE)
    ranks = LocalRanks(2, device="cpu" if DEVICE == "cpu" else "cuda", timeout_seconds=400)
    running = None
    try:
        model = ModelConfig(path=str(policy.path), device=DEVICE)
        engine = RankedTrainEngine(ranks, policy.path, train, AlgorithmConfig(), model)
        running = make_server_running("vllm", policy, tmp_path / "logs", ServerConfig(num_servers=2, stream_interval=8))
        sync = StagedSync(RankWeights(ranks), running.staging, [running.engine])
        await running.engine.start()

        async def train_and_stage(version: int) -> None:
            assert (await asyncio.to_thread(engine.sft_step, batch(version)))["sft/skipped_steps"] == 0
            policy.model.load_state_dict(dict(engine.named_weights()), strict=False)
            policy.keep(version)
            await sync.stage(version)

        await train_and_stage(1)
        await sync.publish(1)
        rng = np.random.default_rng(0)
        prompts = [rng.integers(2, VOCAB, rng.integers(1, 40)) for _ in range(32)]
        tokens = MAX_LENGTH - 50

        def sent(version: int) -> list[ModelRequest]:
            return [request(ids, max_new_tokens=tokens, seed=100 * version + n) for n, ids in enumerate(prompts)]

        answers = []
        for version in (2, 3):
            await train_and_stage(version)
            # Sent only now: on a busy machine a step takes as long as all of them together.
            answers.append(asyncio.gather(*map(running.engine.agenerate, sent(version))))
            await running.until(10 * len(prompts))
            # The ranks train on while servers load what they staged.
            await asyncio.gather(sync.publish(version), asyncio.to_thread(engine.sft_step, batch(10 + version)))
        responses = [response for wave in await asyncio.gather(*answers) for response in wave]
        assert [replica.version for replica in running.engine.replicas] == [3, 3]
        assert {span.version for response in responses for span in response.version_spans} == {1, 2, 3}
        for response in responses:
            policy.assert_exact(response)
    finally:
        if running is not None:
            await running.close()
        ranks.close()
