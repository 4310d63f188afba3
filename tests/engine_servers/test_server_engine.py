"""The engine over fake servers: whatever they do, requests end right or with an error that says why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from fake_server import MAX_LENGTH, VOCAB, FakeLaunch, FakeServer, FakeTransport, check_response, make_engine

from areal_x.api.errors import EngineDiedError, EngineError, PromptTooLongError, RequestError
from areal_x.api.records import ModelRequest, ModelResponse, SamplingParams
from areal_x.engine.servers import server_engine
from areal_x.engine.servers.dialect import ServerError
from areal_x.engine.servers.server_engine import ServerEngine


@asynccontextmanager
async def running(
    *launches: FakeLaunch, transport: FakeTransport | None = None, **settings: Any
) -> AsyncIterator[ServerEngine]:
    """A started engine; afterwards no task of it is left."""
    engine = make_engine(launches, transport, **settings)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()
        await engine.close()
        for launch in launches:
            for server in launch.servers:
                await server.die()
        await asyncio.sleep(0.01)
        assert not [task for task in asyncio.all_tasks() if "/areal_x/" in task.get_coro().cr_code.co_filename]


def request(first: int = 2, **sampling: Any) -> ModelRequest:
    return ModelRequest(np.array([first % VOCAB, 3, 4]), SamplingParams(**{"max_new_tokens": 40, **sampling}))


async def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def send(engine: ServerEngine, count: int, **sampling: Any) -> list[asyncio.Task[ModelResponse]]:
    return [asyncio.create_task(engine.agenerate(request(i, **sampling))) for i in range(count)]


async def publish(engine: ServerEngine, transport: FakeTransport, version: int) -> None:
    async with transport.lock:
        transport.write(version)
    await engine.update_weights(version)


def check_all(responses: Sequence[ModelResponse], num_tokens: int) -> set[int]:
    return set().union(*(check_response(response, num_tokens) for response in responses))


async def test_tokens_versions_and_counters_are_right() -> None:
    async with running(FakeLaunch(), FakeLaunch(), initial_version=4) as engine:
        responses = await asyncio.gather(*send(engine, 20))
        assert check_all(responses, 40) == {4}
        assert {response.stop_reason for response in responses} == {"length"}
        assert all(response.finished_at >= response.started_at > 0 for response in responses)
        health = await engine.health()
        assert (health.version, health.num_running, health.num_waiting) == (4, 0, 0)
        assert health.num_generated_tokens == 20 * 40 + 2
        assert 0 < health.busy_seconds < 60
        shares = [len(replica.launch.server.bodies) for replica in engine.replicas]  # type: ignore[attr-defined]
        assert shares == [11, 11]


async def test_stop_ids_end_a_completion() -> None:
    async with running(FakeLaunch()) as engine:
        whole = await engine.agenerate(request())
        stop = int(whole.output_ids[9])
        first = whole.output_ids.tolist().index(stop)
        ended = await engine.agenerate(request(stop_token_ids=[stop]))
        assert (ended.stop_reason, len(ended.output_ids)) == ("stop", first + 1)


async def test_bad_requests_never_reach_a_server() -> None:
    launch = FakeLaunch()
    async with running(launch) as engine:
        launch.server.bodies.clear()
        for ids in ([VOCAB], [-1], []):
            with pytest.raises(RequestError):
                await engine.agenerate(ModelRequest(np.array(ids, np.int32)))
        with pytest.raises(RequestError, match="temperature"):
            await engine.agenerate(request(temperature=-1.0))
        with pytest.raises(RequestError, match="tokenizer"):
            await engine.agenerate(request(stop=["x"]))
        with pytest.raises(PromptTooLongError, match=f"max_length {MAX_LENGTH}"):
            await engine.agenerate(ModelRequest(np.ones(MAX_LENGTH)))
        assert not launch.server.bodies
        long = await engine.agenerate(ModelRequest(np.ones(MAX_LENGTH - 5), SamplingParams(max_new_tokens=50)))
        assert check_response(long, 5) == {0}


async def test_refused_requests_fail_alone() -> None:
    launch = FakeLaunch()
    async with running(launch) as engine:
        tasks = send(engine, 8)
        await until(lambda: launch.server.num_active == 8)
        launch.server.refusals = [400]
        with pytest.raises(RequestError, match="answered 400: refused"):
            await engine.agenerate(request())
        check_all(await asyncio.gather(*tasks), 40)
        assert engine.counters()["servers_restarted"] == 0


async def test_a_server_that_errs_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = FakeLaunch()
    async with running(launch) as engine:
        launch.server.refusals = [500, 503]
        started = time.monotonic()
        check_response(await engine.agenerate(request()), 40)
        assert 0.3 <= time.monotonic() - started < 30.0, "0.1 s and 0.2 s between the tries"
        assert engine.counters()["requests_continued"] == 2
        monkeypatch.setattr(server_engine, "_FIRST_PAUSE", 0.001)
        launch.server.refusals = [500] * 20
        with pytest.raises(EngineError, match=r"8 tries made no token.*answered 500"):
            await engine.agenerate(request())
        assert launch.server.refusals == [500] * 12


async def test_a_killed_server_loses_and_doubles_nothing() -> None:
    launches = FakeLaunch(delay=0.005), FakeLaunch(delay=0.005)
    async with running(*launches) as engine:
        tasks = send(engine, 64, max_new_tokens=60)
        await until(lambda: engine.replicas[0].num_tokens > 500)
        started = time.monotonic()
        await launches[0].kill()
        await until(lambda: launches[1].server.num_active == 64)
        assert time.monotonic() - started < 30.0
        assert check_all(await asyncio.gather(*tasks), 60) == {0}
        kept = [len(body["input_ids"]) for body in launches[1].server.bodies if len(body["input_ids"]) > 3]
        assert len(kept) >= 16, "they went on from what they had"
        await until(lambda: engine.counters()["servers_serving"] == 2)
        assert engine.counters()["servers_restarted"] == 1
        assert engine.counters()["requests_continued"] == 32


async def test_a_request_that_ends_every_server_is_given_up() -> None:
    class Fragile(FakeLaunch):
        async def __call__(self) -> tuple[str, Any]:
            started = await super().__call__()
            stream, self.killing = self.server._stream, asyncio.Event()

            async def stream_or_die(body: dict[str, Any], reply: Any) -> None:
                if body["input_ids"][0] == 66:
                    self.killing.set()
                    self.processes[-1]._ended.set()
                await stream(body, reply)

            self.server._stream = stream_or_die  # type: ignore[method-assign]
            return started

    launches = Fragile(), Fragile()
    async with running(*launches, max_restarts=3) as engine:
        with pytest.raises(EngineError, match=r"3 servers were lost while they worked on this request") as caught:
            await asyncio.wait_for(engine.agenerate(request(66)), 120.0)
        assert not isinstance(caught.value, EngineDiedError)
        assert str(caught.value).count("was killed by signal 9") == 3
        check_all(await asyncio.gather(*send(engine, 8)), 40)
        await until(lambda: engine.counters()["servers_serving"] == 2)
        assert engine.counters()["servers_restarted"] == 3


async def test_broken_connections_of_a_server_that_lives_cost_nothing() -> None:
    launch = FakeLaunch(delay=0.005)
    async with running(launch) as engine:
        tasks = send(engine, 16)
        await until(lambda: engine.replicas[0].num_tokens > 80)
        launch.server.break_connections()
        assert check_all(await asyncio.gather(*tasks), 40) == {0}
        counters = engine.counters()
        assert (counters["requests_continued"], counters["servers_restarted"]) == (16, 0)


async def test_a_server_that_dies_while_it_is_looked_at_cancels_no_request() -> None:
    launch = FakeLaunch(delay=0.005, health_hangs=True)
    async with running(launch) as engine:
        tasks = send(engine, 16)
        await until(lambda: engine.replicas[0].num_tokens > 80)
        launch.server.break_connections()
        await asyncio.sleep(0.1)
        assert (await engine.health()).num_running == 0
        await launch.kill()
        assert check_all(await asyncio.gather(*tasks), 40) == {0}
        assert engine.counters()["servers_restarted"] == 1


async def test_a_hung_server_is_replaced_though_it_says_that_it_is_well() -> None:
    launches = FakeLaunch(delay=0.005), FakeLaunch(delay=0.005)
    async with running(*launches, stall_timeout_seconds=2.0) as engine:
        tasks = send(engine, 16, max_new_tokens=60)
        await until(lambda: engine.replicas[0].num_tokens > 40)
        launches[0].server.hang()
        assert check_all(await asyncio.gather(*tasks), 60) == {0}
        await until(lambda: engine.counters()["servers_serving"] == 2)
        assert len(launches[0].servers) == 2


async def test_messages_without_tokens_are_no_progress() -> None:
    async def chatter(body: dict[str, Any], reply: Any) -> None:
        while True:
            await reply.write(b'data: {"new": []}\n\n')
            await asyncio.sleep(0.02)

    launch = FakeLaunch()
    async with running(launch, stall_timeout_seconds=2.0) as engine:
        launch.server._stream = chatter  # type: ignore[method-assign]
        check_response(await asyncio.wait_for(engine.agenerate(request()), 120.0), 40)
        assert engine.counters()["servers_restarted"] == 1


async def test_a_pause_is_no_stall() -> None:
    launch = FakeLaunch(delay=0.005)
    async with running(launch, stall_timeout_seconds=2.0) as engine:
        tasks = send(engine, 4)
        await until(lambda: engine.replicas[0].num_tokens > 8)
        await engine.pause()
        before, busy_seconds = engine.replicas[0].num_tokens, (await engine.health()).busy_seconds
        late = asyncio.create_task(engine.agenerate(request(50)))
        await asyncio.sleep(4.0)
        health = await engine.health()
        assert health.num_generated_tokens - before <= 4 * 4, "what was on its way"
        assert (health.num_running, health.num_waiting) == (4, 1)
        assert health.busy_seconds - busy_seconds < 1.0
        await engine.resume()
        check_all(await asyncio.gather(*tasks, late), 40)
        assert engine.counters()["servers_restarted"] == 0


async def test_a_restarted_server_serves_only_current_weights() -> None:
    launches, transport = (FakeLaunch(delay=0.003), FakeLaunch(delay=0.003)), FakeTransport()
    async with running(*launches, transport=transport) as engine:
        await publish(engine, transport, 1)
        await publish(engine, transport, 2)
        await launches[0].kill()
        tasks = send(engine, 32)
        await until(lambda: engine.counters()["servers_serving"] == 2)
        tasks += send(engine, 32)
        assert check_all(await asyncio.gather(*tasks), 40) == {2}
        assert launches[0].server.version == 2
        assert "load" in launches[0].server.calls


async def test_all_servers_gone_ends_the_engine_with_the_cause() -> None:
    launch = FakeLaunch(delay=0.005)
    async with running(launch, all_gone_timeout_seconds=0.5) as engine:
        tasks = send(engine, 8)
        await until(lambda: launch.server.num_active == 8)
        launch.script["ready"] = False
        started = time.monotonic()
        await launch.kill()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert 0.4 < time.monotonic() - started < 60.0
        for result in results:
            assert isinstance(result, EngineDiedError)
            assert "no server for 0.5 s" in str(result)
            assert "was killed by signal 9; its last lines:\nfake server's last line" in str(result)
        for call in (engine.health, engine.pause, lambda: engine.agenerate(request())):
            with pytest.raises(EngineDiedError, match="killed by signal 9"):
                await call()


async def test_a_server_that_answers_but_loads_nothing_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*args: object) -> None:
        nonlocal num_loads
        num_loads += 1
        raise ServerError("no such weights", 500)

    launch, transport, num_loads = FakeLaunch(restarts=False), FakeTransport(), 0
    async with running(launch, transport=transport, all_gone_timeout_seconds=0.8) as engine:
        await publish(engine, transport, 1)
        monkeypatch.setattr(engine.replicas[0].dialect, "load", refuse)
        await publish(engine, transport, 2)
        started = time.monotonic()
        with pytest.raises(EngineDiedError, match=r"no server for 0\.8 s.*no such weights"):
            await asyncio.wait_for(engine.agenerate(request()), 120.0)
        assert 0.6 < time.monotonic() - started < 60.0
        assert num_loads <= 2 * 5, "with growing pauses"


async def test_servers_that_are_paused_are_not_gone() -> None:
    launch, transport = FakeLaunch(delay=0.003), FakeTransport()
    async with running(launch, transport=transport, all_gone_timeout_seconds=0.4) as engine:
        tasks = send(engine, 4)
        launch.server.load_seconds = 0.8
        await publish(engine, transport, 1)
        await engine.pause()
        await launch.kill()
        await until(lambda: engine.replicas[0].state == "paused" and engine.replicas[0].version == 1)
        await asyncio.sleep(0.8)
        await engine.resume()
        check_all(await asyncio.gather(*tasks), 40)


async def test_the_engine_ends_when_no_server_is_started_again() -> None:
    launch = FakeLaunch(delay=0.01)
    async with running(launch, max_restarts=1) as engine:
        task = asyncio.create_task(engine.agenerate(request(max_new_tokens=300)))
        for _ in range(2):
            await until(lambda: bool(launch.server.num_active))
            await launch.kill()
        with pytest.raises(EngineDiedError, match="none is started again"):
            await task


async def test_a_server_that_cannot_be_started_again_says_why() -> None:
    class Once(FakeLaunch):
        async def __call__(self) -> tuple[str, Any]:
            if self.servers:
                raise EngineError("no process can be made")
            return await super().__call__()

    launch = Once()
    async with running(launch, max_restarts=2) as engine:
        await launch.kill()
        with pytest.raises(EngineDiedError, match="fake server 0 could not be started: no process can be made"):
            await engine.agenerate(request())


async def test_a_server_that_cannot_be_ended_is_given_up_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    launches, notices = (FakeLaunch(), FakeLaunch()), list[str]()

    async def stop(grace_seconds: float) -> None:
        raise EngineError("server process 1 did not end")

    async with running(*launches, notify=notices.append) as engine:
        monkeypatch.setattr(launches[0].processes[-1], "stop", stop)
        await launches[0].kill()
        await until(lambda: bool(notices))
        assert notices[0].endswith("it is not started again: server process 1 did not end")
        check_all(await asyncio.gather(*send(engine, 8)), 40)
        assert len(launches[0].servers) == 1


async def test_a_server_of_somebody_else_comes_back() -> None:
    launch, transport = FakeLaunch(restarts=False, delay=0.003), FakeTransport()
    other = FakeLaunch(delay=0.003)
    async with running(launch, other, transport=transport) as engine:
        await publish(engine, transport, 1)
        tasks = send(engine, 16)
        await until(lambda: launch.server.num_active > 4)
        port = launch.server.port
        await launch.server.die()
        await publish(engine, transport, 2)
        again = FakeServer(delay=0.003)
        await again.start(port)
        launch.servers.append(again)
        await until(lambda: engine.counters()["servers_serving"] == 2)
        assert again.version == 2
        check_all(await asyncio.gather(*tasks), 40)
        assert check_all(await asyncio.gather(*send(engine, 8)), 40) == {2}
        assert engine.counters()["servers_restarted"] == 0


async def test_a_server_of_somebody_else_gets_whole_weights_before_its_first_token() -> None:
    launch, transport = FakeLaunch(restarts=False), FakeTransport()
    async with running(launch, transport=transport) as engine:
        launch.server.load_failures = 2
        await publish(engine, transport, 1)
        assert engine.replicas[0].state == "gone"
        launch.server.calls.clear()
        launch.server.refusals = [500]
        await until(lambda: engine.counters()["servers_serving"] == 1)
        assert launch.server.calls == ["facts", *["pause", "load", "resume"] * 2], "no first token, so once more"
        assert [body["id"].startswith("first-token") for body in launch.server.bodies] == [True] * 3
        assert check_response(await engine.agenerate(request()), 40) == {1}


async def test_a_server_that_hangs_at_its_first_token_does_not_serve() -> None:
    launches, transport = (FakeLaunch(restarts=False), FakeLaunch()), FakeTransport()
    async with running(*launches, transport=transport, stall_timeout_seconds=2.0) as engine:
        launches[0].server.load_failures = 2

        async def hang(body: dict[str, Any], reply: Any) -> None:
            await asyncio.sleep(60.0)

        launches[0].server._stream = hang  # type: ignore[method-assign]
        await publish(engine, transport, 1)
        await until(lambda: "made no first token within 2 s" in engine.replicas[0].cause)
        await publish(engine, transport, 2)
        assert check_all(await asyncio.gather(*send(engine, 8)), 40) == {2}


@pytest.mark.parametrize(
    "lie",
    [
        lambda spans: [],
        lambda spans: [[a, b, version + 1] for a, b, version in spans],
        lambda spans: [[a, b, "default"] for a, b, version in spans],
        lambda spans: [[a, b - 1, version] for a, b, version in spans],
        lambda spans: [[a, b, None] for a, b, version in spans],
    ],
)
async def test_a_server_that_lies_about_versions_is_replaced(lie: Callable[[list[Any]], list[Any]]) -> None:
    launches = FakeLaunch(), FakeLaunch()
    async with running(*launches) as engine:
        launches[0].server.lie = lie
        assert check_all(await asyncio.gather(*send(engine, 8)), 40) == {0}
        await until(lambda: len(launches[0].servers) == 2)
        assert "cannot be" in engine.replicas[0].cause or engine.replicas[0].state == "serving"
        await until(lambda: engine.counters()["servers_serving"] == 2)
        for launch in launches:
            launch.server.lie = lie
        with pytest.raises(EngineError, match="two servers sent replies that cannot be"):
            await engine.agenerate(request())


async def test_replies_that_end_too_early_are_gone_on_from() -> None:
    launch = FakeLaunch()
    async with running(launch) as engine:
        launch.server.short_by = 3
        launch.server.interval = 1

        async def mend() -> None:
            await until(lambda: len(launch.server.bodies) > 2)
            launch.server.short_by = 0

        mending = asyncio.create_task(mend())
        check_response(await engine.agenerate(request()), 40)
        await mending


async def test_cancelled_requests_free_their_slots() -> None:
    launch = FakeLaunch(delay=0.01)
    async with running(launch) as engine:
        tasks = send(engine, 16, max_new_tokens=300)
        await until(lambda: launch.server.num_active == 16)
        for task in tasks[:15]:
            task.cancel()
        await until(lambda: launch.server.num_active == 1)
        assert (await engine.health()).num_running == 1
        tasks[15].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def test_close_ends_requests_that_run_and_wait() -> None:
    launch = FakeLaunch(delay=0.01)
    async with running(launch) as engine:
        tasks = send(engine, 4, max_new_tokens=300)
        await until(lambda: launch.server.num_active == 4)
        await engine.pause()
        tasks += send(engine, 4)
        await asyncio.sleep(0.01)
        await engine.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, EngineDiedError)
            assert "the engine was closed" in str(result)
        with pytest.raises(EngineError, match="starts once"):
            await engine.start()


async def test_an_engine_must_be_started() -> None:
    engine = make_engine([FakeLaunch()])
    with pytest.raises(EngineError, match="not started"):
        await engine.agenerate(request())
    await engine.close()


@pytest.mark.parametrize("kv_on_update", ["recompute", "keep", "abort"])
async def test_updates_in_flight_mix_no_versions(kv_on_update: str) -> None:
    launches, transport = (FakeLaunch(), FakeLaunch()), FakeTransport()
    async with running(*launches, transport=transport, kv_on_update=kv_on_update) as engine:
        tasks = send(engine, 64, max_new_tokens=150)
        for version in range(1, 7):
            await asyncio.sleep(0.03)
            await publish(engine, transport, version)
            assert [replica.version for replica in engine.replicas] == [version] * 2
            assert (await engine.health()).version == version
        versions = check_all(await asyncio.gather(*tasks), 150)
        assert len(versions) > 3
        assert check_response(await engine.agenerate(request()), 40) == {6}
        assert launches[0].server.kv_on_update == kv_on_update
        assert (await engine.health()).num_updates == 6


async def test_updates_that_abort_a_request_before_its_first_token_are_not_its_fault() -> None:
    launch, transport = FakeLaunch(delay=0.2), FakeTransport()
    async with running(launch, transport=transport, kv_on_update="abort") as engine:
        launch.server.interval = 40
        task = asyncio.create_task(engine.agenerate(request(max_new_tokens=20)))
        for version in range(1, 13):
            await until(lambda: len(launch.server.bodies) > version)  # noqa: B023
            await publish(engine, transport, version)
        launch.server.delay = 0.001
        check_response(await task, 20)
        assert engine.counters()["requests_continued"] == 12


async def test_kills_during_updates_guess_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_engine, "_MAX_LOSSES", 99)
    launches, transport = (FakeLaunch(), FakeLaunch()), FakeTransport()
    async with running(*launches, transport=transport, max_restarts=99) as engine:
        tasks = send(engine, 48, max_new_tokens=200)
        for version in range(1, 9):
            await asyncio.sleep(0.02)
            victim = launches[version % 2]
            killing = asyncio.create_task(victim.kill())
            await publish(engine, transport, version)
            await killing
        check_all(await asyncio.gather(*tasks), 200)
        await until(lambda: engine.counters()["servers_serving"] == 2)
        assert [replica.version for replica in engine.replicas] == [8, 8]


async def test_a_server_that_ends_while_it_gets_its_weights_blocks_nobody() -> None:
    launches, transport = (FakeLaunch(), FakeLaunch()), FakeTransport()
    async with running(*launches, transport=transport) as engine:
        await publish(engine, transport, 1)
        launches[0].script["load_seconds"] = 60.0
        await launches[0].kill()
        await until(lambda: len(launches[0].servers) == 2 and "load" in launches[0].server.calls)
        launches[0].script["load_seconds"] = 0.0
        # Its process is gone, and its connections stay open: somebody else has them, too.
        launches[0].processes[-1]._ended.set()
        await until(lambda: len(launches[0].servers) == 3 and engine.counters()["servers_serving"] == 2)
        await publish(engine, transport, 2)
        assert [replica.version for replica in engine.replicas] == [2, 2]


async def test_of_updates_at_once_the_newest_wins() -> None:
    launch, transport = FakeLaunch(), FakeTransport()
    async with running(launch, transport=transport) as engine:
        launch.server.calls.clear()
        transport.write(5)
        await asyncio.gather(*(engine.update_weights(version) for version in (5, 3, 4, 5)))
        assert launch.server.calls.count("load") == 1
        assert (await engine.health()).version == 5
        with pytest.raises(EngineError, match="version 6 are not staged"):
            await engine.update_weights(6)
        await publish(engine, transport, 5)
        assert launch.server.calls.count("load") == 2, "the same version again is staged anew"


async def test_an_update_keeps_a_paused_engine_paused() -> None:
    launch, transport = FakeLaunch(delay=0.003), FakeTransport()
    async with running(launch, transport=transport) as engine:
        tasks = send(engine, 8)
        await until(lambda: engine.replicas[0].num_tokens > 30)
        await engine.pause()
        await publish(engine, transport, 1)
        assert launch.server.is_paused
        await engine.resume()
        assert check_all(await asyncio.gather(*tasks), 40) == {0, 1}


async def test_an_update_whose_caller_is_cancelled_is_carried_out() -> None:
    launches, transport = (FakeLaunch(load_seconds=0.3), FakeLaunch()), FakeTransport()
    async with running(*launches, transport=transport) as engine:
        tasks = send(engine, 16, max_new_tokens=150)
        await until(lambda: min(replica.num_tokens for replica in engine.replicas) > 30)
        transport.write(1)
        update = asyncio.create_task(engine.update_weights(1))
        await until(lambda: "load" in launches[0].server.calls)
        update.cancel()
        with pytest.raises(asyncio.CancelledError):
            await update
        assert transport.lock.locked(), "a server still loads what is staged"
        await publish(engine, transport, 2)
        assert check_all(await asyncio.gather(*tasks), 150) >= {0, 2}
        assert [launch.server.calls[-6:] for launch in launches] == [["pause", "load", "resume"] * 2] * 2
        counters = engine.counters()
        assert (counters["servers_restarted"], counters["updates_redone"]) == (0, 0)


async def test_an_engine_that_is_closed_in_an_update_leaves_nothing() -> None:
    launch, transport = FakeLaunch(load_seconds=30.0), FakeTransport()
    async with running(launch, transport=transport) as engine:
        transport.write(1)
        update = asyncio.create_task(engine.update_weights(1))
        await until(lambda: "load" in launch.server.calls)
        update.cancel()
    with pytest.raises(asyncio.CancelledError):
        await update
    assert not transport.lock.locked()


async def test_a_server_that_came_back_ahead_of_the_others_does_not_stand_for_them() -> None:
    launches, transport = (FakeLaunch(), FakeLaunch()), FakeTransport()
    async with running(*launches, transport=transport) as engine:
        await publish(engine, transport, 1)
        transport.write(3)
        await launches[0].kill()
        await until(lambda: engine.replicas[0].version == 3 and engine.replicas[0].state == "serving")
        assert (await engine.health()).version == 1
        await engine.update_weights(2)
        assert [replica.version for replica in engine.replicas] == [3, 3]
        assert (await engine.health()).version == 3


async def test_a_sleeping_engine_wakes_with_new_weights() -> None:
    launch, transport = FakeLaunch(delay=0.003), FakeTransport()
    async with running(launch, transport=transport) as engine:
        await publish(engine, transport, 1)
        tasks = send(engine, 8)
        await until(lambda: engine.replicas[0].num_tokens > 30)
        await engine.sleep()
        await engine.sleep()
        assert launch.server.asleep
        await engine.resume()
        assert launch.server.asleep, "only weights wake it"
        await publish(engine, transport, 2)
        assert check_all(await asyncio.gather(*tasks), 40) == {1, 2}
        await engine.sleep()
        await launch.kill()
        await asyncio.sleep(0.2)
        assert len(launch.servers) == 1, "nothing is started while the trainer has the device"
        await engine.wake_up()
        assert check_response(await engine.agenerate(request()), 40) == {2}


async def test_servers_lost_in_sleep_are_missed_only_once_awake() -> None:
    launch, transport = FakeLaunch(), FakeTransport()
    async with running(launch, transport=transport, all_gone_timeout_seconds=2.0) as engine:
        await publish(engine, transport, 1)
        await engine.sleep()
        await launch.kill()
        await asyncio.sleep(2.5)
        await engine.wake_up()
        assert check_response(await engine.agenerate(request()), 40) == {1}
        launch.script["ready"] = False
        await engine.sleep()
        await launch.kill()
        await asyncio.sleep(2.5)
        started = time.monotonic()
        await engine.wake_up()
        with pytest.raises(EngineDiedError, match=r"no server for 2 s"):
            await engine.agenerate(request())
        assert time.monotonic() - started > 1.9


@pytest.mark.parametrize("launch_seconds", [0.0, 0.3])
async def test_a_server_that_just_starts_gives_its_memory_back(launch_seconds: float) -> None:
    class Slow(FakeLaunch):
        async def __call__(self) -> tuple[str, Any]:
            called.set()
            await asyncio.sleep(launch_seconds)
            return await super().__call__()

    called = asyncio.Event()
    launches, transport = (Slow(), FakeLaunch()), FakeTransport()
    async with running(*launches, transport=transport, max_restarts=1) as engine:
        await publish(engine, transport, 1)
        launches[0].script["ready"] = False
        called.clear()
        await launches[0].kill()
        await called.wait()
        await until(lambda: launch_seconds > 0 or engine.replicas[0].state == "starting")
        await engine.sleep()
        await until(lambda: len(launches[0].servers) == 2 and launches[0].server.is_dead)
        launches[0].script["ready"] = True
        await asyncio.sleep(0.2)
        assert len(launches[0].servers) == 2
        await engine.wake_up()
        await until(lambda: engine.counters()["servers_serving"] == 2)
        assert engine.counters()["servers_restarted"] == 1
        assert check_all(await asyncio.gather(*send(engine, 8)), 40) == {1}


async def test_engines_without_a_transport_say_so() -> None:
    async with running(FakeLaunch()) as engine:
        calls: list[Callable[[], Awaitable[None]]] = [lambda: engine.update_weights(1), engine.sleep, engine.wake_up]
        for call in calls:
            with pytest.raises(EngineError, match="without a weight transport"):
                await call()


async def test_a_start_that_fails_says_why_and_leaves_nothing() -> None:
    launches = FakeLaunch(), FakeLaunch(ready=False)
    with pytest.raises(EngineDiedError, match=r"not ready within 0.5 s.*\n?.*fake server's last line"):
        async with running(*launches, start_timeout_seconds=0.5):
            pass
    with pytest.raises(EngineError, match=r"takes 100 tokens, rollout\.max_length is 400"):
        async with running(FakeLaunch(facts={"max_length": 100})):
            pass
    with pytest.raises(EngineError, match="serves a model with 50 ids"):
        async with running(FakeLaunch(facts={"vocab_size": 50})):
            pass
    for nonsense in ("<html>", ["a"]):
        with pytest.raises(EngineError, match=r"does not answer as a server of fake does.*rollout\.base_urls"):
            async with running(FakeLaunch(facts=nonsense)):
                pass


async def test_a_server_that_dies_at_its_start_shows_its_last_lines() -> None:
    launch = FakeLaunch(ready=False)
    engine = make_engine([launch])
    start = asyncio.create_task(engine.start())
    await until(lambda: bool(launch.processes))
    await launch.kill()
    with pytest.raises(EngineDiedError, match=r"killed by signal 9; its last lines:\nfake"):
        await start


async def test_staged_weights_are_there_from_the_start() -> None:
    launches, transport = (FakeLaunch(), FakeLaunch()), FakeTransport()
    transport.write(7)
    async with running(*launches, transport=transport) as engine:
        assert check_all(await asyncio.gather(*send(engine, 8)), 40) == {7}
        assert (await engine.health()).version == 7


async def test_sessions_keep_their_server() -> None:
    launches = FakeLaunch(), FakeLaunch()
    async with running(*launches) as engine:
        for turn in range(6):
            for session in range(10):
                turn_request = request(session, max_new_tokens=4)
                turn_request.session_id = f"episode-{session}"
                turn_request.request_id = f"episode-{session}-{turn}"
                await engine.agenerate(turn_request)
        homes = [{body["id"].rsplit("-", 2)[0] for body in launch.server.bodies} - {"first"} for launch in launches]
        assert not homes[0] & homes[1]
