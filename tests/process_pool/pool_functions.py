"""Functions that the pool's tests run in worker processes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from areal_x.process_pool import keep_child

IMPORTED_BY = os.getpid()


def double(x):
    return 2 * x


def describe_ids(ids):
    return [type(ids).__name__, type(ids[0]).__name__ if ids else None, sum(ids)]


def echo(value):
    return value


def length(text):
    return len(text)


def nap(seconds, value=0.0):
    time.sleep(seconds)
    return value


def nap_until(path, seconds):
    """Naps once ``path`` is there; when it did."""
    while not os.path.exists(path):
        time.sleep(0.005)
    return nap_between(seconds)


def nap_between(seconds):
    start = time.monotonic()
    time.sleep(seconds)
    return start, time.monotonic()


def spin():
    while True:
        pass


def spin_in_c():
    pow(7, 10**9)


def stop_itself():
    os.kill(os.getpid(), signal.SIGSTOP)


def ignore_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def escape_and_hang(path):
    """A grandchild in a session of its own, whose parent is gone, and then a hang."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
        os._exit(0)
    Path(path).touch()
    time.sleep(1000)


def leave_a_child():
    if os.fork() == 0:
        time.sleep(1000)
    return 1.0


def keep_a_child():
    """A helper process of the function, which is to live on after the call."""
    pid = os.fork()
    if pid == 0:
        time.sleep(1000)
    assert keep_child(pid)
    return 1.0


def describe_worker():
    return os.getpid(), Path("/proc/self/stat").read_text().split()[0]


def child_returns():
    """The forked child comes back from the function as well; only the worker may answer."""
    pid = os.fork()
    if pid == 0:
        return -1.0
    os.waitpid(pid, 0)
    return 1.0


def fork_bomb():
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.01)  # It tries again, and leaves the cores to those who count.


def count_forks():
    """How many children can be had at once."""
    children = []
    try:
        while len(children) < 1000:
            pid = os.fork()
            if pid == 0:
                time.sleep(1000)
                os._exit(0)
            children.append(pid)
    except OSError:
        pass
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return len(children)


def run_a_program():
    return subprocess.run([sys.executable, "-c", "print(42)"], capture_output=True, text=True, check=True).stdout


def allocate():
    return len(bytearray(10 << 30))


def segfault():
    ctypes.string_at(0)


def exit_now(code):
    os._exit(code)


def close_descriptors():
    os.closerange(0, 4096)
    return 1.0


def close_descriptors_and_hang():
    os.closerange(0, 4096)
    time.sleep(1000)


def crash_once(path):
    if not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 7.0


def count_and_raise(path):
    with open(path, "a") as file:
        file.write("x")
    raise ValueError("told you")


def print_much():
    for _ in range(1024):
        sys.stdout.write("x" * (1 << 20))
        os.write(1, b"x" * (1 << 20))
        os.write(2, b"x" * (1 << 20))
    return 1.0


def print_and_raise():
    print("a clue")
    raise ValueError("with a clue")


def leave_by_system_exit():
    sys.exit(3)


def lambda_value():
    return lambda: 1


class BadMessage(Exception):
    def __str__(self):
        raise RuntimeError("no message")


def raise_bad_message():
    raise BadMessage


def imported_by():
    return IMPORTED_BY, os.getpid()


class Adder:
    def __init__(self, amount):
        self.amount = amount

    def __call__(self, x):
        return x + self.amount

    def add(self, x):
        return x + self.amount
