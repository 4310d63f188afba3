"""The sandbox's own machinery: values that pass between processes, and the system call filter."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.reward.sandbox.child.seccomp import compile_filter
from areal_x.reward.sandbox.child.syscalls import FILTERED, numbers
from areal_x.reward.sandbox.child.values import InvalidValueError, decode, dump, encode, load

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.fractions(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(plain)
def test_values_pass_exactly(value: object) -> None:
    def refuse(other: object) -> list[object]:
        raise AssertionError(other)

    back = decode(load(dump(encode(value, refuse))), refuse)
    assert back == value and repr(back) == repr(value)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=2), st.lists, max_leaves=10))
def test_odd_messages_are_no_values(data: object) -> None:
    def refuse(other: list[object]) -> object:
        raise InvalidValueError(str(other))

    try:
        decode(data, refuse)
    except InvalidValueError:
        pass


def run_filter(code: bytes, arch: int, number: int, arguments: tuple[int, ...] = (0, 0)) -> int:
    """What the kernel's machine would return for a call."""
    words = {0: number, 4: arch, 16: arguments[0] & 0xFFFFFFFF, 24: arguments[1] & 0xFFFFFFFF}
    place = accumulator = 0
    while True:
        operation = int.from_bytes(code[place : place + 2], sys.byteorder)
        if_true, if_false = code[place + 2], code[place + 3]
        value = int.from_bytes(code[place + 4 : place + 8], sys.byteorder)
        place += 8
        if operation == 0x20:
            accumulator = words[value]
        elif operation == 0x06:
            return value
        else:
            test = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value}
            test[0x45] = bool(accumulator & value)
            place += 8 * (if_true if test[operation] else if_false)


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)])
def test_the_filter_allows_its_list_and_nothing_else(machine: str, arch: int) -> None:
    code, allow, refuse = compile_filter(machine), 0x7FFF0000, 0x50026
    allowed, column = set(numbers(machine)), 0 if machine == "x86_64" else 1
    special = {row[column] for row in FILTERED.values()}
    for number in [*range(600), 0x40000000, 0x40000001, 0xFFFFFFFF]:
        if number not in special:
            assert run_filter(code, arch, number) == (allow if number in allowed else refuse), number
    assert run_filter(code, arch ^ 1, 1) == 0x80000000
    clone, socket_call = FILTERED["clone"][column], FILTERED["socket"][column]
    assert run_filter(code, arch, clone, (0x11, 0)) == allow
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert run_filter(code, arch, clone, (0x11 | flag, 0)) == 0x50001
    assert [run_filter(code, arch, socket_call, (family, 0)) == allow for family in (1, 2, 10, 16, 17, 38, 40)] == [
        True
    ] + [False] * 6
    assert run_filter(code, arch, FILTERED["ioctl"][column], (0, 0x5412)) != allow
    assert run_filter(code, arch, FILTERED["prctl"][column], (4, 1)) != allow
