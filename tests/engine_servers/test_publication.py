"""Publications over fake servers: a failed one is redone whole, then the server is replaced; the others go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from fake_server import FakeDialect, FakeServer, FakeTransport

from areal_x.api.errors import EngineError
from areal_x.engine.servers.client import ServerClient
from areal_x.engine.servers.publication import Publisher
from areal_x.engine.servers.replica import Replica


class Watcher:
    def on_change(self, replica: Replica) -> None: ...
    def on_load(self) -> None: ...


class Nowhere:
    restarts = True

    async def __call__(self) -> tuple[str, None]:
        raise AssertionError("nothing is started here")


@asynccontextmanager
async def serving(*servers: FakeServer, timeout_seconds: float = 120.0) -> AsyncIterator[list[Replica]]:
    """A serving replica for each server."""
    replicas = []
    for index, server in enumerate(servers):
        await server.start()
        replica = Replica(
            f"server {index}", FakeDialect(), Nowhere(), Watcher(), num_slots=4, stall_timeout_seconds=60.0
        )
        replica.attach(ServerClient(server.url, "fake", call_timeout_seconds=timeout_seconds), None)
        replica.serve()
        replicas.append(replica)
    try:
        yield replicas
    finally:
        for replica, server in zip(replicas, servers, strict=True):
            await replica.stop(0.0)
            await server.die()


def states(replicas: Sequence[Replica]) -> list[str]:
    return [replica.state for replica in replicas]


async def test_each_server_is_paused_loaded_and_resumed_in_this_order() -> None:
    servers, transport = (FakeServer(), FakeServer()), FakeTransport()
    async with serving(*servers) as replicas:
        transport.write(3)
        publisher = Publisher(transport, "recompute")
        assert await publisher.publish(replicas) == 3
        assert [server.calls for server in servers] == [["pause", "load", "resume"]] * 2
        assert [(replica.version, replica.epoch) for replica in replicas] == [(3, 1)] * 2
        assert states(replicas) == ["serving"] * 2
        assert publisher.num_redone == 0
        assert 0 < publisher.blocked_seconds < 60


async def test_a_server_that_may_have_gone_on_is_paused_again() -> None:
    server, transport = FakeServer(resume_failures=1), FakeTransport()
    async with serving(server) as replicas:
        transport.write(1)
        await Publisher(transport, "recompute").publish(replicas)
        assert server.calls == ["pause", "load", "resume"] * 2
        assert states(replicas) == ["serving"]


async def test_nothing_staged_changes_nothing() -> None:
    server = FakeServer()
    async with serving(server) as replicas:
        with pytest.raises(EngineError, match="no weights are staged"):
            await Publisher(FakeTransport(), "keep").publish(replicas)
        assert server.calls == []


@pytest.mark.parametrize("collective", [False, True])
async def test_a_load_that_fails_once_is_redone_before_the_server_goes_on(collective: bool) -> None:
    servers, transport = (FakeServer(load_failures=1), FakeServer()), FakeTransport(collective)
    async with serving(*servers) as replicas:
        transport.write(1)
        publisher = Publisher(transport, "recompute")
        await publisher.publish(replicas)
        assert states(replicas) == ["serving"] * 2
        calls = [call for call in servers[0].calls if call != "join"]
        assert calls == ["pause", "load", "load", "resume"]
        assert servers[0].version == 1
        assert servers[1].calls.count("load") == 1
        assert publisher.num_redone == 1
        assert transport.calls == (["join", "send"] * 2 if collective else [])


async def test_a_load_that_fails_twice_costs_the_server_alone() -> None:
    servers, transport = (FakeServer(load_failures=2), FakeServer()), FakeTransport()
    async with serving(*servers) as replicas:
        transport.write(1)
        await Publisher(transport, "recompute").publish(replicas)
        assert states(replicas) == ["gone", "serving"]
        assert "could not load version 1 twice" in replicas[0].cause
        assert "half the weights are missing" in replicas[0].cause
        assert "resume" not in servers[0].calls


async def test_a_server_that_hangs_in_a_load_keeps_no_other_from_serving() -> None:
    servers, transport = (FakeServer(load_seconds=60.0), FakeServer()), FakeTransport()
    async with serving(*servers, timeout_seconds=4.0) as replicas:
        transport.write(1)
        publishing = asyncio.create_task(Publisher(transport, "recompute").publish(replicas))
        while states(replicas) != ["paused", "serving"]:
            await asyncio.sleep(0.005)
            assert not publishing.done(), "it waited for the one that hangs"
        await publishing
        assert states(replicas) == ["gone", "serving"]
        assert "did not answer within 4 s" in replicas[0].cause


@pytest.mark.parametrize("collective", [False, True])
async def test_a_dead_server_is_left_out(collective: bool) -> None:
    servers, transport = (FakeServer(), FakeServer(), FakeServer()), FakeTransport(collective)
    async with serving(*servers) as replicas:
        transport.write(1)
        publisher = Publisher(transport, "recompute")
        await publisher.publish(replicas)
        await servers[1].die()
        transport.write(2)
        await publisher.publish(replicas)
        assert states(replicas) == ["serving", "gone", "serving"]
        assert (servers[0].version, servers[2].version) == (2, 2)


async def test_servers_join_before_any_pauses_and_again_when_they_change() -> None:
    servers, transport = (FakeServer(), FakeServer()), FakeTransport(collective=True)
    async with serving(*servers) as replicas:
        publisher = Publisher(transport, "recompute")
        for version in (1, 2):
            transport.write(version)
            await publisher.publish(replicas)
        assert servers[0].calls == ["join", *["pause", "load", "resume"] * 2]
        assert transport.calls == ["join", "send", "send"]
        transport.write(3)
        await publisher.publish(replicas[:1])
        assert servers[0].calls[7:] == ["join", "pause", "load", "resume"]
        await replicas[0].client.close()
        replicas[0].attach(ServerClient(servers[0].url, "fake"), None)
        replicas[0].serve()
        transport.write(4)
        await publisher.publish(replicas)
        assert servers[0].calls[11:] == ["join", "pause", "load", "resume"]
        assert servers[1].calls.count("join") == 2


async def test_a_broken_sending_is_redone_and_then_costs_the_servers() -> None:
    server, transport = FakeServer(), FakeTransport(collective=True)
    async with serving(server) as replicas:
        transport.write(1)
        transport.send_failures = 1
        publisher = Publisher(transport, "recompute")
        await publisher.publish(replicas)
        assert (states(replicas), server.version) == (["serving"], 1)
        assert server.calls == ["join", "pause", "load", "join", "load", "resume"]
        transport.write(2)
        transport.send_failures = 2
        await publisher.publish(replicas)
        assert states(replicas) == ["gone"]
        assert "the trainer's part broke" in replicas[0].cause


async def test_a_publication_may_leave_servers_paused() -> None:
    server, transport = FakeServer(), FakeTransport()
    async with serving(server) as replicas:
        transport.write(1)
        await Publisher(transport, "recompute").publish(replicas, resume=False)
        assert (states(replicas), replicas[0].version, replicas[0].epoch) == (["paused"], 1, 0)
        await replicas[0].resume()
        assert (states(replicas), replicas[0].epoch) == (["serving"], 1)
        await replicas[0].pause("recompute")
        await replicas[0].resume()
        assert replicas[0].epoch == 1, "the weights are the same"


async def test_sleeping_servers_wake_before_they_load() -> None:
    server, transport = FakeServer(), FakeTransport()
    async with serving(server) as replicas:
        await replicas[0].sleep()
        transport.write(1)
        await Publisher(transport, "recompute").publish(replicas, wake=True)
        assert server.calls == ["sleep", "wake_up", "load", "resume"]


class Joinless(FakeTransport):
    """The trainer joins so many times, and then never."""

    num_joins = 0

    def join(self) -> None:
        super().join()
        if len(self.calls) > self.num_joins:
            raise EngineError("the trainer's part broke")


async def test_a_trainer_that_cannot_join_leaves_no_server_paused() -> None:
    servers, transport = (FakeServer(load_failures=1), FakeServer()), Joinless(collective=True)
    async with serving(*servers) as replicas:
        transport.write(1)
        publisher = Publisher(transport, "recompute")
        with pytest.raises(EngineError, match="could not join"):
            await publisher.publish(replicas)
        assert states(replicas) == ["serving"] * 2, "none was paused yet"
        transport.num_joins = len(transport.calls) + 1
        with pytest.raises(EngineError, match="could not join"):
            await publisher.publish(replicas)
        assert states(replicas) == ["gone", "serving"]
        assert "may hold half of version 1" in replicas[0].cause


async def test_an_unforeseen_error_in_a_load_leaves_no_server_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def load(*args: object) -> None:
        raise ValueError("not foreseen")

    servers, transport = (FakeServer(), FakeServer()), FakeTransport()
    async with serving(*servers) as replicas:
        transport.write(1)
        monkeypatch.setattr(replicas[0].dialect, "load", load)
        with pytest.raises(ValueError, match="not foreseen"):
            await Publisher(transport, "recompute").publish(replicas)
        assert states(replicas) == ["gone", "serving"]
        assert "may hold half of version 1" in replicas[0].cause
        assert "not foreseen" in replicas[0].cause
