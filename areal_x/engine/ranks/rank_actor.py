"""What a rank is on a Ray cluster: an actor that holds a ``RankHost`` and answers the driver's calls one by one."""

from __future__ import annotations

import copy
import faulthandler
import fcntl
import os
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from areal_x.engine.ranks.rank_context import ONE_RANK
from areal_x.engine.ranks.rank_host import Outcome, RankHost, outcome_of

__all__ = ["RankActor", "RankPlace", "interface_of", "log_to", "read_tail"]

_TAIL_BYTES = 16384
_TAIL_LINES = 30
_TAIL_LINE_LENGTH = 400
_GET_ADDRESS = 0x8915  # SIOCGIFADDR
_ADDRESS_AT = 20


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Where a rank runs: the address of its node, its process, and the file there that it prints to."""

    address: str
    pid: int
    log_path: str


class RankActor:
    """One rank. Every method gives an ``Outcome``, so that what a role raises is told from the end of the actor.

    Args:
        rank: its number.
        num_threads: of the rank on a CPU.
        log_path: what the process prints is added there. Default: a file in the node's folder for temporary files.
    """

    def __init__(self, rank: int, num_threads: int, log_path: str | None) -> None:
        self._rank = rank
        self._num_threads = num_threads
        # Before torch is imported, which reads it.
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        self._log_path = log_to(log_path or _own_log(f"rank{rank}"))
        self._host: RankHost | None = None
        self._store: Any = None
        self._never = threading.Event()

    def place(self) -> Outcome:
        """A ``RankPlace``."""
        return Outcome(RankPlace(ray.util.get_node_ip_address(), os.getpid(), self._log_path))

    def open_store(self, host: str, timeout_seconds: float) -> Outcome:
        """The address of a store at ``host``, this node's own, where all ranks find each other."""
        return outcome_of(self._open_store, host, timeout_seconds)

    def _open_store(self, host: str, timeout_seconds: float) -> str:
        from areal_x.engine.ranks.join import open_store

        self._store = open_store(timeout_seconds, host)
        return f"{self._store.host}:{self._store.port}"

    def join(
        self, num_ranks: int, device: str, store: str, timeout: float, sequence_parallel: int, one_node: bool
    ) -> Outcome:
        """See ``join_ranks``. Ranks of one node talk through its loopback interface, others through that of its
        address; variables that are set already stay."""
        name = interface_of("127.0.0.1" if one_node else ray.util.get_node_ip_address())
        if name is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
        if num_ranks == 1:
            # As in the run's own process: alone, with nobody to join.
            self._host = RankHost(ONE_RANK)
            return Outcome()
        joined = outcome_of(self._join, num_ranks, device, store, timeout, sequence_parallel)
        if joined.error is None:
            self._host = RankHost(joined.value)
        return Outcome(error=joined.error)

    def _join(self, num_ranks: int, device: str, store: str, timeout: float, sequence_parallel: int) -> Any:
        import torch

        from areal_x.engine.ranks.join import join_ranks

        torch.set_num_threads(self._num_threads)
        return join_ranks(
            self._rank,
            num_ranks,
            device=device,
            store_address=store,
            timeout_seconds=timeout,
            sequence_parallel=sequence_parallel,
        )

    def build(self, role: str, factory: str, kwargs: Mapping[str, Any]) -> Outcome:
        """See ``RankHost.build``."""
        assert self._host is not None
        return self._host.build(role, factory, kwargs)

    def call(self, role: str, method: str, args: Sequence[Any]) -> Outcome:
        """See ``RankHost.call``."""
        assert self._host is not None
        # Arrays arrive in memory that the ranks of a node share and none may write to.
        return self._host.call(role, method, copy.deepcopy(args))

    @ray.method(concurrency_group="watch")
    def until_the_end(self) -> None:
        """Return never: who waits for this hears of the actor's end."""
        self._never.wait()

    @ray.method(concurrency_group="watch")
    def print_stacks(self) -> None:
        """Print where every thread is, even in the middle of a call."""
        faulthandler.dump_traceback(sys.__stderr__ or 2)


def log_to(path: str) -> str:
    """Add what this process prints from now on to a file; returns its path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # Ray put streams of its own in their places.
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 (lives as long as the process)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable(sys.stderr)
    return path


def _own_log(name: str) -> str:
    """A file that only this user reads; the operating system's rules for temporary files remove it."""
    return str(Path(tempfile.mkdtemp(prefix="areal_x-log-")) / f"{name}.log")


def read_tail(path: str) -> str:
    """The last lines of a log; empty when it is gone."""
    try:
        with open(path, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line[:_TAIL_LINE_LENGTH] for line in lines[-_TAIL_LINES:])


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has an IPv4 address, such as ``eth0``; ``None`` when none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(sock, _GET_ADDRESS, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            if socket.inet_ntoa(reply[_ADDRESS_AT : _ADDRESS_AT + 4]) == address:
                return name
    return None
