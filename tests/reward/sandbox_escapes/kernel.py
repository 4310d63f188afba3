"""Gaining rights, and reaching parts of the kernel that programs have no business with."""

from __future__ import annotations

from sandbox_escapes.attempt import Attempt

CALL = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
NEW_USER = 0x10000000


def _succeeds(expression: str) -> str:
    return CALL + f"print('DONE' if {expression} else '')"


ATTEMPTS = [
    Attempt("be_root", "import os\nos.setuid(0)\nprint('DONE' if os.geteuid() == 0 else '')", needs_root=True),
    Attempt("change_group", "import os\nos.setgroups([0])\nprint('DONE')", needs_root=True),
    Attempt("change_owner", "import os\nopen('f', 'w')\nos.chown('f', 12345, 12345)\nprint('DONE')", needs_root=True),
    Attempt(
        "make_device",
        "import os, stat\nos.mknod('d', 0o600 | stat.S_IFBLK, os.makedev(7, 0))\nprint('DONE')",
        needs_root=True,
    ),
    Attempt(
        "read_memory_device",
        (
            "import os\n"
            "names = [n for n in ('kmsg', 'mem', 'port', 'vda', 'sda', 'nvme0n1') if "
            "os.path.exists(f'/dev/{n}')]\nfor n in names:\n"
            " try: os.open(f'/dev/{n}', os.O_RDONLY)\n except OSError: continue\n print('DONE')"
        ),
        needs_root=True,
    ),
    Attempt("open_terminal", "import os\nos.openpty()\nprint('DONE')"),
    Attempt("new_user_namespace", _succeeds(f"libc.unshare({NEW_USER}) == 0")),
    Attempt("new_network_namespace", _succeeds("libc.unshare(0x40000000) == 0"), needs_root=True),
    Attempt("new_mount_namespace", _succeeds("libc.unshare(0x20000) == 0"), needs_root=True),
    Attempt(
        "clone_with_user_namespace",
        CALL + "n = {'x86_64': 56, 'aarch64': 220}[os.uname().machine]\n"
        f"pid = libc.syscall(n, {NEW_USER} | 17, 0, 0, 0, 0)\nif pid == 0: os._exit(0)\n"
        "print('DONE' if pid > 0 else '')",
    ),
    Attempt(
        "clone3_with_user_namespace",
        CALL + f"a = (ctypes.c_uint64 * 8)({NEW_USER}, 0, 0, 0, 17, 0, 0, 0)\n"
        "pid = libc.syscall(435, a, 64)\nif pid == 0: os._exit(0)\nprint('DONE' if pid > 0 else '')",
    ),
    Attempt(
        "join_namespace",
        CALL + "fd = os.open('/proc/{{VICTIM}}/ns/net', 0)\nprint('DONE' if libc.setns(fd, 0) == 0 else '')",
        victim=True,
        needs_root=True,
    ),
    Attempt(
        "mount_file_system",
        CALL
        + (
            "os.makedirs('m-{{MARK}}', exist_ok=True)\n"
            "print('DONE' if libc.mount(b't', b'm-{{MARK}}', b'tmpfs', 0, None) == 0 else '')"
        ),
        needs_root=True,
        own_mounts=True,
    ),
    Attempt(
        "mount_proc",
        CALL
        + (
            "os.makedirs('m-{{MARK}}', exist_ok=True)\n"
            "print('DONE' if libc.mount(b'p', b'm-{{MARK}}', b'proc', 0, None) == 0 else '')"
        ),
        needs_root=True,
        own_mounts=True,
    ),
    Attempt(
        "remount_root_writable",
        _succeeds("libc.mount(b'none', b'/', None, 32 | 4096, None) == 0"),
        needs_root=True,
        own_mounts=True,
    ),
    Attempt(
        "unmount",
        CALL + "print('DONE' if libc.umount2(b'/dev/shm', 2) == 0 or libc.umount2(b'/tmp', 2) == 0 else '')",
        needs_root=True,
        own_mounts=True,
    ),
    Attempt("new_mount_interface", _succeeds("libc.syscall(430, b'tmpfs', 0) >= 0"), needs_root=True),
    Attempt("open_tree", _succeeds("libc.syscall(428, -100, b'/', 1) >= 0"), needs_root=True, own_mounts=True),
    Attempt(
        "kernel_program",
        CALL + "n = {'x86_64': 321, 'aarch64': 280}[os.uname().machine]\n"
        "a = (ctypes.c_uint32 * 32)(2, 4, 4, 1)\nprint('DONE' if libc.syscall(n, 0, a, 128) >= 0 else '')",
        needs_root=True,
    ),
    Attempt(
        "performance_events",
        CALL + "n = {'x86_64': 298, 'aarch64': 241}[os.uname().machine]\n"
        "a = (ctypes.c_uint32 * 32)(1, 128, 0)\nprint('DONE' if libc.syscall(n, a, 0, -1, -1, 0) >= 0 else '')",
        needs_root=True,
    ),
    Attempt("io_uring", _succeeds("libc.syscall(425, 8, (ctypes.c_uint32 * 64)()) >= 0")),
    Attempt(
        "user_fault_handling",
        CALL + "n = {'x86_64': 323, 'aarch64': 282}[os.uname().machine]\n"
        "print('DONE' if libc.syscall(n, 0) >= 0 else '')",
        needs_root=True,
    ),
    Attempt(
        "key_ring",
        CALL + "n = {'x86_64': 248, 'aarch64': 217}[os.uname().machine]\n"
        "print('DONE' if libc.syscall(n, b'user', b'k{{MARK}}', b'x', 1, -2) > 0 else '')",
    ),
    Attempt(
        "set_clock", "import time\ntime.clock_settime(time.CLOCK_REALTIME, time.time())\nprint('DONE')", needs_root=True
    ),
    Attempt(
        "set_machine_name", "import socket\nsocket.sethostname(socket.gethostname())\nprint('DONE')", needs_root=True
    ),
    Attempt("kernel_log", _succeeds("libc.klogctl(3, ctypes.create_string_buffer(100), 100) >= 0"), needs_root=True),
    Attempt("personality", _succeeds("libc.personality(0x0040000) != -1")),
    Attempt(
        "splice_pages",
        "import os\nr, w = os.pipe()\nfd = os.open(os.__file__, 0)\nprint('DONE' if os.splice(fd, w, 1) == 1 else '')",
    ),
    Attempt(
        "file_handle",
        CALL + "h = (ctypes.c_uint32 * 40)(128)\nm = ctypes.c_int()\n"
        "print('DONE' if libc.name_to_handle_at(-100, os.__file__.encode(), h, ctypes.byref(m), 0) == 0 else '')",
    ),
    Attempt(
        "other_architecture",
        CALL + "import mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('53b814000000cd805bc3'))\n"
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n"
        "print('DONE' if f() == os.getpid() else '', flush=True)\nos._exit(0)",
    ),
]
