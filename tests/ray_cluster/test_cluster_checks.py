"""What a cluster cannot give, or is not, is one clear error before anything of a run starts."""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from areal_x.api import train_checks
from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError, MissingExtraError
from areal_x.launch import ray_cluster
from areal_x.launch.cluster_plan import Node, make_plan
from areal_x.launch.compose import ConfigSource, compose_config
from areal_x.launch.ray_cluster import RayCluster, find_address
from areal_x.launch.sent_files import pack_files, unpack_files

TWO = [Node("a", "10.0.0.1", 16, 4), Node("b", "10.0.0.2", 16, 4)]


def config(*changes: str) -> ExperimentConfig:
    return compose_config(ConfigSource.named("quickstart"), ["cluster=ray", *changes])


def names(nodes: tuple[Node, ...]) -> str:
    return "".join(node.node_id for node in nodes)


def test_ranks_are_dealt_out_evenly_and_servers_get_what_is_left() -> None:
    plan = make_plan(config("cluster.num_nodes=2", "rollout=vllm", "rollout.server.num_servers=4"), TWO, 4)
    assert names(plan.rank_nodes) == "aabb" and sorted(names(plan.server_nodes)) == list("aabb")
    assert [needs for _, needs in plan.bundles] == [{"CPU": 1.0, "GPU": 1.0}] * 8
    plan = make_plan(config("rollout=vllm", "rollout.server.tensor_parallel=2"), TWO, 2)
    assert names(plan.rank_nodes) == "aa" and names(plan.server_nodes) == "a" and plan.gpus_per_server == 2
    plan = make_plan(config("model.device=cpu", "cluster.num_nodes=2"), TWO, 3)
    assert names(plan.rank_nodes) == "aab" and plan.gpus_per_rank == 0
    # A node without GPUs is left out when there is one that has them.
    assert names(make_plan(config(), [Node("c", "10.0.0.3", 8, 0), *TWO], 1).rank_nodes) == "a"


@pytest.mark.parametrize(
    ("changes", "num_ranks", "words"),
    [
        (["cluster.num_nodes=3"], 1, r"cluster.num_nodes=3: the Ray cluster has 2; start Ray on more machines"),
        (["cluster.gpus_per_node=8"], 1, r"gpus_per_node=8 on 1 node: the GPUs are not there \(10.0.0.1 has 4"),
        (["rollout=vllm"], 4, r"num_ranks=4 and rollout.server.num_servers=1 x .* need more GPUs than the 4 of 1 node"),
        (["cluster.num_nodes=2", "rollout=vllm", "rollout.server.tensor_parallel=4"], 2, r"no node .* has 4 free GPUs"),
        (["model.device=cpu"], 17, r"num_ranks=17: the nodes of the Ray cluster have 16 CPUs"),
    ],
)
def test_what_is_not_there_is_named(changes: list[str], num_ranks: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_plan(config(*changes), TWO, num_ranks)


def test_gpus_are_asked_of_nodes_that_have_none() -> None:
    with pytest.raises(ConfigError, match=r"model.device=cuda: the nodes of the Ray cluster have no GPU"):
        make_plan(config("model.device=cuda"), [Node("c", "10.0.0.3", 8, 0)], 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["cluster.kind=rai"], r"cluster.kind=rai: did you mean ray\?"),
        (["cluster.kind=local", "cluster.num_nodes=2"], r"cluster.num_nodes=2: needs a cluster; add cluster=ray"),
        (
            ["cluster.kind=local", "cluster.gpus_per_node=8"],
            r"cluster.gpus_per_node=8: needs a cluster; add cluster=ray",
        ),
        (["model.device=cuda:1"], r"model.device=cuda:1: Ray deals out the GPUs"),
        (["rollout=vllm", "rollout.colocated=true"], r"rollout.colocated=true: with cluster.kind=ray every server"),
        (["rollout=vllm", "rollout.server.gpus=[0]"], r"rollout.server.gpus=\[0\]: with cluster.kind=ray servers get"),
    ],
)
def test_settings_that_cannot_work_are_named(changes: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        train_checks.check_cluster(config(*changes))


def test_a_ray_that_would_be_started_here_has_one_node() -> None:
    with pytest.raises(ConfigError, match=r"cluster.num_nodes=4: no Ray cluster was found, .* set cluster.address"):
        RayCluster(config("cluster.num_nodes=4", "cluster.address=local"), 1)


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # Taken, and not listening.
        address = "{}:{}".format(*closed.getsockname())
        with pytest.raises(ConfigError, match=rf"no Ray cluster answers at {address} \(.*refused\); start it"):
            RayCluster(config(f"cluster.address='{address}'"), 1)


def test_ray_that_is_missing_or_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.54.1")
    with pytest.raises(ConfigError, match=r"Ray 2.54.1 is too old, 2.55 or newer is needed"):
        train_checks.check_cluster(config())
    monkeypatch.setattr(train_checks, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'areal-x[ray]'")):
        train_checks.check_cluster(config())


def test_the_address_is_looked_for_where_ray_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert find_address(None) is None and find_address("10.0.0.1:6379") == "10.0.0.1:6379"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.2:6379\n")
    assert find_address(None) == "10.0.0.2:6379" and find_address("local") is None
    monkeypatch.setattr(ray_cluster.os, "getuid", lambda: 12345)
    assert find_address(None) is None, "what another user left leads anywhere"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.3:6379")
    assert find_address(None) == "10.0.0.3:6379"


def test_files_and_paths_are_named_in_full_where_they_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("value = 1\n")
    (tmp_path / "neighbour.py").write_text("value = 2\n")
    (tmp_path / "train.jsonl").write_text("{}\n")
    given = config("reward.fn=mine.py:score", "rollout.filter=trl:mine.py:keep", "data.path=train.jsonl")
    packed, files = pack_files(given)
    assert packed.runs_dir == str(tmp_path / "runs") and packed.data.path == str(tmp_path / "train.jsonl")
    arrived = unpack_files(packed, files, tmp_path / "there")
    assert arrived.reward.fn == f"{tmp_path}/there/0/mine.py:score"
    assert arrived.rollout.filter == f"trl:{tmp_path}/there/0/mine.py:keep"
    assert (tmp_path / "there/0/neighbour.py").read_text() == "value = 2\n"
    assert given.reward.fn == "mine.py:score" and arrived.workflow.path == given.workflow.path


VERSION = """
import sys, ray
ray.__version__ = "2.99.0"
from areal_x.cli import main
sys.exit(main(["train", "--config-name", "quickstart", "cluster=ray", *sys.argv[1:]]))
"""


def test_a_cluster_of_another_version_is_one_error(address: str, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(VERSION)
    command = [sys.executable, "other.py", f"cluster.address={address}"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=400)
    assert done.returncode == 2, done.stderr
    assert "is of another version" in done.stderr and "Ray: 2.99.0" in done.stderr and "install the same" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "runs").exists()
