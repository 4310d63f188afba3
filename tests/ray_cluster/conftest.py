"""One Ray of this machine for all tests here, stopped whatever happens; commands connect to it by its address."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from areal_x.api.config import ExperimentConfig
from areal_x.launch.ray_cluster import RayCluster

_HERE = str(Path(__file__).parent)
sys.path.insert(0, _HERE)


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """A Ray that has room for two ranks and two servers. Its token is in the environment, as its user has it."""
    config = ExperimentConfig(name="tests")
    config.cluster.kind, config.cluster.address = "ray", "local"
    config.model.device = "cpu"
    config.rollout.engine, config.rollout.server.num_servers = "vllm", 2
    # What is imported on the nodes: the roles of these tests.
    paths = os.pathsep.join([_HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        with RayCluster(config, num_ranks=3) as cluster:
            yield cluster


@pytest.fixture
def address(cluster: RayCluster) -> str:
    """As ``cluster.address`` takes it."""
    import ray

    return str(ray.get_runtime_context().gcs_address)
