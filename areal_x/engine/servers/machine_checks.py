"""Ports and GPUs of this machine that servers are to take: looked at before anything starts."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence

from areal_x.api.errors import ConfigError

__all__ = ["check_gpus", "check_ports_free", "free_ports"]


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
        ConfigError: one is taken, impossible or needs other rights, or ``host`` is no address of this machine.
    """
    for port in ports:
        if not 0 < port < 65536:
            raise ConfigError(f"rollout.server.port: port {port} is not between 1 and 65535; set a lower first port")
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
