"""Ranks and servers of a run on the nodes that a plan gives them, held by one placement group."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from areal_x.api.errors import ConfigError
from areal_x.api.train_config import TrainConfig
from areal_x.engine.placement import LOOPBACK
from areal_x.engine.ranks.ray_ranks import RankBundle, RayRanks
from areal_x.engine.servers.ray_host import RayServerHost
from areal_x.launch.cluster_plan import Plan

__all__ = ["RayPlacement"]

_RESERVE_SECONDS = 60.0


class RayPlacement:
    """Reserves what the plan asks for; a context manager, which ends the servers' actors and gives it back.

    Args:
        max_restarts: so many times Ray starts the actor of a server again.

    Raises:
        ConfigError: others of the cluster hold what the plan asks for.
    """

    def __init__(self, plan: Plan, max_restarts: int) -> None:
        self._plan = plan
        self._max_restarts = max_restarts
        self._driver_node = ray.get_runtime_context().get_node_id()
        self._hosts: list[RayServerHost] = []
        bundles = plan.bundles
        self._group: PlacementGroup | None = None
        if bundles:
            labels = [{"ray.io/node-id": node.node_id} for node, _ in bundles]
            resources = [needs for _, needs in bundles]
            self._group = placement_group(resources, strategy="PACK", bundle_label_selector=labels)
            if not self._group.wait(_RESERVE_SECONDS):
                self._remove()
                total = {name: sum(needs.get(name, 0) for needs in resources) for name in ("CPU", "GPU")}
                raise ConfigError(
                    f"the Ray cluster did not give {total['CPU']:g} CPUs and {total['GPU']:g} GPUs within "
                    f"{_RESERVE_SECONDS:g} s: others use them; look at `ray status`, or ask for less"
                )

    def __enter__(self) -> RayPlacement:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            host.close()
        self._remove()

    def start_ranks(self, train: TrainConfig, model_device: str, log_dir: Path) -> RayRanks:
        """See ``Placement``. One rank is an actor, too."""
        assert self._group is not None
        bundles = [
            RankBundle(self._group, index, self._plan.gpus_per_rank, node.node_id)
            for index, node in enumerate(self._plan.rank_nodes)
        ]
        return RayRanks(
            bundles,
            driver_node=self._driver_node,
            num_threads=train.num_threads,
            sequence_parallel=train.sequence_parallel,
            timeout_seconds=train.rank_timeout_seconds,
            log_dir=log_dir,
        )

    def server_hosts(self, count: int) -> Sequence[RayServerHost]:
        """See ``Placement``."""
        assert self._group is not None
        first = len(self._plan.rank_nodes)
        hosts = [
            RayServerHost(
                self._group,
                first + index,
                num_gpus=self._plan.gpus_per_server,
                driver_node=self._driver_node,
                max_restarts=self._max_restarts,
            )
            for index in range(count)
        ]
        self._hosts += hosts
        return hosts

    @property
    def address(self) -> str:
        """See ``Placement``."""
        all_here = all(node.node_id == self._driver_node for node in self._plan.server_nodes)
        return LOOPBACK if all_here else str(ray.util.get_node_ip_address())

    def _remove(self) -> None:
        if self._group is not None:
            # The connection may be gone, and with it the group.
            with suppress(RayError, RuntimeError):
                remove_placement_group(self._group)
