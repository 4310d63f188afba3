"""Using up what all share. Harmless amounts; the sandbox of the test allows less."""

from __future__ import annotations

from sandbox_escapes.attempt import Attempt, Scene

FLOOD = "import os\nchunk = b'x' * (1 << 20)\nfor _ in range(8): os.write({fd}, chunk)"


def _flooded(scene: Scene, output: str) -> bool:
    return len(output) > 4 << 20


def _ipc(scene: Scene, output: str) -> bool:
    return bool(scene.ipc_objects())


def _outside_exists(scene: Scene, output: str) -> bool:
    return any(path.exists() for path in scene.outside)


ATTEMPTS = [
    Attempt(
        "fork_bomb",
        "import os, time\npids = []\nfor _ in range(60):\n pid = os.fork()\n if pid == 0: time.sleep(5); os._exit(0)\n"
        " pids.append(pid)\nprint('DONE')\nfor pid in pids: os.kill(pid, 9)",
    ),
    Attempt(
        "thread_bomb",
        (
            "import threading\nstop = threading.Event()\n"
            "for _ in range(60): threading.Thread(target=stop.wait, daemon=True).start()\n"
            "print('DONE')\nstop.set()"
        ),
    ),
    Attempt(
        "fork_bomb_of_orphans",
        (
            "import os, time\nfor _ in range(60):\n pid = os.fork()\n if pid == 0:\n"
            "  if os.fork(): os._exit(0)\n  time.sleep(0.5); os._exit(0)\n"
            " if os.waitpid(pid, 0)[1]: raise SystemExit(1)\nprint('DONE')"
        ),
    ),
    Attempt("memory_bomb", "x = bytearray(300 << 20)\nprint('DONE')"),
    Attempt("memory_bomb_of_small_objects", "x = [bytes(10_000) for _ in range(30_000)]\nprint('DONE')"),
    Attempt(
        "address_space",
        "import mmap\nx = mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\nprint('DONE')",
    ),
    Attempt("memory_file", "import os\nfd = os.memfd_create('x')\nos.ftruncate(fd, 1 << 30)\nprint('DONE')"),
    Attempt(
        "locked_memory",
        (
            "import ctypes\nb = ctypes.create_string_buffer(1 << 20)\n"
            "print('DONE' if ctypes.CDLL(None).mlock(b, 1 << 20) == 0 else '')"
        ),
    ),
    Attempt(
        "endless_loop", "import time\nend = time.monotonic() + 0.9\nwhile time.monotonic() < end: pass\nprint('DONE')"
    ),
    Attempt(
        "endless_loop_ignoring_signals",
        (
            "import signal, time\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nend = time.monotonic() + 0.9\n"
            "while time.monotonic() < end: pass\nprint('DONE')"
        ),
    ),
    Attempt("endless_sleep", "import time\ntime.sleep(0.9)\nprint('DONE')"),
    Attempt(
        "wait_for_child_that_sleeps",
        (
            "import os, time\npid = os.fork()\nif pid == 0: time.sleep(0.9); os._exit(0)\n"
            "os.waitpid(pid, 0)\nprint('DONE')"
        ),
    ),
    Attempt("flood_output", FLOOD.format(fd=1), _flooded),
    Attempt(
        "flood_output_from_child",
        "import os\nif os.fork() == 0:\n " + FLOOD.format(fd=1).replace("\n", "\n ") + "\n os._exit(0)\nos.wait()",
        _flooded,
    ),
    Attempt("flood_errors", "import os\nos.dup2(1, 2)\n" + FLOOD.format(fd=2), _flooded),
    Attempt("fill_disk", "for i in range(6): open(f'f{i}', 'wb').write(bytes(4 << 20))\nprint('DONE')"),
    Attempt(
        "one_large_file",
        "import os\nfd = os.open('f', os.O_RDWR | os.O_CREAT)\nos.ftruncate(fd, 1 << 40)\nprint('DONE')",
    ),
    Attempt("many_files", "for i in range(600): open(f'n{i}', 'w').close()\nprint('DONE')"),
    Attempt("many_open_files", "import os\nx = [os.open('/dev/null', 0) for _ in range(1000)]\nprint('DONE')"),
    Attempt("many_pipes", "import os\nx = [os.pipe() for _ in range(500)]\nprint('DONE')"),
    Attempt(
        "many_timers",
        "import ctypes\nlibc = ctypes.CDLL(None)\nt = ctypes.c_void_p()\n"
        "for _ in range(1000): assert libc.timer_create(1, None, ctypes.byref(t)) == 0\nprint('DONE')",
    ),
    Attempt(
        "raise_limits",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)\n"
        "x = bytearray(300 << 20)\nprint('DONE')",
    ),
    Attempt("left_over_shared_memory", "import ctypes\nctypes.CDLL(None).shmget({{KEY}}, 4096, 0o1600)", _ipc),
    Attempt("left_over_message_queue", "import ctypes\nctypes.CDLL(None).msgget({{KEY}}, 0o1600)", _ipc),
    Attempt("left_over_semaphores", "import ctypes\nctypes.CDLL(None).semget({{KEY}}, 1, 0o1600)", _ipc),
    Attempt(
        "posix_message_queue",
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "assert libc.mq_open(b'/q{{MARK}}', 0o102, 0o600, None) >= 0\nlibc.mq_unlink(b'/q{{MARK}}')\nprint('DONE')",
    ),
    Attempt(
        "left_over_posix_shared_memory",
        "import _posixshmem, os\n_posixshmem.shm_open('/escape-{{MARK}}', os.O_CREAT | os.O_RDWR, mode=0o600)",
        _outside_exists,
    ),
    Attempt("raise_priority", "import os\nos.nice(-5)\nprint('DONE')", needs_root=True),
    Attempt(
        "real_time_priority",
        "import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\nprint('DONE')",
        needs_root=True,
    ),
    Attempt("watch_files", "import ctypes\nprint('DONE' if ctypes.CDLL(None).inotify_init() >= 0 else '')"),
]
