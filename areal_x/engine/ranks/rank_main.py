"""A rank's own process: joins the others, then answers the driver's orders one by one. Started by ``rank_process``.

Loop: consumes orders; waits for the next, without limit, since the driver's end ends this process; produces one
``Outcome`` for each.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from typing import Any

from areal_x.api.errors import EngineError
from areal_x.engine.ranks.rank_channel import FrameReader, encode, receive

__all__ = ["JoinOrder", "main"]


@dataclass(frozen=True, slots=True)
class JoinOrder:
    """The first order: see ``join_ranks``."""

    rank: int
    num_ranks: int
    device: str
    store_address: str
    timeout_seconds: float
    sequence_parallel: int
    num_threads: int


def main() -> None:
    """Entry point; ``argv`` has the descriptor of the inherited socket and the driver's process id."""
    # Ctrl-C is for the driver, which decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Asked by the driver when a rank does not answer, whatever it does: the stacks of all threads go to the log.
    faulthandler.register(signal.SIGUSR1)
    faulthandler.enable()
    sock, driver = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(driver, sock), name="end with the driver", daemon=True).start()
    reader = FrameReader(sock)
    try:
        _serve(sock, reader)
    except (EOFError, ConnectionError):
        # With all that it has started, as ``_end_with`` does, which may come later.
        os.killpg(0, signal.SIGKILL)


def _end_with(driver: int, sock: socket.socket) -> None:
    """Wait until the driver's process or its end of the socket is gone; then end this process and its descendants.

    The kernel's own signal (``PR_SET_PDEATHSIG``) would come when the driver's *thread* ends that started this rank.
    """
    watcher = select.poll()
    watcher.register(sock, select.POLLRDHUP if sys.platform == "linux" else 0)
    try:
        watcher.register(os.pidfd_open(driver), select.POLLIN)
    except ProcessLookupError:
        os.killpg(0, signal.SIGKILL)
    watcher.poll()
    os.killpg(0, signal.SIGKILL)


def _serve(sock: socket.socket, reader: FrameReader) -> None:
    first = receive(reader)
    from areal_x.engine.ranks.rank_host import Outcome, RankHost, outcome_of

    joined = outcome_of(_join, first)
    _send(sock, Outcome(error=joined.error))
    host = RankHost(joined.value)
    del joined
    while True:
        name, arguments = receive(reader)
        outcome = host.build(*arguments) if name == "build" else host.call(*arguments)
        del arguments
        _send(sock, outcome)
        # Results may be large, and the next order may be long in coming.
        del outcome


def _join(order: JoinOrder) -> Any:
    import torch

    from areal_x.engine.ranks.join import join_ranks

    torch.set_num_threads(order.num_threads)
    return join_ranks(
        order.rank,
        order.num_ranks,
        device=order.device,
        store_address=order.store_address,
        timeout_seconds=order.timeout_seconds,
        sequence_parallel=order.sequence_parallel,
    )


def _send(sock: socket.socket, outcome: Any) -> None:
    try:
        pieces = encode(outcome)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        unsendable = EngineError(f"a rank's result cannot be sent: {error}")
        pieces = encode(type(outcome)(error=unsendable))
    for piece in pieces:
        sock.sendall(piece)
