"""A run that fails in the middle of a training step ends with its own status and its own words."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAILS_IN_A_STEP = """
import asyncio, sys, threading, time, torch
from areal_x.trainer import trainer_thread

trainer_thread._EXIT_SECONDS = float(sys.argv[2])
begun = threading.Event()

class Slow(torch.autograd.Function):
    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        time.sleep(0.01)
        return gradient

def step(seconds):
    begun.set()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        Slow.apply(torch.ones(4, requires_grad=True)).sum().backward()

async def fail():
    thread = trainer_thread.TrainerThread()
    call = asyncio.ensure_future(thread.call(step, float(sys.argv[1])))
    while not begun.is_set():
        await asyncio.sleep(0.01)
    thread.close()
    sys.exit(3)

asyncio.run(fail())
"""


@pytest.mark.parametrize(("seconds", "patience", "status"), [("0.5", "60", 3), ("600", "1", 1)])
def test_a_step_in_progress_does_not_abort_the_process(seconds: str, patience: str, status: int) -> None:
    command = [sys.executable, "-c", FAILS_IN_A_STEP, seconds, patience]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stderr) == (status, "")
