"""A process that takes weights as a server does: orders come on standard input, one JSON a line, answers go back.

It imports what runs inside servers and nothing else of the package.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from areal_x.engine.transfer.broadcast_group import BroadcastGroup, receive_buckets
from areal_x.engine.transfer.shared_buffers import SharedMemoryError, SharedVersion

ROOT = Path(__file__).parents[2]


def digest(tensor: torch.Tensor) -> str:
    """Shape, type and bytes of a tensor in short."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {tensor.dtype} {hashlib.sha256(data).hexdigest()[:16]}"


def digests(named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """Of each tensor, sorted by name."""
    return {name: digest(tensor) for name, tensor in sorted(named)}


class Receiver:
    """A receiving process, for a ``with`` statement."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        )
        assert self.answer() == "ready"

    def tell(self, order: dict[str, Any]) -> None:
        """Send an order as JSON."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """What it said of one order; ``{"error": text}`` when it could not carry it out."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, order: dict[str, Any]) -> Any:
        """Send an order and wait for its answer."""
        self.tell(order)
        return self.answer()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdout.close()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            return


def main() -> None:
    """Carry out orders until standard input ends."""
    group: BroadcastGroup | None = None
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer: Any
        try:
            if "join" in order:
                group = BroadcastGroup(order["join"])
                answer = "joined"
            elif order["way"] == "broadcast":
                assert group is not None
                answer = digests(list(receive_buckets(group, order, torch.device("cpu"))))
            else:
                with SharedVersion(order) as version:
                    answer = digests(version.tensors())
        except (RuntimeError, SharedMemoryError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
