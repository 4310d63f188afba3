"""vLLM's words: ``/inference/v1/generate`` (token in, token out) and the routes of its development mode.

Facts of vLLM 0.32.0 that the code rests on:

- ``pause?mode=keep`` preempts what runs and drops its keys and values unless ``clear_cache=false``;
- ``wake_up`` with all memory resident resumes by itself, so the cache's memory comes back only in ``resume``;
- a NaN or missing log-probability is sent as -9999.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from areal_x.api.records import ModelRequest
from areal_x.engine.servers.dialect import (
    FINISHES,
    UNREADABLE,
    Finish,
    KvOnUpdate,
    Piece,
    ReplyReader,
    ServerDialect,
    ServerError,
    ServerFacts,
    read_spans,
    understood,
)

if TYPE_CHECKING:
    from areal_x.engine.servers.client import ServerClient

__all__ = ["VllmDialect", "VllmReply"]

_GENERATE = "/inference/v1/generate"
_KIND = "vLLM 0.32"
_NO_LOGPROB = -9999.0
_MAX_SEED = 2**63 - 1
_PAUSES: dict[str, dict[str, Any]] = {
    "recompute": {"mode": "keep", "clear_cache": "true"},
    "keep": {"mode": "keep", "clear_cache": "false"},
    "abort": {"mode": "abort", "clear_cache": "true"},
}
_NO_EXTENSION = "is not implemented"


class VllmDialect(ServerDialect):
    """One server of vLLM, 0.32.

    Args:
        adapter: name of the LoRA adapter that requests are answered by, where adapters are published
            (``transfer/lora.py``); default: the model itself.
        max_plain_tokens: completions of at most so many tokens are not streamed. Where the server sends no message
            before that, a stream would save nothing but the first token and costs both sides a third more time.
    """

    name = "vllm"
    generate_path = _GENERATE

    def __init__(self, adapter: str | None = None, max_plain_tokens: int = 0) -> None:
        self.adapter = adapter
        self._max_plain_tokens = max_plain_tokens
        self._awake: WeakSet[ServerClient] = WeakSet()

    def request_body(
        self, request: ModelRequest, request_id: str, input_ids: list[int], max_new_tokens: int, seed: int | None
    ) -> dict[str, Any]:
        """See ``ServerDialect.request_body``."""
        sampling = request.sampling
        wanted: dict[str, Any] = {
            "max_tokens": max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "logprobs": 0,  # Of the sampled token alone.
            "ignore_eos": sampling.ignore_eos,
            "detokenize": bool(sampling.stop),
        }
        if seed is not None:
            wanted["seed"] = seed & _MAX_SEED
        if sampling.stop_token_ids:
            wanted["stop_token_ids"] = list(sampling.stop_token_ids)
        if sampling.stop:
            wanted["stop"] = list(sampling.stop)
            wanted["include_stop_str_in_output"] = True
        body: dict[str, Any] = {
            "request_id": request_id,
            "token_ids": input_ids,
            "sampling_params": wanted,
            "stream": max_new_tokens > self._max_plain_tokens,
        }
        if self.adapter is not None:
            body["model"] = self.adapter
        return body

    def reply_reader(self) -> ReplyReader:
        """See ``ServerDialect.reply_reader``."""
        return VllmReply()

    async def facts(self, server: ServerClient) -> ServerFacts:
        """See ``ServerDialect.facts``."""
        listed = await server.get("/v1/models")
        models = [card for card in listed["data"] if not card.get("parent")]
        named = [card for card in models if not server.model_name or card["id"] == server.model_name]
        if not named:
            names = ", ".join(card["id"] for card in models)
            raise ServerError(
                f"{server.base_url} serves no model {server.model_name!r}, but {names}; set rollout.server.model_name"
            )
        try:
            await server.get("/is_paused")
        except ServerError as error:
            raise ServerError(
                f"{server.base_url} has no routes to pause and update it; start vLLM with VLLM_SERVER_DEV_MODE=1 "
                f"({error})",
                error.status,
            ) from error
        await _probe_generation(server)
        return ServerFacts(named[0]["id"], named[0].get("max_model_len"))

    async def pause(self, server: ServerClient, kv_on_update: KvOnUpdate) -> None:
        """See ``ServerDialect.pause``."""
        await server.post("/pause", **_PAUSES[kv_on_update])

    async def resume(self, server: ServerClient) -> None:
        """See ``ServerDialect.resume``. A server that woke up for its weights gets the memory for keys and values."""
        # Paused alone counts as sleeping there, so it is asked only where it can be more than that: on first contact
        # and after ``sleep``. In an update, each call waits behind the requests in flight.
        if server not in self._awake:
            state = await server.get("/is_sleeping")
            with understood(server, _KIND):
                is_asleep = state["is_sleeping"]
            if is_asleep:
                await server.post("/wake_up", tags="kv_cache")
        await server.post("/resume")
        self._awake.add(server)

    async def join(self, server: ServerClient, order: dict[str, Any]) -> None:
        """See ``ServerDialect.join``. May be sent again: the group joined before is left."""
        await server.post("/init_weight_transfer_engine", {"init_info": {"order": order}})

    async def load(self, server: ServerClient, order: dict[str, Any], version: int, kv_on_update: KvOnUpdate) -> None:
        """See ``ServerDialect.load``.

        Raises:
            ServerError: also when the server is not paused, where a forward pass could meet half the weights.
        """
        state = await server.get("/is_paused")
        with understood(server, _KIND):
            is_paused = state["is_paused"]
        if not is_paused:
            raise ServerError(f"{server.base_url} is not paused; weights are only loaded by a paused server")
        if order["way"] == "lora":
            await _load_adapter(server, order["name"], order["path"])
            # vLLM does not count a swapped adapter as new weights.
            await self.set_version(server, version)
        elif order["way"] == "disk" and not await _has_extension(server):
            await _reload_from_disk(server, order["path"])
            await self.set_version(server, version)
        else:
            await _update(server, order, version)

    async def forget_prefixes(self, server: ServerClient) -> None:
        """See ``ServerDialect.forget_prefixes``."""
        await server.post("/reset_prefix_cache")

    async def set_version(self, server: ServerClient, version: int) -> None:
        """See ``ServerDialect.set_version``."""
        await server.post("/update_weight_version", {"new_version": str(version)})

    async def sleep(self, server: ServerClient) -> None:
        """See ``ServerDialect.sleep``. Requests in flight stay queued and are computed again afterwards."""
        self._awake.discard(server)
        await server.post("/sleep", level="2", mode="keep")

    async def wake_up(self, server: ServerClient) -> None:
        """See ``ServerDialect.wake_up``. The memory for keys and values follows in ``resume``."""
        self._awake.discard(server)
        await server.post("/wake_up", tags="weights")


class VllmReply:
    """Reads the messages of one streamed reply (see ``ReplyReader``)."""

    def read(self, message: bytes) -> Piece | None:
        """See ``ReplyReader.read``."""
        try:
            found = json.loads(message)
            if "error" in found:
                # The stream has begun by then, so the status is in the message.
                refusal = found["error"]
                raise ServerError(f"vLLM ended the request: {refusal['message']}", int(refusal["code"]))
            if not found["choices"]:
                return None
            choice = found["choices"][0]
            ids = [int(token) for token in choice["token_ids"]]
            content = choice["logprobs"]["content"] if choice["logprobs"] is not None else []
            logprobs = [float(token["logprob"]) for token in content]
            reason = choice["finish_reason"]
            spans = choice.get("weight_versions")
        except UNREADABLE as error:
            raise ServerError(f"a reply of vLLM is not what version 0.32 sends: {error!r:.200}") from error
        if len(logprobs) != len(ids):
            raise ServerError(f"vLLM sent {len(ids)} tokens with {len(logprobs)} log-probabilities")
        if any(not _NO_LOGPROB < value <= 1e-3 for value in logprobs):
            raise ServerError(f"vLLM sent a log-probability that is none: {logprobs}; are the weights finite?")
        if reason is None:
            return Piece(ids, logprobs)
        if str(reason) not in FINISHES:
            raise ServerError(f"vLLM ended the request with {reason!r}")
        return Piece(ids, logprobs, Finish(FINISHES[reason], read_spans(spans, "vLLM")))


async def _probe_generation(server: ServerClient) -> None:
    try:
        await server.post(_GENERATE, {})
    except ServerError as error:
        if error.status in (403, 404):
            raise ServerError(
                f"{server.base_url} has no {_GENERATE}; start vLLM with --enable-scale-out ({error})", error.status
            ) from error
        if error.status not in (400, 422):
            raise
    else:
        raise ServerError(f"{server.base_url}{_GENERATE} took a request without tokens; is this vLLM 0.32?")


async def _update(server: ServerClient, order: dict[str, Any], version: int) -> None:
    try:
        await server.post("/start_weight_update")
    except ServerError as error:
        # Left open by an update whose connection broke between two steps; the worker loads in whole anyway.
        if "already active" not in str(error):
            raise
    await server.post("/update_weights", {"update_info": {"order": order}})
    await server.post("/finish_weight_update", {"weight_version": str(version)})


async def _has_extension(server: ServerClient) -> bool:
    """Whether the worker has this library's extension, so that all ways work there."""
    try:
        await server.post("/collective_rpc", {"method": "areal_x_ways"})
    except ServerError as error:
        if _NO_EXTENSION in str(error):
            return False
        raise
    return True


