"""Frames between the driver and the ranks that it started, over one socket pair for each.

A frame is an 8-byte length and a body: the sizes of its parts, a pickle, and beside the pickle the memory of its
arrays, each at an aligned place, so that neither side copies an array more often than the socket does. Pickle is safe
here because a socket pair is shared only with a process that the driver started itself.
"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

__all__ = ["FrameReader", "encode", "receive", "travels"]

_NUMBER = struct.Struct("<Q")
_ALIGNMENT = 64
_PADDING = bytes(_ALIGNMENT)


def encode(message: Any) -> list[memoryview]:
    """The pieces of one frame, to be sent in this order. Arrays are not copied: they must not change meanwhile."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
    sizes = struct.pack(f"<{len(parts) + 1}Q", len(parts), *(part.nbytes for part in parts))
    pieces = [memoryview(sizes), memoryview(_gap(len(sizes)))]
    for part in parts:
        pieces += [part, memoryview(_gap(part.nbytes))]
    length = _NUMBER.pack(sum(piece.nbytes for piece in pieces))
    return [piece for piece in (memoryview(length), *pieces) if piece.nbytes]


class FrameReader:
    """Reads one message after the other from a socket, as far as its bytes are there."""

    _body: bytearray
    """The length or body that is being read, and whether it is the body."""
    _is_body: bool
    _left: memoryview
    """The part of it that is still to come."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._begin(_NUMBER.size, is_body=False)

    def read(self) -> tuple[Any, ...]:
        """The next message as a tuple of one; empty when a socket that does not block has no more bytes for now.

        Raises:
            EOFError: the other side is gone.
        """
        while True:
            while self._left:
                try:
                    count = self._socket.recv_into(self._left)
                except BlockingIOError:
                    return ()
                except ConnectionError as error:
                    raise EOFError from error
                if not count:
                    raise EOFError
                self._left = self._left[count:]
            body = self._body
            if self._is_body:
                self._begin(_NUMBER.size, is_body=False)
                return (_decode(body),)
            self._begin(_NUMBER.unpack(body)[0], is_body=True)

    def _begin(self, size: int, is_body: bool) -> None:
        self._body = bytearray(size)
        self._left = memoryview(self._body)
        self._is_body = is_body


def receive(reader: FrameReader) -> Any:
    """The next message of a socket that blocks.

    Raises:
        EOFError: the other side is gone.
    """
    (message,) = reader.read()
    return message


def travels(value: Any) -> bool:
    """Whether a value comes out of a pickle again, as some exceptions do not."""
    try:
        pickle.loads(pickle.dumps(value, protocol=5))
    # User code runs in both directions and raises anything.
    except Exception:
        return False
    return True


def _decode(body: bytearray) -> Any:
    (count,) = _NUMBER.unpack_from(body)
    sizes = struct.unpack_from(f"<{count}Q", body, _NUMBER.size)
    start = _aligned((count + 1) * _NUMBER.size)
    parts = []
    for size in sizes:
        parts.append(memoryview(body)[start : start + size])
        start = _aligned(start + size)
    return pickle.loads(parts[0], buffers=parts[1:])


def _gap(size: int) -> bytes:
    return _PADDING[: _aligned(size) - size]


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT
