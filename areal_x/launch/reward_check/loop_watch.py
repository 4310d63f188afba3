"""Notices when the event loop stands still, and in which line of the user's code."""

from __future__ import annotations

import asyncio
import linecache
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import areal_x

__all__ = ["LoopWatch", "Stall"]

_PACKAGE = Path(areal_x.__file__).resolve().parent
_FRAMEWORK = (
    str(Path(asyncio.__file__).resolve().parent),
    threading.__file__,
    "<frozen",
    *(str(_PACKAGE / name) for name in ("api", "launch", "process_pool")),
)


@dataclass(frozen=True, slots=True)
class Stall:
    """The loop did nothing else for so long; ``place`` is the line that it was in."""

    seconds: float
    place: str


class LoopWatch:
    """A thread that asks the running loop for a sign of life and looks at the loop's stack when none comes in time.

    Only stalls inside user code count: a loop that waits for a processor, or for the check itself, is not its fault.

    Args:
        threshold_seconds: how long the loop may be busy with one thing.
    """

    def __init__(self, threshold_seconds: float = 0.1) -> None:
        self.threshold_seconds = threshold_seconds
        self.stalls: list[Stall] = []
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="areal-x-loop-watch", daemon=True)

    def __enter__(self) -> LoopWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            sign, asked_at = threading.Event(), time.monotonic()
            try:
                self._loop.call_soon_threadsafe(sign.set)
            except RuntimeError:  # The loop was closed.
                return
            if not sign.wait(self.threshold_seconds):
                place = self._place()
                while not sign.wait(self.threshold_seconds) and not self._stop.is_set():
                    place = place or self._place()
                if place is not None:
                    self.stalls.append(Stall(time.monotonic() - asked_at, place))
            self._stop.wait(self.threshold_seconds / 5)

    def _place(self) -> str | None:
        """The outermost line of the loop's thread that belongs to neither asyncio nor this package."""
        frame = sys._current_frames().get(self._loop_thread)
        frames: list[FrameType] = []
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        # Above the loop's own frames stand those of who started it: a script, a notebook, a test.
        inside = False
        for frame in reversed(frames):
            name = frame.f_code.co_filename
            if name.startswith(_FRAMEWORK):
                inside = inside or frame.f_code.co_name in ("_run", "_run_once", "run_forever")
            elif inside and not name.endswith("selectors.py"):
                line = linecache.getline(name, frame.f_lineno).strip()
                return f"{Path(name).name}:{frame.f_lineno}{f' ({line})' if line else ''}"
        return None
