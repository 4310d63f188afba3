"""What differs between servers: the JSON of requests and replies, and the names and rules of administration.

A dialect holds no state of a server. ``server`` below is the ``ServerClient`` of one server; its calls raise
``ServerError`` for a refused call and ``ServerLostError`` when there is no (timely) answer.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from areal_x.api.errors import EngineError
from areal_x.api.records import ModelRequest

if TYPE_CHECKING:
    from areal_x.engine.servers.client import ServerClient

__all__ = [
    "FINISHES",
    "UNREADABLE",
    "Finish",
    "KvOnUpdate",
    "Piece",
    "ReplyReader",
    "ServerDialect",
    "ServerError",
    "ServerFacts",
    "ServerLostError",
    "read_spans",
    "understood",
]

UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading a reply raises that is not what it should be."""

KvOnUpdate = Literal["recompute", "keep", "abort"]

FINISHES: dict[str, Literal["stop", "length", "abort"]] = {"stop": "stop", "length": "length", "abort": "abort"}
"""Words of both servers for how a request ended."""
_VERSION = re.compile(r"-?[0-9]{1,18}")


class ServerError(EngineError):
    """A server refused a call; the message holds what it said. ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ServerLostError(EngineError):
    """A server did not answer: its process ended, its connection broke, or its time was up."""


@contextmanager
def understood(server: ServerClient, kind: str) -> Iterator[None]:
    """Replies that are read in here and are not what a server of this kind sends are a ``ServerError``."""
    try:
        yield
    except UNREADABLE as error:
        raise ServerError(
            f"{server.base_url} does not answer as {kind} does ({error!r:.200}); check rollout.base_urls"
        ) from error


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself when it is ready. ``None``: it does not say."""

    model_name: str
    max_length: int | None = None
    vocab_size: int | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """How a request ended on its server. ``spans``: (start, end, version) over all output tokens of this request on
    this server; the version is the server's own word."""

    reason: Literal["stop", "length", "abort"]
    spans: list[tuple[int, int, int]]


def read_spans(sent: Any, kind: str) -> list[tuple[int, int, int]]:
    """The version spans of a server's last message, without empty ones. Whether they fit the tokens is checked where
    these are complete (``continuation.checked_spans``).

    Raises:
        ServerError: they are no spans, or a version is no number.
    """
    try:
        spans = [(int(span["start"]), int(span["end"]), str(span["version"])) for span in sent or ()]
    except UNREADABLE as error:
        raise ServerError(f"{kind} sent the version spans {sent!r:.200} ({error!r:.200})") from error
    if not all(_VERSION.fullmatch(version) for _, _, version in spans):
        raise ServerError(
            f"{kind} sent the version spans {spans!r:.200}; was the server given a version before it served?"
        )
    return [(start, end, int(version)) for start, end, version in spans if start != end]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one message of a reply adds: new tokens, their log-probabilities, and at the end how it ended."""

    token_ids: list[int]
    logprobs: list[float]
    finish: Finish | None = None


class ReplyReader(Protocol):
    """Reads the messages of one streamed reply, in order."""

    def read(self, message: bytes) -> Piece | None:
        """The piece in one ``data:`` message (its JSON); ``None`` for a message without tokens, such as the last.

        Raises:
            ServerError: the message is an error (``status`` says whose: 4xx the request's, 5xx the server's), or holds
                no valid tokens, log-probabilities or versions (``status`` 0).
        """
        ...


class ServerDialect(ABC):
    """One kind of server. Log-probabilities are those of the distribution that was sampled from.

    A request whose stream is closed ends on the server and frees its slot there.
    """

    name: ClassVar[str]
    """As in ``rollout.engine``."""
    generate_path: ClassVar[str]
    alive_path: ClassVar[str] = "/health"
    """Answers a GET at once while the server lives, also when it is paused."""
    scores_truncated: ClassVar[bool] = True
    """Whether truncated sampling (``top_p``, ``top_k``) has log-probabilities; else they are NaN."""
    adapter: str | None = None
    """Name of the LoRA adapter that answers requests. A new server has none: its first weights come before its first
    token."""

    @abstractmethod
    def request_body(
        self, request: ModelRequest, request_id: str, input_ids: list[int], max_new_tokens: int, seed: int | None
    ) -> dict[str, Any]:
        """The body of a streamed generation request. ``input_ids`` and ``max_new_tokens`` stand in for the request's
        own: they differ when it goes on from tokens that another server sampled."""

    @abstractmethod
    def reply_reader(self) -> ReplyReader:
        """A reader for one reply."""

    @abstractmethod
    async def facts(self, server: ServerClient) -> ServerFacts:
        """What the server is; also checks that every route that this library needs is there.

        Raises:
            ServerError: a route is missing; the message names the flag or variable to start the server with.
        """

    @abstractmethod
    async def pause(self, server: ServerClient, kv_on_update: KvOnUpdate) -> None:
        """Stop before the next forward pass. New requests wait; those in flight wait (their keys and values dropped
        with ``recompute``), or end with what they have (``abort``)."""

    @abstractmethod
    async def resume(self, server: ServerClient) -> None:
        """Go on after ``pause``."""

    @abstractmethod
    async def join(self, server: ServerClient, order: dict[str, Any]) -> None:
        """Carry out one of ``WeightTransport.join_orders``."""

    @abstractmethod
    async def load(self, server: ServerClient, order: dict[str, Any], version: int, kv_on_update: KvOnUpdate) -> None:
        """Load what ``WeightTransport.load_order`` says and stamp it ``version``, on a paused server.

        Raises:
            ServerError, ServerLostError: the weights may be half loaded: load again in whole before resuming, or
                replace the server.
        """

    async def forget_prefixes(self, server: ServerClient) -> None:  # noqa: B027 (a server may cache nothing)
        """Drop cached prefixes of whatever weights a server had before it was this engine's, before its first
        request."""

    @abstractmethod
    async def set_version(self, server: ServerClient, version: int) -> None:
        """Stamp the weights that the server has, before its first request."""

    @abstractmethod
    async def sleep(self, server: ServerClient) -> None:
        """Give the device's memory back: weights, keys and values. The server is paused."""

    @abstractmethod
    async def wake_up(self, server: ServerClient) -> None:
        """Take the memory again; the weights have to be loaded before ``resume``."""
