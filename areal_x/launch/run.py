"""Starts what a checked configuration describes, here or on a Ray cluster: for the command line and for scripts.

A script may give objects in place of names::

    from areal_x.launch.checked import checked_config
    from areal_x.launch.compose import ConfigSource
    from areal_x.launch.run import train

    config = checked_config("train", ConfigSource.named("quickstart"), ["train.total_steps=3"])
    train(config, reward_fn=lambda completions, answer, **kwargs: [float(answer in text) for text in completions])
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from areal_x.api.config import ExperimentConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from areal_x.api.workflow_api import RolloutWorkflow
    from areal_x.engine.placement import Placement
    from areal_x.rollout.finish_group import GroupFilter

__all__ = ["Command", "placed", "run", "train"]

Command = Literal["train", "sft", "train-rm", "eval"]


def train(
    config: ExperimentConfig,
    *,
    workflow: RolloutWorkflow | type[RolloutWorkflow] | None = None,
    reward_fn: Callable[..., Any] | None = None,
    group_filter: GroupFilter | None = None,
) -> int:
    """Train, with objects in place of what the configuration names; see ``Given``. Returns the exit status.

    Lambdas, instances with state and classes of a script work. A synchronous reward runs in worker processes, each with
    a copy of its state; with ``cluster.driver_on_cluster=true`` all of them run on the cluster.

    Raises:
        ConfigError: an object is not what it has to be, or the cluster is not as asked.
        ArealXError: the run failed; its message has the cause.
    """
    return run("train", config, workflow=workflow, reward_fn=reward_fn, group_filter=group_filter)


def run(command: Command, config: ExperimentConfig, **objects: Any) -> int:
    """Run one command with its configuration; ``objects`` are fields of ``Given``. Returns the exit status.

    Raises:
        ArealXError: as ``train``.
    """
    from areal_x.trainer.main import INTERRUPTED, leave_at_once, run_session

    if config.cluster.kind == "ray" and config.cluster.driver_on_cluster:
        from areal_x.launch.ray_driver import run_on_cluster

        return run_on_cluster(command, config, objects)
    with placed(command, config) as (config, placement):
        from areal_x.trainer.given import Given

        status = run_session(command, config, Given(**objects, placement=placement))
    if status == INTERRUPTED:
        leave_at_once(goes_on=command == "train" and config.checkpoint.every_steps > 0)
    return status


@contextmanager
def placed(command: Command, config: ExperimentConfig) -> Iterator[tuple[ExperimentConfig, Placement]]:
    """Where the processes of a run start, this machine or the nodes of a cluster, and its configuration as it holds
    there; what was reserved is given back at the end.

    Raises:
        ConfigError: the cluster is not as asked.
    """
    if config.cluster.kind == "local":
        from areal_x.engine.placement import LocalPlacement

        yield config, LocalPlacement()
        return
    from areal_x.launch.ray_cluster import RayCluster
    from areal_x.launch.sent_files import with_absolute_paths

    num_ranks = 0 if command == "eval" else config.train.num_ranks
    with RayCluster(config, num_ranks) as cluster:
        from areal_x.launch.ray_placement import RayPlacement

        config = with_absolute_paths(config)
        with RayPlacement(cluster.plan, config.cluster.max_restarts) as placement:
            yield config, placement
