"""Which server a request goes to."""

from __future__ import annotations

from dataclasses import dataclass

from areal_x.engine.servers.router import Router


@dataclass(eq=False)
class Server:
    num_running: int = 0
    num_slots: int = 16


def test_the_least_loaded_gets_it() -> None:
    first, second = Server(3), Server(2)
    assert Router().pick([first, second]) is second
    small, large = Server(2, num_slots=4), Server(3, num_slots=16)
    assert Router().pick([small, large]) is large
    assert Router().pick([]) is None


def test_a_session_stays_where_its_prefix_is() -> None:
    router, first, second = Router(), Server(), Server(1)
    assert router.pick([first, second], "s") is first
    first.num_running = 4
    assert router.pick([first, second], "s") is first
    assert router.pick([first, second], "other") is second


def test_a_session_leaves_a_server_that_is_clearly_overloaded() -> None:
    router, first, second = Router(), Server(), Server(1)
    assert router.pick([first, second], "s") is first
    first.num_running = 6
    assert router.pick([first, second], "s") is second
    first.num_running = 0
    assert router.pick([first, second], "s") is second, "its prefix has moved with it"
    second.num_running, second.num_slots, first.num_running = 3, 3, 2
    assert router.pick([first, second], "s") is first, "the home has no free slot"


def test_a_session_leaves_a_server_that_is_gone() -> None:
    router, first, second = Router(), Server(), Server()
    home = router.pick([first, second], "s")
    other = second if home is first else first
    assert router.pick([other], "s") is other
    other.num_running = 3
    router.forget(other)
    assert router.pick([first, second], "s") is not other


def test_memory_of_sessions_is_bounded() -> None:
    router, servers = Router(max_sessions=10), [Server(), Server()]
    for number in range(1000):
        router.pick(servers, f"s{number}")
        router.pick(servers, "kept")
    assert len(router) == 10
    servers[0].num_running = servers[1].num_running = 1
    home = router.pick(servers, "kept")
    assert home is not None
    home.num_running = 2
    assert router.pick(servers, "kept") is home
