"""Shared memory for servers: mapped by a process that is nobody's child, never torn, gone when the driver ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transport_weights import weights
from weight_receiver import ROOT, Receiver, digests

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.shared_buffers import SharedMemoryError, SharedVersion
from areal_x.engine.transfer.shared_memory import SharedFolderTransport, SharedMemoryTransport


@pytest.fixture
def transport() -> Iterator[SharedMemoryTransport]:
    made = SharedMemoryTransport(TensorLayout(weights(0)))
    yield made
    made.close()
    made.close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as started:
        yield started


def test_another_process_reads_each_version_bitwise(transport: SharedMemoryTransport, receiver: Receiver) -> None:
    for version in (1, 2, 3):
        transport.write(version, weights(version))
        order = transport.load_order()
        assert (transport.version, order["version"]) == (version, version)
        assert receiver.ask(order) == digests(weights(version))


def test_a_version_that_is_staged_again_is_read_as_staged_last(
    transport: SharedMemoryTransport, receiver: Receiver
) -> None:
    for seed in (4, 5, 6):
        transport.write(1, weights(seed))
        assert receiver.ask(transport.load_order()) == digests(weights(seed))


def test_an_order_gets_its_own_version_though_a_newer_one_is_there(
    transport: SharedMemoryTransport, receiver: Receiver
) -> None:
    transport.write(1, weights(1))
    order = transport.load_order()
    transport.write(2, weights(2))
    assert receiver.ask(order) == digests(weights(1))
    transport.write(3, weights(3))
    assert "version 1 is not in shared memory" in receiver.ask(order)["error"]


def test_a_version_that_is_overwritten_while_it_is_read_is_an_error(transport: SharedMemoryTransport) -> None:
    transport.write(1, weights(1))
    with pytest.raises(SharedMemoryError, match="version 1 was overwritten"), SharedVersion(transport.load_order()):
        transport.write(2, weights(2))
        transport.write(3, weights(3))


def test_a_half_written_version_is_not_found(transport: SharedMemoryTransport) -> None:
    transport.write(1, weights(1))
    order = transport.load_order()
    transport.write(2, weights(2))
    with pytest.raises(EngineError, match="was not written"):
        transport.write(3, weights(3)[:-1])
    # What an interrupted write leaves: an odd sequence number.
    transport._shared._shared.words[1:3] |= 1
    with pytest.raises(SharedMemoryError, match="version 1 is not in"):
        SharedVersion(order)


def test_a_reader_cannot_change_the_trainers_memory(transport: SharedMemoryTransport) -> None:
    transport.write(1, weights(1))
    with SharedVersion(transport.load_order()) as first:
        for _, tensor in first.tensors():
            tensor.zero_()
    with SharedVersion(transport.load_order()) as second:
        assert digests(second.tensors()) == digests(weights(1))


def test_other_memory_under_the_same_path_is_refused(transport: SharedMemoryTransport) -> None:
    transport.write(1, weights(1))
    with pytest.raises(SharedMemoryError, match="not the memory that was meant"):
        SharedVersion({**transport.load_order(), "key": 5})


def test_a_trainer_that_is_gone_is_named() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(SharedMemoryError, match=r"the trainer has ended.*weights=disk"):
        SharedVersion({"path": f"/proc/{gone.pid}/fd/3", "version": 1, "specs": [], "key": 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([["a", [10**9], "float32"]], "the weights need"),
        ([["a", [1], "float99"]], "'a' has the type 'float99'"),
        ([["a", [1], "nn"]], "'a' has the type 'nn'"),
    ],
)
def test_a_wrong_layout_is_refused(transport: SharedMemoryTransport, change: list[object], message: str) -> None:
    transport.write(1, weights(1))
    with pytest.raises(SharedMemoryError, match=message):
        SharedVersion({**transport.load_order(), "specs": change})


def test_nothing_to_load_before_the_first_version(transport: SharedMemoryTransport) -> None:
    assert transport.version is None
    with pytest.raises(EngineError, match="no weights have been written"):
        transport.load_order()


def test_types_are_cast(receiver: Receiver) -> None:
    transport = SharedMemoryTransport(TensorLayout(weights(0), torch.bfloat16))
    transport.write(1, weights(1))
    assert receiver.ask(transport.load_order()) == digests((name, tensor.bfloat16()) for name, tensor in weights(1))
    transport.close()


def test_what_runs_in_servers_imports_nothing_heavy() -> None:
    code = """
        import json, sys
        import areal_x.engine.transfer.broadcast_group, areal_x.engine.transfer.cuda_handle
        import areal_x.engine.transfer.shared_buffers
        watched = ("areal_x", "transformers", "omegaconf")
        print(json.dumps(sorted(name for name in sys.modules if name.startswith(watched))))
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert json.loads(found.stdout) == [
        "areal_x",
        "areal_x.engine",
        "areal_x.engine.transfer",
        "areal_x.engine.transfer.broadcast_group",
        "areal_x.engine.transfer.cuda_handle",
        "areal_x.engine.transfer.samples",
        "areal_x.engine.transfer.shared_buffers",
    ]


def test_files_in_memory_are_private_and_go_with_close() -> None:
    transport = SharedFolderTransport(TensorLayout(weights(0)))
    transport.write(1, weights(1))
    folder = Path(transport.load_order()["path"])
    root = folder.parent
    assert transport.load_order()["way"] == "disk" and root.is_relative_to("/dev/shm")
    assert [path.stat().st_mode & 0o777 for path in (root, folder)] == [0o700, 0o700]
    assert digests(load_file(folder / "model.safetensors").items()) == digests(weights(1))
    transport.close()
    transport.close()
    assert not root.exists()


def test_files_in_memory_go_when_the_driver_is_killed() -> None:
    code = """
        import time, torch
        from areal_x.engine.transfer.layout import TensorLayout
        from areal_x.engine.transfer.shared_memory import SharedFolderTransport
        transport = SharedFolderTransport(TensorLayout([("a", torch.zeros(3))]))
        transport.write(1, [("a", torch.zeros(3))])
        print(transport.load_order()["path"], flush=True)
        time.sleep(100)
    """
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert driver.stdout is not None
    folder = Path(driver.stdout.readline().strip())
    assert (folder / "model.safetensors").is_file()
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 120
    while folder.parent.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not folder.parent.exists()
