"""The Ray cluster of a run: found or started, checked, and left as it was.

| where | how it is found |
| --- | --- |
| ``cluster.address`` | as given; ``local`` starts one in any case |
| ``RAY_ADDRESS`` | Ray's own variable |
| this machine is part of one | ``ray start`` of this user was run here |
| none of these | one is started here for the run: on loopback, behind a random token, without dashboard or statistics |

All that is wrong with it is one ``ConfigError`` before anything of the run starts.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError
from areal_x.launch.cluster_plan import Node, make_plan, num_servers_to_start

__all__ = ["RayCluster", "find_address"]

_OBJECT_STORE_BYTES = 2**30
_CONNECT_SECONDS = 10.0
_LOOPBACK_ONLY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The name is historical: a node whose processes are only for this machine.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Other users of this machine reach loopback, too.
    "RAY_AUTH_MODE": "token",
}


class RayCluster:
    """A connection to the cluster that ``config.cluster`` means; a context manager, which ends it.

    Args:
        config: of the run; its wishes are compared with what is there.
        num_ranks: of the trainer; 0: nothing is trained.

    Raises:
        ConfigError: no cluster answers there, it is of another Ray or Python version, or it lacks nodes, GPUs or CPUs.
    """

    def __init__(self, config: ExperimentConfig, num_ranks: int) -> None:
        self._stack = ExitStack()
        try:
            self._connect(config, num_ranks)
            self.plan = make_plan(config, self.nodes(), num_ranks)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def nodes(self) -> list[Node]:
        """Nodes that are alive, this machine's first."""
        import ray

        own = ray.get_runtime_context().get_node_id()
        nodes = [
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                int(node["Resources"].get("CPU", 0)),
                int(node["Resources"].get("GPU", 0)),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]
        return sorted(nodes, key=lambda node: node.node_id != own)

    def _connect(self, config: ExperimentConfig, num_ranks: int) -> None:
        if _is_connected():
            return
        address = find_address(config.cluster.address)
        if address is None:
            _check_one_node(config.cluster.num_nodes)
            # Numbers of CPUs are for Ray's books alone: more processes than cores are slower, but run.
            processes = num_ranks + num_servers_to_start(config) + config.cluster.driver_on_cluster
            self._start_local(max(os.cpu_count() or 1, processes))
            return
        _check_reachable(address)
        self._set({"RAY_USAGE_STATS_ENABLED": "0"})
        import ray

        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_connection(address, error) from error
        self._stack.callback(ray.shutdown)

    def _start_local(self, num_cpus: int) -> None:
        self._stack.callback(_read_variables_again)
        self._set(_LOOPBACK_ONLY | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
        import ray

        _read_variables_again()
        folder = tempfile.mkdtemp(prefix="areal_x-ray-")
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=folder,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"cluster.kind=ray: Ray could not be started here: {_first_line(error)}") from error
        self._stack.callback(ray.shutdown)

    def _set(self, variables: Mapping[str, str]) -> None:
        """Set environment variables for as long as this lives."""
        for name, value in variables.items():
            before = os.environ.get(name)
            os.environ[name] = value
            self._stack.callback(_restore, name, before)


def _read_variables_again() -> None:
    """Ray reads them once, when it is imported, and this process may have imported it before they were set."""
    from ray import _raylet
    from ray._private import ray_constants

    core: Any = _raylet
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") != "0"
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()


def _is_connected() -> bool:
    """Whether this process belongs to a cluster already: an actor does, and a script may have connected itself."""
    if "ray" not in sys.modules:
        return False
    import ray

    return bool(ray.is_initialized())


def find_address(given: str | None) -> str | None:
    """The address of the cluster to connect to; ``None``: one is to be started here."""
    if given is not None:
        return None if given == "local" else given
    if os.environ.get("RAY_ADDRESS"):
        return None if os.environ["RAY_ADDRESS"] == "local" else os.environ["RAY_ADDRESS"]
    # Where `ray start` leaves it. A file of another user's could lead anywhere.
    file = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
    try:
        return file.read_text().strip() or None if file.stat().st_uid == os.getuid() else None
    except OSError:
        return None


def _check_one_node(num_nodes: int) -> None:
    """A Ray that is started here has this machine alone; that is known before it takes its time to start."""
    if num_nodes > 1:
        found = "no Ray cluster was found, and one that is started here has this machine alone"
        fix = "start it (ray start --head here, ray start --address=HEAD:6379 on the others), or set cluster.address"
        raise ConfigError(f"cluster.num_nodes={num_nodes}: {found}; {fix}")


def _check_reachable(address: str) -> None:
    """Ray asks for minutes where nobody listens."""
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal():
        return  # Another form, such as `auto`.
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_connection(address, error) from error


def _no_connection(address: str, error: Exception) -> ConfigError:
    text = " ".join(str(error).split())
    if "ersion mismatch" in text:
        said = text.partition("started with:")[2].replace(" This process", "; this process")
        fix = "install the same versions of Ray and Python on all machines"
        return ConfigError(f"the Ray cluster at {address} is of another version:{said}; {fix}")
    if "uthentication" in text or "uthentication" in str(error.__cause__):
        return ConfigError(
            f"the Ray cluster at {address} wants its token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        )
    fix = "start it (ray start --head), name another with cluster.address, or start one here with cluster.address=local"
    return ConfigError(f"no Ray cluster answers at {address} ({_first_line(error)}); {fix}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
