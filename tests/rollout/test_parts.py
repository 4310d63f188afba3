"""How admission follows a trainer that takes a step in parts."""

from __future__ import annotations

from areal_x.rollout.parts import READY_GROUPS, ReadyLimit, max_ready_groups


def test_only_a_step_in_parts_has_a_small_store() -> None:
    assert max_ready_groups(4, 4) is None
    assert max_ready_groups(2, 32) == READY_GROUPS
    assert max_ready_groups(20, 32) == 20


def test_a_whole_step_has_a_switch() -> None:
    limit = ReadyLimit(None, 8)
    for _ in range(100):
        limit.on_asked(True)
    assert [limit.share(num_ready) for num_ready in (-3, 0, 9, 10, 30)] == [1, 1, 1, 0, 0]


def test_admission_slows_down_as_groups_gather() -> None:
    limit = ReadyLimit(8, 32)
    assert [limit.share(num_ready) for num_ready in (-8, 0, 4, 6, 8, 12, 20)] == [1, 1, 1, 0.75, 0.5, 0, 0]


def test_the_limit_rises_with_waits_and_stays_in_its_range() -> None:
    limit = ReadyLimit(8, 32)
    before = limit.share(8)
    limit.on_asked(True)
    raised = limit.share(8)
    assert raised > before
    for _ in range(19):
        limit.on_asked(False)
    assert abs(limit.share(8) - before) < 1e-9  # one wait in twenty keeps it where it is
    for _ in range(1000):
        limit.on_asked(False)
    assert limit.share(6) == 0 < limit.share(5)
    for _ in range(1000):
        limit.on_asked(True)
    assert limit.share(7) == 1 and limit.share(20) > 0 == limit.share(21)
