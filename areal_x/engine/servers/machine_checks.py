"""Ports, GPUs and the key that servers are to take from this machine: looked at before anything starts."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Sequence

from areal_x.api.check_values import bad_value
from areal_x.api.config import ModelConfig, RolloutConfig, ServerConfig
from areal_x.api.errors import ConfigError
from areal_x.api.server_checks import check_address, check_gpu_numbers, server_gpus

__all__ = ["check_devices", "check_gpus", "check_ports", "check_ports_free", "free_ports", "read_key"]


def read_key(server: ServerConfig) -> str | None:
    """The key in the variable that ``rollout.server.api_key_env`` names; ``None`` where it names none.

    Raises:
        ConfigError: that variable is not set.
    """
    name = server.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        fix = "this environment variable is not set; put the servers' key into it, or set api_key_env=null if none is"
        raise bad_value("rollout.server.api_key_env", name, f"{fix} asked for")
    return key


def check_ports(server: ServerConfig) -> list[int]:
    """The port of each server to start, 0 for any that is free, once servers can listen on them.

    Raises:
        ConfigError: a port or the address cannot be used, or must not be.
    """
    check_address(server)
    if server.port is None:
        return [0] * server.num_servers
    ports = [server.port + index for index in range(server.num_servers)]
    check_ports_free(server.host, ports)
    return ports


def free_ports(host: str, count: int) -> list[int]:
    """``count`` different ports of ``host`` that nothing listens on now. Another process may take one before its server
    does; then that server does not start, and the next start gets other ports.

    Raises:
        ConfigError: ``host`` is no address of this machine.
    """
    with contextlib.ExitStack() as held:
        return [held.enter_context(_bound(host, 0)).getsockname()[1] for _ in range(count)]


def check_ports_free(host: str, ports: Sequence[int]) -> None:
    """Check that servers can listen on these ports.

    Raises:
        ConfigError: one is taken or needs other rights, or ``host`` is no address of this machine.
    """
    for port in ports:
        _bound(host, port).close()


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"rollout.server.host={host} is no address: {error.strerror}; set 127.0.0.1") from None
    try:
        # As servers do: connections of an earlier server that still linger do not count.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"rollout.server.host={host} is no address of this machine; set 127.0.0.1") from None
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise ConfigError(
            f"rollout.server.port: port {port} of {host} {reason}; set another, or leave it out for free ports"
        ) from None
    return bound


def check_devices(model: ModelConfig, rollout: RolloutConfig, num_ranks: int) -> tuple[int, ...]:
    """The GPUs that servers are to take, one server's after another's; empty on a CPU.

    Args:
        num_ranks: of a trainer, each of which takes a GPU, too; those of ``rollout.server.gpus`` are taken as they are.

    Raises:
        ConfigError: they are not there, do not fit the servers, or a setting needs one where there is none.
    """
    server = rollout.server
    check_gpu_numbers(model, server)
    if _uses_gpu(model):
        gpus = tuple(server_gpus(model, rollout, num_ranks))
        check_gpus(gpus)
        return gpus
    needs_gpu = {
        "gpus": server.gpus is not None,
        "tensor_parallel": server.tensor_parallel > 1,
        "weights": server.weights in ("nccl", "cuda_ipc"),
        "quantization": server.quantization is not None,
    }
    for key, needs in needs_gpu.items():
        if needs:
            fix = "needs a GPU, and this machine has none that torch can use; leave it out"
            raise bad_value(f"rollout.server.{key}", getattr(server, key), fix)
    return ()


def _uses_gpu(model: ModelConfig) -> bool:
    if model.device == "cpu":
        return False
    import torch

    if model.device != "auto" and not torch.cuda.is_available():
        raise bad_value("model.device", model.device, "this machine has no GPU that torch can use; use cpu or auto")
    return torch.cuda.is_available()


def check_gpus(gpus: Sequence[int]) -> None:
    """Check that these GPUs are there and named once each.

    Raises:
        ConfigError: one is missing; the message says how many there are.
    """
    if not gpus:
        return
    if len(set(gpus)) != len(gpus):
        raise ConfigError(f"rollout.server.gpus={list(gpus)} names a GPU twice; each belongs to one server")
    import torch

    there = torch.cuda.device_count()
    missing = [gpu for gpu in gpus if not 0 <= gpu < there]
    if missing:
        have = f"this machine has {there}, numbered from 0" if there else "this machine has none that torch can use"
        raise ConfigError(
            f"rollout.server.gpus: GPU {missing[0]} is not there ({have}); set rollout.server.gpus or "
            f"num_servers x tensor_parallel to what there is"
        )
