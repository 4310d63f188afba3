"""The driver's end of one helper process of the sandbox."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from areal_x.reward.sandbox.files import new_output, read_output
from areal_x.reward.sandbox.results import SandboxError, SandboxUnavailableError

__all__ = ["RunnerLink"]

_START = "import sys; sys.path.insert(0, sys.argv[1]); from child.runner import main; main(int(sys.argv[2]))"
_START_SECONDS = 60.0
_GRACE_SECONDS = 10.0
"""How much longer than a run's own deadline its helper may take before it counts as lost."""

_DOCKER = "in Docker add --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
_HELP = {
    "prctl(PR_SET_SECCOMP)": "this kernel has no system call filters; use one with CONFIG_SECCOMP_FILTER",
    "architecture": "use a machine with x86_64 or aarch64",
}
_HELP_NAMESPACES = (
    "namespaces or mounts are not allowed here. Run as root with CAP_SYS_ADMIN; or allow user namespaces (sysctl "
    "kernel.unprivileged_userns_clone=1, user.max_user_namespaces=10000; on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns=0); or, as another user than root, install bubblewrap 0.8 or later "
    f"(apt install bubblewrap); {_DOCKER}"
)


class RunnerLink:
    """One helper process; does one run at a time.

    Args:
        python: the interpreter that runs programs.
        packages: name -> path of what can be imported beside the standard library.
        preload: modules to import once, ahead of all runs.
    """

    def __init__(self, python: str, packages: Mapping[str, str], preload: Sequence[str]) -> None:
        self._python = python
        self._options: dict[str, Any] = {"packages": dict(packages), "preload": list(preload)}
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._reply: asyncio.Future[dict[str, Any]] | None = None
        self._errors = -1
        self.mode = ""
        """``root`` or ``user``: with whose rights it isolates; or ``bubblewrap``."""

    @property
    def alive(self) -> bool:
        """Whether it can take a run."""
        return self._socket is not None

    async def start(self) -> None:
        """Start the helper and wait until it is isolated.

        Raises:
            SandboxUnavailableError: it cannot be.
            SandboxError: it did not start for another reason.
        """
        if sys.platform != "linux":
            raise SandboxUnavailableError(f"programs are isolated by Linux namespaces; {sys.platform} has none")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._errors = new_output()
        words = [self._python, "-PsSB", "-Xutf8", "-c", _START, str(Path(__file__).parent), str(theirs.fileno())]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=self._errors,
                # The same order of sets and dicts of strings in every run; nothing of the driver's environment.
                env={"PYTHONHASHSEED": "0"},
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise SandboxError(f"the sandbox's interpreter {self._python} cannot be started: {error}") from error
        finally:
            theirs.close()
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._on_message)
        answer = await self._exchange(self._options, [], _START_SECONDS)
        if "unavailable" in answer:
            await self.close()
            executable = shutil.which("bwrap")
            if executable is not None and "bubblewrap" not in self._options:
                self._options["bubblewrap"] = executable
                await self.start()
                return
            hint = _HELP.get(answer["unavailable"], _HELP_NAMESPACES)
            raise SandboxUnavailableError(f"the sandbox refuses to run programs: {answer['error']}: {hint}")
        self.mode = answer["ready"]

    async def run(self, order: dict[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        """Do one run; ``order`` and the reply are described in ``child.runner``.

        Raises:
            SandboxError: the helper died or hangs; it has to be started again.
        """
        return await self._exchange(order, fds, order["seconds"] + _GRACE_SECONDS)

    async def _exchange(self, message: dict[str, Any], fds: Sequence[int], seconds: float) -> dict[str, Any]:
        if self._socket is None:
            raise SandboxError("a helper of the sandbox is closed")
        reply = self._reply = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], list(fds))
            async with asyncio.timeout(seconds):
                return await asyncio.shield(reply)
        except OSError as error:
            text = (
                f"a helper of the sandbox did not answer for {seconds:g} s" if isinstance(error, TimeoutError) else ""
            )
            failure = SandboxError(text or f"a helper of the sandbox died ({error}){self.last_words()}")
            await self.close()
            raise failure from error
        except asyncio.CancelledError:
            await self._cancel(reply)
            raise
        finally:
            self._reply = None

    async def _cancel(self, reply: asyncio.Future[dict[str, Any]]) -> None:
        """Stop the run; the helper is free again when it has answered."""
        try:
            if self._socket is not None:
                self._socket.send(b'{"cancel": true}')
            async with asyncio.timeout(_GRACE_SECONDS):
                await asyncio.shield(reply)
        except OSError:
            await self.close()

    def _on_message(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            data, reason = b"", error
        else:
            reason = ConnectionResetError("it closed its socket")
        waiting = self._reply is not None and not self._reply.done()
        if not data:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            if waiting and self._reply is not None:
                self._reply.set_exception(reason)
        elif waiting and self._reply is not None:
            self._reply.set_result(json.loads(data))

    def last_words(self) -> str:
        """What the helper wrote to standard error."""
        text = read_output(self._errors, 1 << 16)[0].decode(errors="replace").strip() if self._errors >= 0 else ""
        return f":\n{text[-2000:]}" if text else ""

    async def close(self) -> None:
        """End the helper, and with it whatever it runs: a run in progress fails."""
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionResetError("the sandbox is closed"))
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._process is not None:
            process, self._process = self._process, None
            try:
                async with asyncio.timeout(_GRACE_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1