async def _load_adapter(server: ServerClient, name: str, path: str) -> None:
    """Load an adapter, or put it in the place of the one of this name."""
    listed = await server.get("/v1/models")
    with understood(server, _KIND):
        is_there = any(card["id"] == name for card in listed["data"])
    if is_there:
        await server.post("/collective_rpc", {"method": "areal_x_swap_adapter", "args": [name, path]})
    else:
        await server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})


async def _reload_from_disk(server: ServerClient, path: str) -> None:
    """Load on a server that somebody else started without this library's extension."""
    if _ties_embeddings(Path(path)) and await _device(server) == "cpu":
        raise ServerError(
            f"{server.base_url} runs on a CPU, where vLLM keeps the old output layer of a model with tied "
            "embeddings when it reloads; let the run start its servers, or use a model with untied embeddings"
        )
    await server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})


async def _device(server: ServerClient) -> str:
    try:
        info = await server.get("/server_info", config_format="json")
    except ServerError as error:
        # It lists its packages in the same reply, and fails without pip.
        raise ServerError(
            f"{server.base_url} cannot say whether it runs on a CPU, where a model with tied embeddings cannot be "
            f"reloaded: {error}; install pip in the server's environment, or let the run start its servers"
        ) from error
    with understood(server, _KIND):
        return str(info["vllm_config"]["device_config"]["device"])


def _ties_embeddings(folder: Path) -> bool:
    """Whether it may be a model with tied embeddings."""
    config = folder / "config.json"
    return not config.exists() or bool(json.loads(config.read_text()).get("tie_word_embeddings"))
