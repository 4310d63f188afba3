"""Weight updates at random times under load: no token is stamped with a version that did not sample it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from running_engines import NUM_SLOTS, Running, request, start_running
from server_models import VOCAB, assert_whole_spans, make_policy
from versioned_weights import VersionedWeights

from areal_x.api.records import ModelResponse, VersionSpan
from areal_x.engine.transfer.staging import LiveWeights
from areal_x.engine.weights import StagedSync

pytestmark = pytest.mark.asyncio(loop_scope="session")


@dataclass
class Load:
    """What a load of requests gave while weights changed."""

    num_updates: int = 0
    num_tokens: int = 0
    num_requests: int = 0
    num_wrong: int = 0
    num_spans: dict[int, int] = field(default_factory=dict)
    """Requests by their number of versions."""
    seconds: float = 0.0


async def run_load(running: Running, num_updates: int, num_tokens: int) -> Load:
    """Keep every slot busy until there were so many updates and tokens; each update comes at a random time."""
    rng = random.Random(0)
    load = Load()
    weights = VersionedWeights(running.policy, running.version + 1)
    sync = StagedSync(LiveWeights(weights.named_weights), running.staging, [running.engine])
    await sync.stage(weights.version)
    await sync.publish(weights.version)
    is_enough = asyncio.Event()
    done_updating = asyncio.Event()

    async def client(number: int) -> None:
        while not is_enough.is_set():
            length = rng.randrange(1, 200)
            ids = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 100))]
            response = await running.engine.agenerate(request(ids, max_new_tokens=length, seed=None))
            assert len(response.output_ids) == length and response.stop_reason == "length"
            assert_whole_spans(response)
            load.num_wrong += weights.num_wrong(response)
            load.num_requests += 1
            load.num_tokens += length
            load.num_spans[len(response.version_spans)] = load.num_spans.get(len(response.version_spans), 0) + 1
            if load.num_tokens >= num_tokens and done_updating.is_set():
                is_enough.set()

    async def update() -> None:
        for number in range(num_updates):
            await running.until(
                max(1, int(rng.uniform(0.0, 2.0) * (num_tokens - load.num_tokens)) // (num_updates - number))
            )
            await asyncio.sleep(rng.uniform(0.0, 0.02))
            weights.version += 1
            await sync.stage(weights.version)
            await sync.publish(weights.version)
            load.num_updates += 1
        done_updating.set()

    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(update())
        for number in range(NUM_SLOTS):
            group.create_task(client(number))
    load.seconds = time.monotonic() - started
    # What comes after this test goes on from the versions that were published here.
    running.policy.keep(weights.version)
    await running.publish()
    return load


def assert_right(load: Load, num_updates: int, num_tokens: int) -> None:
    assert load.num_wrong == 0, load
    assert load.num_updates == num_updates and load.num_tokens >= num_tokens
    in_flight = sum(count for spans, count in load.num_spans.items() if spans > 1)
    assert in_flight >= num_updates, f"hardly an update met a request in flight: {load.num_spans}"


SHORT = {"embedded": (60, 60_000), "vllm": (50, 100_000), "sglang": (20, 30_000)}
LONG = {"embedded": (1000, 1_000_000), "vllm": (50, 100_000), "sglang": (50, 100_000)}


@pytest.mark.timeout(900)
async def test_versions_are_right_under_load(running: Running) -> None:
    load = await run_load(running, *SHORT[running.kind])
    assert_right(load, *SHORT[running.kind])


@pytest.mark.timeout(900)
async def test_a_wrong_version_is_noticed(running: Running) -> None:
    """The check itself: the same tokens under any other version are wrong, each of them."""
    weights = VersionedWeights(running.policy, running.version + 1)
    sync = StagedSync(LiveWeights(weights.named_weights), running.staging, [running.engine])
    await sync.stage(weights.version)
    await sync.publish(weights.version)
    (response,) = await running.run(request(max_new_tokens=100))
    running.policy.keep(weights.version)
    await running.publish()
    assert weights.num_wrong(response) == 0
    for other in (weights.version + 1, weights.version + 7, weights.version + 999):
        moved = dataclasses.replace(response, version_spans=[VersionSpan(0, 100, other)])
        assert weights.num_wrong(moved) == 100


async def test_parts_of_two_versions_are_noticed(tmp_path: Path) -> None:
    """The check itself: with any of the weights that change left from another version, every token is wrong."""
    policy = make_policy(tmp_path / "model")
    weights = VersionedWeights(policy, 1)
    ids = np.arange(2, 60, dtype=np.int32)
    whole = {}
    for version in (1, 9):
        weights.version = version
        whole[version] = {name: tensor.clone() for name, tensor in weights.named_weights()}

    def num_wrong(tensors: dict[str, torch.Tensor]) -> int:
        policy.versions[9] = tensors
        policy.loaded = None
        response = ModelResponse("probe", ids[:10], ids[10:], np.zeros(48, np.float32), [VersionSpan(0, 48, 9)], "stop")
        response.logprobs = policy.logprobs(9, response).astype(np.float32)
        return weights.num_wrong(response)

    assert num_wrong(whole[9]) == 0
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert num_wrong(whole[9] | {name: whole[1][name]}) == 48, name


@asynccontextmanager
async def own_engine(kind: str, folder: Path) -> AsyncIterator[Running]:
    running = await start_running(kind, make_policy(folder / "model"), folder / "logs")
    try:
        yield running
    finally:
        await running.close()


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_versions_of_a_million_tokens(tmp_path: Path) -> None:
    loads = {}
    for kind, (num_updates, num_tokens) in LONG.items():
        async with own_engine(kind, tmp_path / kind) as running:
            loads[kind] = await run_load(running, num_updates, num_tokens)
    write_table(loads)
    for kind, load in loads.items():
        assert_right(load, *LONG[kind])


def write_table(loads: dict[str, Load]) -> None:
    """Leave the figures in the folder that AREAL_X_SOAK_OUT names, if it names one; misses stand there too."""
    lines = [
        "# Weight updates at random times under load",
        "",
        "Written by `make soak`. All slots are busy while weights change; version v of the weights encodes v in its",
        "log-probabilities, so that each token shows whether the version it is stamped with sampled it.",
        "",
        "| engine | updates | requests | of them in flight at an update | tokens | with a wrong version | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, load in loads.items():
        in_flight = sum(count for spans, count in load.num_spans.items() if spans > 1)
        lines.append(
            f"| {kind} | {load.num_updates:,} | {load.num_requests:,} | {in_flight:,} | {load.num_tokens:,} "
            f"| {load.num_wrong} | {load.seconds:.0f} |"
        )
    folder = os.environ.get("AREAL_X_SOAK_OUT")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "versions_under_load.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines[-len(loads) :]))
