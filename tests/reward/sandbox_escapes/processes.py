"""Hurting, watching and outliving other processes."""

from __future__ import annotations

from sandbox_escapes.attempt import UID, Attempt, Scene

SYSCALL = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def _victim_hurt(scene: Scene, output: str) -> bool:
    return scene.victim_hurt()


def _parent_dead(scene: Scene, output: str) -> bool:
    return "PARENT LIVES" not in output


ATTEMPTS = [
    Attempt("kill_process", "import os\nos.kill({{VICTIM}}, 9)", _victim_hurt, victim=True),
    Attempt("stop_process", "import os\nos.kill({{VICTIM}}, 19)", _victim_hurt, victim=True),
    Attempt("kill_group", "import os\nos.killpg({{VICTIM}}, 9)", _victim_hurt, victim=True),
    Attempt(
        "kill_everything",
        f"import os\nif os.geteuid() == 0: os.setuid({UID})\nos.kill(-1, 9)",
        _victim_hurt,
        victim=True,
        needs_root=True,
    ),
    Attempt(
        "kill_by_pidfd",
        "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open({{VICTIM}}), 9)",
        _victim_hurt,
        victim=True,
    ),
    Attempt("kill_parent", "import os\nos.kill(os.getppid(), 9)", _parent_dead, kind="parent"),
    Attempt("kill_own_group", "import os\nos.kill(0, 9)", _parent_dead, kind="parent"),
    Attempt("see_processes", "import os\nprint('DONE' if '{{VICTIM}}' in os.listdir('/proc') else '')", victim=True),
    Attempt("probe_process", "import os\nos.kill({{VICTIM}}, 0)\nprint('DONE')", victim=True),
    Attempt(
        "trace_process",
        SYSCALL + "assert libc.ptrace(16, {{VICTIM}}, 0, 0) == 0\nprint('DONE')",
        victim=True,
    ),
    Attempt(
        "trace_own_child",
        SYSCALL + "pid = os.fork()\nif pid == 0: os._exit(9 if libc.ptrace(0, 0, 0, 0) == 0 else 0)\n"
        "print('DONE' if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9 else '')",
    ),
    Attempt(
        "read_memory_of_process",
        "maps = open('/proc/{{VICTIM}}/maps').read().split('\\n')\nmemory = open('/proc/{{VICTIM}}/mem', 'rb')\n"
        "for line in maps:\n"
        " if '[stack]' in line:\n"
        "  low, high = (int(x, 16) for x in line.split()[0].split('-'))\n  memory.seek(low)\n"
        "  text = memory.read(high - low)\n  at = text.find(b'token-')\n  print(text[at:at + 38].decode())",
        victim=True,
    ),
    Attempt("read_own_memory_file", "print('DONE' if open('/proc/self/mem', 'rb') else '')"),
    Attempt(
        "read_memory_by_call",
        SYSCALL + "class V(ctypes.Structure): _fields_ = [('b', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
        "source = ctypes.create_string_buffer(b'x' * 8)\ntarget = ctypes.create_string_buffer(8)\n"
        "n = libc.process_vm_readv(os.getpid(), ctypes.byref(V(ctypes.addressof(target), 8)), 1,"
        " ctypes.byref(V(ctypes.addressof(source), 8)), 1, 0)\nprint('DONE' if n == 8 else '')",
    ),
    Attempt(
        "steal_descriptor",
        SYSCALL
        + (
            "fd = libc.syscall(434, {{VICTIM}}, 0)\nassert fd >= 0\n"
            "assert libc.syscall(438, fd, 1, 0) >= 0\nprint('DONE')"
        ),
        victim=True,
    ),
    Attempt(
        "change_limits_of_process",
        f"import os, resource\nif os.geteuid() == 0: os.setuid({UID})\n"
        "resource.prlimit({{VICTIM}}, resource.RLIMIT_NOFILE, (50, 50))\nprint('DONE')",
        victim=True,
    ),
    Attempt(
        "outlive_as_daemon",
        (
            "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n"
            "  time.sleep(0.4)\n  os.write(1, b'DONE')\n os._exit(0)"
        ),
    ),
    Attempt(
        "outlive_ignoring_signals",
        (
            "import os, signal, time\nfor n in range(1, 65):\n"
            " try: signal.signal(n, signal.SIG_IGN)\n except (OSError, ValueError): pass\n"
            "if os.fork() == 0:\n time.sleep(0.4)\n os.write(1, b'DONE')\n os._exit(0)"
        ),
    ),
    Attempt(
        "outlive_in_thread_of_child",
        (
            "import os, threading, time\nif os.fork() == 0:\n"
            " t = threading.Thread(target=lambda: (time.sleep(0.4), os.write(1, b'DONE')))\n"
            " t.start()\n t.join()\n os._exit(0)"
        ),
    ),
    Attempt("become_subreaper", SYSCALL + "print('DONE' if libc.prctl(36, 1, 0, 0, 0) == 0 else '')"),
    Attempt("become_dumpable", SYSCALL + "print('DONE' if libc.prctl(4, 1, 0, 0, 0) == 0 else '')"),
]
