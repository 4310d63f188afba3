"""Which node of a cluster gets which rank and which server. Pure: nodes and wishes in, places or one error out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError
from areal_x.api.server_checks import SERVER_ENGINES

__all__ = ["Node", "Plan", "make_plan", "num_servers_to_start"]


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, with all that it has."""

    node_id: str
    address: str
    num_cpus: int
    num_gpus: int


@dataclass(frozen=True)
class Plan:
    """The node of each rank and of each server, and how many GPUs each of them gets (0: it computes on CPUs)."""

    rank_nodes: tuple[Node, ...]
    server_nodes: tuple[Node, ...]
    gpus_per_rank: int
    gpus_per_server: int

    @property
    def bundles(self) -> list[tuple[Node, dict[str, float]]]:
        """What to reserve: first of the ranks, then of the servers."""
        ranks = [(node, _resources(self.gpus_per_rank)) for node in self.rank_nodes]
        return ranks + [(node, _resources(self.gpus_per_server)) for node in self.server_nodes]


def num_servers_to_start(config: ExperimentConfig) -> int:
    """Servers that the run starts itself."""
    rollout = config.rollout
    return rollout.server.num_servers if rollout.engine in SERVER_ENGINES and not rollout.base_urls else 0


def make_plan(config: ExperimentConfig, nodes: Sequence[Node], num_ranks: int) -> Plan:
    """Deal ranks out to nodes, neighbours together and evenly, then servers to the nodes with most room.

    Args:
        nodes: those that are alive, the driver's first.
        num_ranks: of the trainer; 0: nothing is trained.

    Raises:
        ConfigError: nodes, GPUs or CPUs that are asked for are not there; with the numbers.
    """
    cluster, num_servers = config.cluster, num_servers_to_start(config)
    if cluster.num_nodes > len(nodes):
        there = f"the Ray cluster has {len(nodes)}"
        fix = "start Ray on more machines (ray start --address=HEAD:6379), or ask for fewer"
        raise ConfigError(f"cluster.num_nodes={cluster.num_nodes}: {there}; {fix}")
    chosen = _choose(config, nodes)
    room = [node.num_gpus if cluster.gpus_per_node is None else cluster.gpus_per_node for node in chosen]
    on_gpus = config.model.device != "cpu" and sum(room) > 0
    if config.model.device == "cuda" and not on_gpus:
        raise ConfigError("model.device=cuda: the nodes of the Ray cluster have no GPU; use cpu or auto")
    per_rank, per_server = (1, config.rollout.server.tensor_parallel) if on_gpus else (0, 0)
    needed = num_ranks * per_rank + num_servers * per_server
    if needed > sum(room):
        raise ConfigError(_too_few_gpus(config, num_ranks, num_servers, sum(room)))
    if not on_gpus:
        room = [node.num_cpus for node in chosen]
    rank_nodes, room = _deal_ranks(chosen, room, num_ranks, max(1, per_rank))
    server_nodes = []
    for index in range(num_servers):
        most = max(range(len(chosen)), key=lambda place: room[place])
        if room[most] < max(1, per_server):
            what = "GPUs on one node (rollout.server.tensor_parallel)" if on_gpus else "CPU"
            raise ConfigError(f"no node of the Ray cluster has {max(1, per_server)} free {what} for server {index}")
        room[most] -= max(1, per_server)
        server_nodes.append(chosen[most])
    return Plan(tuple(rank_nodes), tuple(server_nodes), per_rank, per_server)


def _choose(config: ExperimentConfig, nodes: Sequence[Node]) -> list[Node]:
    """The nodes to use: those that have the GPUs, the driver's before all others."""
    cluster = config.cluster
    if not cluster.gpus_per_node or config.model.device == "cpu":
        best = nodes if config.model.device == "cpu" else sorted(nodes, key=lambda node: -node.num_gpus)
        return list(best[: cluster.num_nodes])
    fit = [node for node in nodes if node.num_gpus >= cluster.gpus_per_node]
    if len(fit) < cluster.num_nodes:
        have = ", ".join(f"{node.address} has {node.num_gpus}" for node in nodes[:8])
        asked = f"on {cluster.num_nodes} node{'s' * (cluster.num_nodes > 1)}"
        raise ConfigError(f"cluster.gpus_per_node={cluster.gpus_per_node} {asked}: the GPUs are not there ({have})")
    return fit[: cluster.num_nodes]


def _deal_ranks(nodes: Sequence[Node], room: Sequence[int], num_ranks: int, size: int) -> tuple[list[Node], list[int]]:
    """As evenly as the room of each node allows; returns the node of each rank, and the room that is left."""
    counts, left = [0] * len(nodes), list(room)
    for _ in range(num_ranks):
        open_nodes = [place for place in range(len(nodes)) if left[place] >= size]
        if not open_nodes:
            raise ConfigError(
                f"train.num_ranks={num_ranks}: the nodes of the Ray cluster have {sum(room)} CPUs for them"
            )
        place = min(open_nodes, key=lambda place: counts[place])
        counts[place] += 1
        left[place] -= size
    return [node for node, count in zip(nodes, counts, strict=True) for _ in range(count)], left


def _too_few_gpus(config: ExperimentConfig, num_ranks: int, num_servers: int, there: int) -> str:
    asks = [f"train.num_ranks={num_ranks}"] * (num_ranks > 0)
    if num_servers:
        width = config.rollout.server.tensor_parallel
        asks.append(f"rollout.server.num_servers={num_servers} x tensor_parallel={width}")
    return (
        f"{' and '.join(asks)} need more GPUs than the {there} of {config.cluster.num_nodes} node(s) "
        "(cluster.num_nodes, cluster.gpus_per_node); ask for fewer, or set model.device=cpu"
    )


def _resources(num_gpus: int) -> dict[str, float]:
    return {"CPU": 1.0, "GPU": float(num_gpus)} if num_gpus else {"CPU": 1.0}
