"""Slot bookkeeping against a model of it: a dict of lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_x.engine.inference.messages import WireRequest
from areal_x.engine.inference.slots import SlotTable

NUM_SLOTS, MAX_LENGTH, VOCAB, EOS = 5, 12, 20, 1

operations = st.lists(
    st.one_of(
        st.tuples(st.just("place"), st.integers(1, 6), st.integers(1, 9)),
        st.tuples(st.just("remove"), st.integers(0, 100), st.just(0)),
        st.tuples(st.just("step"), st.integers(0, 2**31), st.just(0)),
    ),
    max_size=60,
)


def request(number: int, length: int, max_new_tokens: int) -> WireRequest:
    ids = (np.arange(length) + number) % VOCAB
    return WireRequest(
        number, ids.astype(np.int32).tobytes(), max_new_tokens, 1.0, 1.0, 0, number, (), (), number % 2 == 0, 0
    )


@settings(deadline=None, max_examples=200)
@given(operations)
def test_rows_hold_what_a_plain_model_holds(steps: list[tuple[str, int, int]]) -> None:
    table = SlotTable(NUM_SLOTS, MAX_LENGTH, VOCAB, [EOS])
    expected: dict[int, list[int]] = {}
    prompts: dict[int, int] = {}
    # What a cache would hold: the sequence that each row's keys and values belong to.
    cache: list[list[int]] = [[] for _ in range(NUM_SLOTS)]
    for number, (kind, first, second) in enumerate(steps):
        if kind == "place" and table.num_free:
            new = request(number, first, second)
            row = table.place(new, 0.0)
            expected[number] = np.frombuffer(new.input_ids, np.int32).tolist()
            prompts[number] = first
            cache[row] = list(expected[number])
        elif kind == "remove" and expected:
            victim = sorted(expected)[first % len(expected)]
            row = table.row_of(victim)
            assert row is not None
            table.remove(row)
            del expected[victim]
        elif kind == "step":
            for source, target, length in table.compact():
                cache[target] = cache[source][:length]
            assert table.num_rows == len(expected)
            if not expected:
                continue
            ids = np.random.default_rng(first).integers(0, VOCAB, table.num_rows)
            stopped, full = table.record(ids, np.zeros(table.num_rows, np.float32), 3)
            for row in range(table.num_rows):
                live = table.requests[row]
                assert live is not None
                token = int(ids[row])
                expected[live.number].append(token)
                cache[row].append(token)
                generated = len(expected[live.number]) - prompts[live.number]
                assert stopped[row] == (token == EOS and not live.ignore_eos)
                assert full[row] == (generated == live.max_new_tokens or len(expected[live.number]) == MAX_LENGTH)
            for row in np.flatnonzero(stopped | full).tolist():
                live = table.requests[row]
                assert live is not None
                table.remove(row)
                del expected[live.number]
        assert table.num_live == len(expected) and table.num_free == NUM_SLOTS - len(expected)
        for live_number, tokens in expected.items():
            row = table.row_of(live_number)
            assert row is not None and row < table.num_rows
            assert table.tokens[row, : table.length[row]].tolist() == tokens == cache[row]
            assert table.last_token[row] == tokens[-1]
            assert len(tokens[table.completion(row)]) == len(tokens) - prompts[live_number]
