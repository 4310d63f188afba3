"""The step line and the display: fixed columns, and no terminal that can stop a run."""

from __future__ import annotations

import io
import os
import select
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.observe import RunDisplay, reward_parts, step_header, step_line

METRICS: dict[str, Any] = {
    "step": 12,
    "version": 11,
    "reward/mean": 0.8125,
    "reward/std": 0.2,
    "reward/format": 1.0,
    "reward/accuracy": 0.77,
    "eval/arithmetic/accuracy": 0.9,
    "train/loss": -0.0123,
    "staleness/lag/0": 100,
    "staleness/lag/2": 300,
    "rollout/masked_token_share": 0.0042,
    "perf/samples_per_second": 912.34,
    "perf/fraction_of_bound": 0.912,
    "perf/step_seconds": 0.561,
}
PARTS = ["accuracy", "format"]


def test_a_line_says_everything_under_its_heading() -> None:
    header, line = step_header(100, PARTS), step_line(METRICS, 100, PARTS)
    assert line.split() == [
        "12/100",
        "11",
        "0.812",
        "0.770",
        "1.000",
        "-0.0123",
        "1.5/2",
        "0.4%",
        "912.3",
        "0.91",
        "0.56",
    ]
    assert len(header) == len(line)
    for heading, value in (("loss", "-0.0123"), ("samples/s", "912.3"), ("F", "0.91")):
        assert header.index(heading) + len(heading) == line.index(value) + len(value)


def test_reward_statistics_are_not_parts() -> None:
    assert reward_parts(METRICS) == PARTS


@given(
    st.fixed_dictionaries(
        {"step": st.integers(0, 999)},
        optional={
            name: st.none() | st.floats() | st.integers(-(10**12), 10**12)
            for name in METRICS
            if name != "step" and "lag" not in name
        }
        | {"staleness/lag/3": st.integers(0, 10**9)},
    )
)
def test_every_line_is_as_wide_as_the_heading(metrics: dict[str, Any]) -> None:
    assert len(step_line(metrics, 999, PARTS)) == len(step_header(999, PARTS))


def test_plain_output_is_phases_a_heading_and_lines() -> None:
    stream = io.StringIO()
    display = RunDisplay(100, stream=stream)
    display.phase("warm start", 1, 50)
    display.phase("rollout")
    display.phase("warm start", 2, 50)
    display.live(reward=0.5, in_flight=12)
    display.step(METRICS)
    display.step({**METRICS, "step": 13})
    display.close()
    display.close()
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["warm start", "rollout"]
    assert lines[2] == step_header(100, PARTS)
    assert [line.split()[0] for line in lines[3:]] == ["12/100", "13/100"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("term", ["xterm-256color", "dumb", "", "no-such-terminal"])
@pytest.mark.parametrize("columns", ["0", "7", "200", "many"])
def test_no_terminal_stops_a_run(term: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", columns)
    stream = Terminal()
    display = RunDisplay(100, stream=stream)
    display.phase("rollout [bold] and [/nonsense]")
    display.step(METRICS)
    display.live(reward=0.9, queue="[red]")
    display.close()
    assert step_line(METRICS, 100, PARTS) in stream.getvalue()


def test_no_progress_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    display = RunDisplay(100, progress=False, stream=stream)
    display.step(METRICS)
    display.close()
    assert "\x1b" not in stream.getvalue()


def test_a_closed_pipe_silences_the_display() -> None:
    read_end, write_end = os.pipe()
    stream = os.fdopen(write_end, "w")
    display = RunDisplay(100, stream=stream)
    os.close(read_end)
    display.phase("training")
    display.step(METRICS)
    display.step(METRICS)
    display.close()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_terminal_that_cannot_write_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    display = RunDisplay(100, stream=io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    display.print("0.3 → 0.9")
    assert raw.getvalue() == b"0.3 ? 0.9\n"


def test_a_terminal_that_goes_away_silences_the_live_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    controller, terminal = os.openpty()
    stream = os.fdopen(terminal, "w")
    display = RunDisplay(100, stream=stream)
    display.phase("training")
    os.close(controller)
    display.step(METRICS)
    display.live(reward=0.5)
    display.step(METRICS)
    display.close()


def test_columns_that_come_later_get_a_new_heading() -> None:
    stream = io.StringIO()
    display = RunDisplay(100, stream=stream)
    display.step({"step": 0, "eval/arithmetic/accuracy": 0.3})
    display.step(METRICS)
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["step", "0/100", "step", "12/100"]
    assert len(lines[2]) == len(lines[3])


def read_until(terminal: int, expected: str, seconds: float = 60.0) -> str:
    """What a terminal got, up to ``expected``: the kernel hands it over in pieces."""
    read = b""
    deadline = time.monotonic() + seconds
    while expected.encode() not in read:
        if not select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            break
        read += os.read(terminal, 1 << 20)
    return read.decode(errors="replace")


def test_a_real_terminal_shows_phase_reward_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    controller, terminal = os.openpty()
    os.set_blocking(controller, False)
    with os.fdopen(terminal, "w") as stream:
        display = RunDisplay(100, stream=stream)
        display.phase("warm start", 3, 50)
        display.live(reward=0.25, in_flight=7)
        display.step(METRICS)
        display.close()
        text = read_until(controller, step_line(METRICS, 100, PARTS))
    os.close(controller)
    assert "warm start 3/50" in text
    assert "in flight 7" in text
    assert step_line(METRICS, 100, PARTS) in text
