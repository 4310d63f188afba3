"""Broadcasts over gloo to real processes: bitwise, in buckets, on loopback, and with receivers that die or hang."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transport_weights import weights
from weight_receiver import Receiver, digests

from areal_x.api.errors import EngineError
from areal_x.engine.transfer.broadcast import GlooTransport
from areal_x.engine.transfer.broadcast_group import packed_order, split_buckets, views_of
from areal_x.engine.transfer.layout import TensorLayout
from areal_x.engine.transfer.shared_buffers import TensorSpec


def make(timeout_seconds: float = 120.0, bucket_bytes: int = 30_000) -> GlooTransport:
    return GlooTransport(
        TensorLayout(weights(0)),
        num_ranks_per_server=1,
        timeout_seconds=timeout_seconds,
        device=torch.device("cpu"),
        bucket_bytes=bucket_bytes,
    )


def join(transport: GlooTransport, receivers: list[Receiver]) -> None:
    for receiver, order in zip(receivers, transport.join_orders(len(receivers)), strict=True):
        receiver.tell(order)
    transport.join()
    assert [receiver.answer() for receiver in receivers] == ["joined"] * len(receivers)


def publish(transport: GlooTransport, receivers: list[Receiver]) -> list[object]:
    order = transport.load_order()
    for receiver in receivers:
        receiver.tell(order)
    transport.send()
    return [receiver.answer() for receiver in receivers]


@pytest.fixture(scope="module")
def receivers() -> Iterator[list[Receiver]]:
    with Receiver() as first, Receiver() as second:
        yield [first, second]


def test_every_server_gets_each_version_bitwise(receivers: list[Receiver]) -> None:
    transport = make()
    join(transport, receivers)
    for version in (1, 2, 3):
        transport.write(version, weights(version))
        order = transport.load_order()
        assert (order["version"], transport.version) == (version, version) and len(order["buckets"]) > 2
        assert publish(transport, receivers) == [digests(weights(version))] * 2
    transport.close()
    transport.close()


def test_the_ordered_version_is_sent_though_a_newer_one_is_staged(receivers: list[Receiver]) -> None:
    transport = make()
    join(transport, receivers[:1])
    transport.write(1, weights(1))
    order = transport.load_order()
    receivers[0].tell(order)
    transport.write(2, weights(2))
    transport.send()
    assert receivers[0].answer() == digests(weights(1))
    assert publish(transport, receivers[:1]) == [digests(weights(2))]
    transport.close()


def test_an_ordered_version_that_is_gone_is_an_error_for_all(receivers: list[Receiver]) -> None:
    transport = make()
    join(transport, receivers[:1])
    transport.write(1, weights(1))
    receivers[0].tell(transport.load_order())
    transport.write(2, weights(2))
    transport.write(3, weights(3))
    with pytest.raises(EngineError, match="version 1 was replaced before it was sent"):
        transport.send()
    assert "error" in receivers[0].answer()
    transport.close()


def test_staging_waits_while_the_buffer_that_it_needs_is_sent(receivers: list[Receiver]) -> None:
    transport = make()
    join(transport, receivers[:1])
    transport.write(1, weights(1))
    order = transport.load_order()
    with ThreadPoolExecutor(2) as threads:
        sending: Future[None] = threads.submit(transport.send)
        while not transport._lock.locked():
            time.sleep(0.001)
        transport.write(2, weights(2))
        overwriting = threads.submit(transport.write, 3, weights(3))
        time.sleep(0.05)
        # The receiver has not begun to take version 1.
        assert not sending.done() and not overwriting.done()
        assert receivers[0].ask(order) == digests(weights(1))
        sending.result()
        overwriting.result()
    assert publish(transport, receivers[:1]) == [digests(weights(3))]
    transport.close()


def test_a_server_that_dies_in_the_middle_is_an_error_and_the_others_join_again() -> None:
    transport = make()
    with Receiver() as staying, Receiver() as dying:
        join(transport, [staying, dying])
        transport.write(1, weights(1))
        staying.tell(transport.load_order())
        dying.process.kill()
        started = time.monotonic()
        with pytest.raises(EngineError, match="could not be sent over gloo, a server was lost") as kept:
            transport.send()
        # Whoever keeps the error keeps nobody waiting.
        assert "error" in staying.answer()
        assert time.monotonic() - started < 60
        assert kept.value.__cause__ is not None
        with pytest.raises(EngineError, match="have to join a new gloo group"):
            transport.load_order()
        with pytest.raises(EngineError, match="join and load_order come before send"):
            transport.send()
        join(transport, [staying])
        assert publish(transport, [staying]) == [digests(weights(1))]
    transport.close()


def test_a_server_that_hangs_is_an_error_within_the_timeout() -> None:
    # More than sockets hold, or sending would end although nobody receives.
    large = [("a", torch.zeros(10 * 2**20))]
    transport = GlooTransport(
        TensorLayout(large), num_ranks_per_server=1, timeout_seconds=5.0, device=torch.device("cpu")
    )
    with Receiver() as hanging:
        join(transport, [hanging])
        transport.write(1, large)
        transport.load_order()
        os.kill(hanging.process.pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(EngineError, match=r"could not be sent over gloo.* within 5 s"):
            transport.send()
        assert 4 < time.monotonic() - started < 60
    transport.close()


def test_a_server_that_does_not_join_is_an_error_within_the_timeout() -> None:
    transport = make(timeout_seconds=1.0)
    transport.join_orders(1)
    started = time.monotonic()
    with pytest.raises(EngineError, match="not every server joined the gloo group within 1 s"):
        transport.join()
    assert time.monotonic() - started < 60
    with pytest.raises(EngineError, match="join_orders comes before join"):
        transport.join()
    transport.close()


def test_only_loopback_listens() -> None:
    transport = make()
    before = {connection.laddr for connection in psutil.Process().net_connections() if connection.status == "LISTEN"}
    with Receiver() as receiver:
        join(transport, [receiver])
        for process in (psutil.Process(), psutil.Process(receiver.process.pid)):
            listening = {found.laddr for found in process.net_connections() if found.status == "LISTEN"} - before
            assert listening and {address.ip for address in listening} <= {"127.0.0.1"}, listening
    transport.close()


def test_the_address_that_servers_reach_is_the_only_one_that_listens() -> None:
    """As for servers of other machines: here, another address of this one."""
    transport = GlooTransport(
        TensorLayout(weights(0)),
        num_ranks_per_server=1,
        timeout_seconds=120,
        device=torch.device("cpu"),
        host="127.0.0.2",
    )
    before = {connection.laddr for connection in psutil.Process().net_connections() if connection.status == "LISTEN"}
    with Receiver() as receiver:
        (order,) = transport.join_orders(1)
        listening = {found.laddr for found in psutil.Process().net_connections() if found.status == "LISTEN"} - before
        assert {address.ip for address in listening} == {"127.0.0.2"} and order["join"]["host"] == "127.0.0.2"
        receiver.tell(order)
        transport.join()
        assert receiver.answer() == "joined"
        transport.write(1, weights(1))
        assert publish(transport, [receiver]) == [digests(weights(1))]
    transport.close()


def test_ranks_leave_room_for_each_servers_workers() -> None:
    transport = GlooTransport(
        TensorLayout(weights(0)), num_ranks_per_server=2, timeout_seconds=5, device=torch.device("cpu")
    )
    joins = [order["join"] for order in transport.join_orders(3)]
    assert [found["rank"] for found in joins] == [1, 3, 5] and {found["world_size"] for found in joins} == {7}
    transport.close()


def test_refused_tensors_leave_the_version_before(receivers: list[Receiver]) -> None:
    transport = make()
    join(transport, receivers[:1])
    with pytest.raises(EngineError, match="no weights have been written"):
        transport.load_order()
    transport.write(1, weights(1))
    with pytest.raises(EngineError, match="was not written"):
        transport.write(2, weights(2)[1:])
    assert transport.version == 1
    assert publish(transport, receivers[:1]) == [digests(weights(1))]
    transport.close()


TYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.float16]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(TYPES)), min_size=1, max_size=8),
    st.integers(1, 300),
)
def test_packed_buckets_hold_all_tensors_aligned(kinds: list[tuple[list[int], torch.dtype]], max_bytes: int) -> None:
    specs = packed_order([TensorSpec(f"t{i}", tuple(shape), dtype) for i, (shape, dtype) in enumerate(kinds)])
    buckets = split_buckets(specs, max_bytes)
    assert [place for start, stop in buckets for place in range(start, stop)] == list(range(len(specs)))
    for start, stop in buckets:
        size = sum(spec.num_bytes for spec in specs[start:stop])
        assert stop > start and (size <= max_bytes or sum(spec.num_bytes > 0 for spec in specs[start:stop]) == 1)
        flat = torch.zeros(size, dtype=torch.uint8)
        # ``view`` refuses what is not aligned.
        for spec, (name, view) in zip(specs[start:stop], views_of(flat, specs[start:stop]), strict=True):
            assert (name, tuple(view.shape), view.dtype) == (spec.name, spec.shape, spec.dtype)
            view.view(torch.uint8).add_(1) if spec.num_bytes and spec.shape else None
        assert int(flat.max() if size else 0) <= 1
