"""Adapters swapped on a real vLLM: log-probabilities are those of the merged model of the stamped version."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from running_engines import request
from vllm_served import Served, serve

from areal_x.api.records import ModelResponse
from areal_x.engine.servers.dialect import ServerError
from areal_x.engine.servers.vllm_dialect import VllmDialect
from areal_x.engine.transfer.lora import AdapterFacts, LoraTransport

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]

RANK, ALPHA = 4, 8.0
TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")


class Adapters:
    """Adapters of a policy whose own weights stay; keeps the merged weights of each version as the policy's."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.shapes = {
            name: tuple(tensor.shape)
            for name, tensor in served.policy.versions[0].items()
            if name.removesuffix(".weight").rpartition(".")[2] in TARGETS
        }
        facts = AdapterFacts(RANK, ALPHA, TARGETS, str(served.policy.path))
        self.transport = LoraTransport(self.tensors(1), facts, directory=served.folder / "adapters")

    def tensors(self, version: int) -> list[tuple[str, torch.Tensor]]:
        """The adapter of a version."""
        generator = torch.Generator().manual_seed(version)
        found = []
        for name, (rows, columns) in self.shapes.items():
            stem = "base_model.model." + name.removesuffix(".weight")
            found.append((stem + ".lora_A.weight", 0.2 * torch.randn(RANK, columns, generator=generator)))
            found.append((stem + ".lora_B.weight", 0.2 * torch.randn(rows, RANK, generator=generator)))
        return found

    def stage(self, version: int) -> None:
        """Write the adapter of ``version``, and remember the model that it makes."""
        factors = dict(self.tensors(version))
        merged = {name: tensor.clone() for name, tensor in self.served.policy.versions[0].items()}
        for name in self.shapes:
            stem = "base_model.model." + name.removesuffix(".weight")
            merged[name] += ALPHA / RANK * factors[stem + ".lora_B.weight"] @ factors[stem + ".lora_A.weight"]
        self.served.policy.versions[version] = merged
        self.transport.write(version, factors.items())

    async def swap(self, version: int) -> None:
        """Stage ``version`` and publish it."""
        self.stage(version)
        served = self.served
        await served.dialect.pause(served.client, "recompute")
        await served.dialect.load(served.client, self.transport.load_order(), version, "recompute")
        await served.dialect.resume(served.client)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def adapters(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Adapters]:
    served = await serve(tmp_path_factory.mktemp("lora"), lora_rank=RANK)
    served.dialect = VllmDialect("policy")
    found = Adapters(served)
    yield found
    found.transport.close()
    await served.close()


def versions(response: ModelResponse) -> list[int]:
    return [span.version for span in response.version_spans]


async def test_each_swap_serves_its_own_adapter(adapters: Adapters) -> None:
    """The prompt is the same each time, so keys and values of the adapter before would show."""
    served = adapters.served
    before: list[list[int]] = []
    for version in (1, 2, 3, 4):
        await adapters.swap(version)
        response = await served.run(request(range(2, 60), max_new_tokens=24))
        assert versions(response) == [version]
        served.policy.assert_exact(response)
        before.append(response.output_ids.tolist())
        # A second time from the prefix cache.
        served.policy.assert_exact(await served.run(request(range(2, 60), max_new_tokens=8, seed=2)))
    assert len({tuple(ids) for ids in before}) == 4


async def test_requests_in_flight_go_on_with_the_new_adapter(adapters: Adapters) -> None:
    served = adapters.served
    await adapters.swap(5)
    tasks = [await served.in_flight(f"flying{i}", seed=i) for i in range(4)]
    await adapters.swap(6)
    fresh = await served.run(request((5, 6, 7, 8), max_new_tokens=30))
    await adapters.swap(7)
    for task in tasks:
        response = await task
        assert set(versions(response)) >= {5, 6} and len(response.output_ids) == 400
        served.policy.assert_exact(response)
    assert versions(fresh) == [6]
    served.policy.assert_exact(fresh)


async def test_a_folder_that_is_no_adapter_leaves_the_one_before(adapters: Adapters, tmp_path: Path) -> None:
    served = adapters.served
    await adapters.swap(8)
    await served.dialect.pause(served.client, "recompute")
    order = {**adapters.transport.load_order(), "path": str(tmp_path)}
    with pytest.raises(ServerError, match="No adapter found"):
        await served.dialect.load(served.client, order, 9, "recompute")
    await served.dialect.load(served.client, adapters.transport.load_order(), 8, "recompute")
    await served.dialect.resume(served.client)
    response = await served.run(request((9, 8, 7), max_new_tokens=12))
    assert versions(response) == [8]
    served.policy.assert_exact(response)
