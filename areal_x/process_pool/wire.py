"""What travels on the sockets between the pool and its own children.

A call is one message of a ``SOCK_SEQPACKET`` socket: an 8-byte call number, then the pickled ``(function number,
keyword arguments, names of packed integer lists)``. One message is received as a whole by exactly one reader, which is
what lets the pool take a call back that a worker has not received yet. A call larger than ``MAX_INLINE_BYTES`` travels
in a memory file whose descriptor accompanies the message.

A result is a fixed header and a body on a ``SOCK_STREAM`` socket. A plain float needs no body.
"""

from __future__ import annotations

import array
import functools
import os
import pickle
import socket
import struct
from typing import Any

__all__ = [
    "CALL_NUMBER",
    "CANNOT_ANSWER",
    "KIND_ERROR",
    "KIND_FLOAT",
    "KIND_PICKLE",
    "KIND_READY",
    "LEFT_PROCESSES",
    "MAX_INLINE_BYTES",
    "MAX_RESULT_BYTES",
    "RESULT_HEADER",
    "decode_call",
    "encode_call",
    "memory_file",
    "read_memory_file",
    "receive_with_descriptors",
]

CALL_NUMBER = struct.Struct("<Q")
MAX_INLINE_BYTES = 120_000
"""A message must fit into a socket's default send buffer (212,992 bytes, of which a message may take part)."""
MAX_RESULT_BYTES = 1 << 28

RESULT_HEADER = struct.Struct("<IBBQddd")
"""Body length, kind, flags, call number, start (``time.monotonic``), seconds, the value when it is a float."""
KIND_READY, KIND_FLOAT, KIND_PICKLE, KIND_ERROR = range(4)
CANNOT_ANSWER = 70
"""Exit code of a worker that could not receive or answer a call."""
LEFT_PROCESSES = 1
"""Flag of a result: the call left processes behind, so its worker must be replaced."""


def encode_call(function_number: int, kwargs: dict[str, Any], int_lists: tuple[str, ...]) -> bytes:
    """Pickle a call; the arguments named in ``int_lists`` travel as int32 and arrive as ``list[int]``.

    Packing costs less than pickling for a list of small integers, and any contiguous int32 buffer (a numpy array) is
    one copy. Values that are not 32-bit integers are pickled as they are.
    """
    if int_lists:
        kwargs = kwargs.copy()
        packed = []
        for name in int_lists:
            data = _pack_ints(kwargs[name]) if name in kwargs else None
            if data is not None:
                kwargs[name] = data
                packed.append(name)
        int_lists = tuple(packed)
    return pickle.dumps((function_number, kwargs, int_lists), 5)


def _pack_ints(values: Any) -> bytes | None:
    if type(values) is not list and type(values) is not tuple:
        try:
            view = memoryview(values)
        except TypeError:
            return None
        if view.ndim != 1 or view.format not in ("i", "l", "q", "h", "I", "L", "Q", "H"):
            return None
        if view.format == "i":
            return view.tobytes()
        values = view.tolist()
    try:
        return _int_struct(len(values)).pack(*values)
    except struct.error:
        return None


@functools.lru_cache(1024)
def _int_struct(length: int) -> struct.Struct:
    return struct.Struct(f"{length}i")


def decode_call(payload: bytes | memoryview) -> tuple[int, dict[str, Any]]:
    """The inverse of ``encode_call``: function number and keyword arguments."""
    function_number, kwargs, int_lists = pickle.loads(payload)
    for name in int_lists:
        values = array.array("i")
        values.frombytes(kwargs[name])
        kwargs[name] = values.tolist()
    return function_number, kwargs


def memory_file(payload: bytes) -> int:
    """A descriptor of an anonymous file that holds ``payload``."""
    descriptor = os.memfd_create("areal-x-payload", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(payload)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_memory_file(descriptor: int) -> bytes:
    """Read a memory file as a whole and close its descriptor."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def receive_with_descriptors(end: socket.socket, size: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """Receive one message and up to four descriptors, closed on exec (``socket.recv_fds`` ignores its flags)."""
    room = socket.CMSG_SPACE(4 * array.array("i").itemsize)
    data, ancillary, _, _ = end.recvmsg(size, room, flags | socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, descriptors.tolist()
