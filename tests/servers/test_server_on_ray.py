"""A real server started by an actor of a real Ray on this machine: it serves, and comes back when its actor dies."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest
from running_engines import SEED, request
from server_models import MAX_LENGTH, make_policy

from areal_x.api.config import ExperimentConfig, ModelConfig, RolloutConfig, ServerConfig
from areal_x.engine.servers.build import build_server_engine
from areal_x.launch.ray_cluster import RayCluster
from areal_x.launch.ray_placement import RayPlacement


@pytest.mark.vllm
@pytest.mark.timeout(900)
async def test_a_server_whose_actor_dies_comes_back_and_its_request_goes_on(tmp_path: Path) -> None:
    config = ExperimentConfig(name="servers")
    config.cluster.kind, config.cluster.address = "ray", "local"
    config.model = ModelConfig(device="cpu")
    config.rollout = RolloutConfig(engine="vllm", max_length=MAX_LENGTH, num_slots=8)
    config.rollout.server = ServerConfig(kv_cache_gib=0.25, stream_interval=1, all_gone_timeout_seconds=200.0)
    model_path = str(make_policy(tmp_path / "model").path)
    with RayCluster(config, num_ranks=0) as cluster, RayPlacement(cluster.plan, max_restarts=1) as placement:
        engine = build_server_engine(
            config.model,
            config.rollout,
            model_path,
            log_dir=tmp_path,
            seed=SEED,
            transport=None,
            hosts=placement.server_hosts(1),
        )
        try:
            await engine.start()
            (replica,) = engine.replicas
            assert replica.client.base_url.startswith("http://127.0.0.1:") and replica.process is not None
            whole = await engine.agenerate(request(max_new_tokens=480, temperature=0.0))
            server = psutil.Process(replica.process.pid)
            actor = next(parent for parent in server.parents() if "ServerActor" in parent.name() + parent.cmdline()[0])
            assert actor.pid != os.getpid()
            going = asyncio.ensure_future(engine.agenerate(request(max_new_tokens=480, temperature=0.0)))
            aim = (await engine.health()).num_generated_tokens + 20
            while (await engine.health()).num_generated_tokens < aim:
                await asyncio.sleep(0.01)
            actor.send_signal(signal.SIGKILL)
            response = await going
            assert list(response.output_ids) == list(whole.output_ids)
            assert not server.is_running() and replica.num_restarts == 1 and replica.process.pid != server.pid
        finally:
            await engine.close()
