"""Any OpenAI-compatible endpoint as an engine, for evaluation: messages go out as text, replies come back as text.

Its ids are those of ``TextTokenizer``. An endpoint gives neither token ids nor the log-probabilities of what it sampled
from, so log-probabilities are NaN and nothing can be trained on its replies.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Literal

import numpy as np

from areal_x.api.engine_api import EngineHealth, InferenceEngine
from areal_x.api.errors import ConfigError, EngineDiedError, EngineError, PromptTooLongError, RequestError
from areal_x.api.records import ModelRequest, ModelResponse, SamplingParams, VersionSpan
from areal_x.engine.inference.requests import check_sampling
from areal_x.engine.servers.client import ServerClient
from areal_x.engine.servers.dialect import ServerError, ServerLostError
from areal_x.engine.servers.text_tokenizer import messages_from_ids, text_from_ids

__all__ = ["OpenAIEngine"]

_MAX_SEED = 2**31 - 1
_LONGEST_PAUSE_SECONDS = 30.0
_PROBE_SECONDS = 20.0
_REASONS: dict[str, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}
_ADVICE = {
    401: "check the key in the variable that rollout.server.api_key_env names",
    403: "check what the key in the variable that rollout.server.api_key_env names may use",
    429: "the account behind the key is used up",
    404: "check rollout.server.model_name, and rollout.base_urls, which usually ends in /v1",
}


class OpenAIEngine(InferenceEngine):
    """Asks ``/chat/completions`` (prompts of messages) or ``/completions`` (plain text).

    Too many requests (429), errors of the server (5xx) and broken connections are tried again, with growing pauses.

    Args:
        base_url: such as ``http://127.0.0.1:8000/v1``.
        model_name: the model to ask; ``None``: the only one that the endpoint lists.
        api_key: sent as a bearer token, and taken out of all that the endpoint says.
        max_concurrent: requests in flight at once.
        timeout_seconds: for one attempt of a request.
        max_attempts: of one request.
        pause_seconds: before the second attempt; doubled for each later one, up to 30 s.
        version: the version that replies are stamped with.
    """

    def __init__(
        self,
        base_url: str,
        model_name: str | None = None,
        *,
        api_key: str | None = None,
        max_concurrent: int = 64,
        timeout_seconds: float = 600.0,
        max_attempts: int = 8,
        pause_seconds: float = 1.0,
        version: int = 0,
    ) -> None:
        self._client = ServerClient(base_url, model_name or "", api_key=api_key, call_timeout_seconds=timeout_seconds)
        self._model_name = model_name
        self._key = api_key
        self._places = asyncio.Semaphore(max_concurrent)
        self._max_attempts = max_attempts
        self._pause_seconds = pause_seconds
        self._version = version
        self._limit_name = "max_tokens"
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()
        self._num_running = self._num_waiting = self._num_generated = self._num_retries = 0
        self._busy_seconds, self._busy_since = 0.0, 0.0

    async def start(self) -> None:
        """See that the endpoint is there and takes the key; find its model if none was named.

        Raises:
            EngineError: it does not answer, or refuses the key.
            ConfigError: no model was named, and the endpoint lists none or several.
        """
        try:
            found = await self._client.get("/models", timeout_seconds=_PROBE_SECONDS)
        except ServerLostError as error:
            raise EngineError(f"{self._said(error)}; check that the endpoint runs, and rollout.base_urls") from None
        except ServerError as error:
            if error.status in (401, 403):
                raise EngineError(f"{self._said(error)}; {_ADVICE[error.status]}") from None
            found = None  # Not every endpoint lists its models.
        if self._model_name is None:
            self._model_name = self._only_model(found)

    def _only_model(self, listing: Any) -> str:
        rows = listing.get("data") if isinstance(listing, dict) else None
        names = [str(row["id"]) for row in rows or [] if isinstance(row, dict) and "id" in row]
        if len(names) == 1:
            return names[0]
        lists = f"lists {len(names)} models ({', '.join(names[:8])})" if names else "lists no models"
        raise ConfigError(f"rollout.server.model_name is not set, and {self._client.base_url} {lists}; name one")

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """See ``Generator.agenerate``. ``stop`` strings end a completion and, as endpoints do it, are not part of it.

        Raises:
            EngineDiedError: the endpoint does not know key, model or path, or did not answer in any attempt.
        """
        path, body = self._body(request)
        self._num_waiting += 1
        try:
            await self._may_go_on.wait()
            await self._places.acquire()
        finally:
            self._num_waiting -= 1
        started = time.monotonic()
        self._enter(started)
        try:
            reply = await self._ask(request, path, body)
        finally:
            self._leave(time.monotonic())
            self._places.release()
        return self._response(request, reply, started)

    def _body(self, request: ModelRequest) -> tuple[str, dict[str, Any]]:
        sampling = request.sampling
        check_sampling(sampling, has_tokenizer=True)
        if sampling.top_k or sampling.stop_token_ids or sampling.ignore_eos:
            raise RequestError("an OpenAI-compatible endpoint has no top_k, stop_token_ids or ignore_eos; leave them")
        ids = request.input_ids.tolist()
        if not ids:
            raise RequestError(f"{request.request_id}: the prompt is empty")
        body = {"model": self._model_name, **_sampling_body(sampling)}
        text = text_from_ids(ids)
        if text is not None:
            return "/completions", {**body, "prompt": text}
        return "/chat/completions", {**body, "messages": messages_from_ids(ids)}

    async def _ask(self, request: ModelRequest, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of the reply."""
        limit, attempt = request.sampling.max_new_tokens, 1
        while True:
            limit_name = self._limit_name
            try:
                return _first_choice(await self._client.post(path, {**body, limit_name: limit}), path)
            except ServerError as error:
                if error.status == 400 and limit_name == "max_tokens" and "max_completion_tokens" in str(error):
                    # Some models of OpenAI's know the limit under its newer name only.
                    self._limit_name = "max_completion_tokens"
                    continue
                if not _is_passing(error):
                    raise self._refusal(request, error) from None
                problem: EngineError = error
            except ServerLostError as error:
                problem = error
            if attempt == self._max_attempts:
                raise EngineDiedError(f"{self._said(problem)}; {attempt} attempts failed")
            self._num_retries += 1
            pause = min(_LONGEST_PAUSE_SECONDS, self._pause_seconds * 2.0 ** (attempt - 1))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            attempt += 1

    def _refusal(self, request: ModelRequest, error: ServerError) -> EngineError:
        words = self._said(error)
        if error.status in _ADVICE:
            return EngineDiedError(f"{words}; {_ADVICE[error.status]}")
        lowered = words.lower()
        if error.status in (400, 413) and ("context length" in lowered or "context_length" in lowered):
            return PromptTooLongError(f"{request.request_id}: {words}")
        return RequestError(f"{request.request_id}: {words}")

    def _said(self, error: EngineError) -> str:
        """The error without the key, which some endpoints repeat."""
        return str(error).replace(self._key, "(the key)") if self._key else str(error)

    def _response(self, request: ModelRequest, choice: dict[str, Any], started: float) -> ModelResponse:
        message = choice.get("message")
        text = (message.get("content") if isinstance(message, dict) else choice.get("text")) or ""
        output = np.frombuffer(str(text).encode("utf-8", "replace"), dtype=np.uint8).astype(np.int32)
        self._num_generated += len(output)
        return ModelResponse(
            request.request_id,
            request.input_ids,
            output,
            np.full(len(output), np.nan, dtype=np.float32),
            [VersionSpan(0, len(output), self._version)] if len(output) else [],
            # What was withheld (content_filter) or is a call of a tool is no answer to score.
            _REASONS.get(str(choice.get("finish_reason")), "abort"),
            started,
            time.monotonic(),
        )

    async def update_weights(self, version: int) -> None:
        """An endpoint's weights are its own.

        Raises:
            EngineError: always.
        """
        raise EngineError(f"{self._client.base_url} takes no weights; rollout.engine=openai is for areal-x eval")

    async def pause(self) -> None:
        """Send no further requests."""
        self._may_go_on.clear()

    async def resume(self) -> None:
        """Go on after ``pause``."""
        self._may_go_on.set()

    def counters(self) -> dict[str, float]:
        """``retries``: attempts that were made again."""
        return {"retries": self._num_retries}

    async def health(self) -> EngineHealth:
        """Counters of this side; tokens are counted in bytes."""
        busy = self._busy_seconds + (time.monotonic() - self._busy_since if self._num_running else 0.0)
        return EngineHealth(True, self._version, self._num_running, self._num_waiting, self._num_generated, busy)

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._client.close()

    def _enter(self, now: float) -> None:
        if not self._num_running:
            self._busy_since = now
        self._num_running += 1

    def _leave(self, now: float) -> None:
        self._num_running -= 1
        if not self._num_running:
            self._busy_seconds += now - self._busy_since


def _sampling_body(sampling: SamplingParams) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.top_p < 1.0:
        body["top_p"] = sampling.top_p
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        body["seed"] = sampling.seed % _MAX_SEED
    return body


def _first_choice(reply: Any, path: str) -> dict[str, Any]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ServerError(f"the reply of {path} holds no choices; is rollout.base_urls an OpenAI-compatible endpoint?")
    return choices[0]


def _is_passing(error: ServerError) -> bool:
    """Whether a refusal may be gone at the next attempt. An account that is used up answers 429, too."""
    return (error.status in (408, 409, 425, 429) and "insufficient_quota" not in str(error)) or error.status >= 500
