"""What an escape attempt is, and the scene that it finds itself in."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PYTHON = getattr(sys, "_base_executable", None) or sys.executable
LIBC = ctypes.CDLL(None, use_errno=True)
UID = 54321
"""User of the process to hurt, where root runs the tests: nobody else's."""
VICTIM = f"import os, sys, time; os.geteuid() or os.setuid({UID}); print('up', flush=True); time.sleep(60)"
IN_GRADER = "import sys; expected = open(sys.argv[2]).read(); exec(compile(open(sys.argv[1]).read(), 'p', 'exec'), {})"
"""A naive grader: runs the program in the process that holds the answer."""
BELOW_PARENT = "import subprocess, sys; subprocess.run(sys.argv[1:]); print('PARENT LIVES')"


def deny_unshare() -> None:
    """Have unshare fail in this process and its children, as the default profile of a container does."""
    number = {"x86_64": 272, "aarch64": 97}[platform.machine()]
    rows = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in rows))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    assert LIBC.prctl(38, 1, 0, 0, 0) == 0
    assert LIBC.prctl(22, 2, ctypes.byref(Program(len(rows), ctypes.addressof(code))), 0, 0) == 0


@dataclass
class Scene:
    """A secret in a file, in the environment, in another process and in memory; servers; a process to hurt."""

    folder: Path
    token: str = field(default_factory=lambda: f"token-{uuid.uuid4().hex}")
    hits: list[bytes] = field(default_factory=list)
    """What the servers received."""
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mark = self.token[-12:]
        self.secret = self.folder / f"secret-{self.mark}"
        self.secret.write_text(self.token)
        self.secret.chmod(0o600)
        self.outside = [Path(f"/tmp/escape-{self.mark}"), Path(f"/dev/shm/escape-{self.mark}")]
        self.key = int(self.mark[:7], 16)
        self.victim: subprocess.Popen[bytes] | None = None
        self.sockets = [self._serve(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))]
        self.sockets.append(self._serve(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)))
        self.sockets.append(self._serve(socket.AF_UNIX, socket.SOCK_STREAM, str(self.folder / "s")))
        self.sockets.append(self._serve(socket.AF_UNIX, socket.SOCK_STREAM, f"\0escape-{self.mark}"))
        self.names = {
            "SECRET": str(self.secret),
            "FOLDER": str(self.folder),
            "MARK": self.mark,
            "KEY": str(self.key),
            "TCP": str(self.sockets[0].getsockname()[1]),
            "UDP": str(self.sockets[1].getsockname()[1]),
            "HOST": socket.gethostname(),
            "PYTHON": PYTHON,
        }

    def _serve(self, family: int, kind: int, address: object) -> socket.socket:
        server = socket.socket(family, kind)
        server.bind(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            server.listen()
        threading.Thread(target=self._take, args=(server, kind), daemon=True).start()
        return server

    def _take(self, server: socket.socket, kind: int) -> None:
        while True:
            try:
                if kind == socket.SOCK_DGRAM:
                    self.hits.append(server.recv(1000))
                else:
                    connection, _ = server.accept()
                    self.hits.append(connection.recv(1000))
                    connection.close()
            except OSError:
                return

    def inheritable(self) -> tuple[int, int]:
        """Descriptors of the secret and of its folder that are not closed for a program by themselves."""
        handles = os.open(self.secret, os.O_RDWR), os.open(self.folder, os.O_RDONLY)
        for handle in handles:
            os.set_inheritable(handle, True)
        return handles

    def new_victim(self) -> None:
        """A process of another session, with the secret in its arguments and its memory."""
        self.end_victim()
        words = [PYTHON, "-IS", "-c", VICTIM, self.token]
        self.victim = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
        assert self.victim.stdout is not None
        assert self.victim.stdout.readline() == b"up\n"
        self.names["VICTIM"] = str(self.victim.pid)

    def victim_hurt(self) -> bool:
        """Whether it was killed or stopped."""
        assert self.victim is not None
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            if self.victim.poll() is not None:
                return True
            if Path(f"/proc/{self.victim.pid}/stat").read_text().rpartition(") ")[2][0] in "Tt":
                return True
            time.sleep(0.005)
        return False

    def end_victim(self) -> None:
        if self.victim is not None:
            self.victim.kill()
            self.victim.wait()
            assert self.victim.stdout is not None
            self.victim.stdout.close()
            self.victim = None

    def clean(self) -> None:
        """Undo what an attempt without the sandbox did."""
        for path in self.outside:
            path.unlink(missing_ok=True)
        self.hits.clear()
        self.secret.unlink(missing_ok=True)
        self.secret.write_text(self.token)
        self.secret.chmod(0o600)
        for path in self.folder.iterdir():
            if path != self.secret and path.name != "s" and not path.is_dir():
                path.unlink()
        for name, control in (("shmget", "shmctl"), ("msgget", "msgctl"), ("semget", "semctl")):
            number = _get(name, self.key)
            if number >= 0:
                getattr(LIBC, control)(number, *((0, 0, 0) if name == "semget" else (0, 0)))

    def ipc_objects(self) -> list[str]:
        """System V objects with the scene's key."""
        return [name for name in ("shmget", "msgget", "semget") if _get(name, self.key) >= 0]

    def close(self) -> None:
        self.clean()
        self.end_victim()
        for server in self.sockets:
            server.close()


def _get(name: str, key: int) -> int:
    return int(getattr(LIBC, name)(key, *((0,) if name == "msgget" else (0, 0))))


@dataclass(frozen=True)
class Attempt:
    """One program.

    ``{{NAME}}`` in it becomes a value of the scene. It prints DONE or the secret when it got out, or ``achieved`` finds
    from the outside that it did.
    """

    name: str
    program: str
    achieved: Callable[[Scene, str], bool] | None = None
    needs_root: bool = False
    """Without the sandbox it works for root only."""
    kind: str = "script"
    """``script``; ``grader``: beside the expected answer; ``parent``: with a parent process that may be hurt."""
    before: str = ""
    """A program that runs ahead of it."""
    victim: bool = False
    own_mounts: bool = False
    """Without the sandbox it gets mounts of its own, so that it does not change the machine's."""

    def text(self, scene: Scene, source: str) -> str:
        for name, value in scene.names.items():
            source = source.replace("{{" + name + "}}", value)
        return source

    def succeeded(self, scene: Scene, output: str) -> bool:
        """Whether it got what it wanted."""
        if "DONE" in output or scene.token in output:
            return True
        return self.achieved is not None and self.achieved(scene, output)

    def run_unprotected(self, scene: Scene) -> str:
        """Its output when nothing holds it back but a time-out."""
        file = scene.folder / "program.py"
        prefix = ["unshare", "--mount", "--propagation", "private"] if self.own_mounts else []
        if self.kind == "parent":
            prefix = [PYTHON, "-IS", "-c", BELOW_PARENT]
        outputs = ""
        for source in filter(None, (self.before, self.program)):
            file.write_text(self.text(scene, source))
            words = [*prefix, PYTHON, "-IS", str(file)]
            if self.kind == "grader":
                words = [PYTHON, "-IS", "-c", IN_GRADER, str(file), str(scene.secret)]
            handles = scene.inheritable()
            stdin = os.open(scene.folder, os.O_TMPFILE | os.O_RDWR)
            with subprocess.Popen(
                words,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=scene.folder,
                env={"SECRET": scene.token, "HOME": str(scene.folder)},
                pass_fds=handles,
                start_new_session=True,
            ) as process:
                killer = threading.Timer(15, os.killpg, (process.pid, signal.SIGKILL))
                killer.start()
                assert process.stdout is not None
                outputs = process.stdout.read().decode(errors="replace")
                process.wait()
                killer.cancel()
            for handle in (*handles, stdin):
                os.close(handle)
        return outputs
