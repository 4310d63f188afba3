"""SGLang's words: ``/generate`` (token in, token out) and its routes of administration.

Facts of SGLang 0.5.23 that the code rests on:

- ids are matched by their beginning when a request is aborted, so each ends in a sign that no id holds;
- a stop string is looked for in only as many last tokens as its own encoding has, so one that the model spelled in
  smaller pieces is missed; a stop expression is looked for in as many tokens as it has characters;
- ``ignore_eos`` also ignores ``stop_token_ids``, so such a completion runs on and is cut here (``Completion``);
- the body of ``pause_generation`` with mode ``abort`` waits in steps of a second, so a pause of that kind retracts and
  then aborts what waits;
- releasing memory while a request runs ends the server;
- unloading an adapter waits for its requests, paused ones, too;
- a request's seed matters only with ``--enable-deterministic-inference``, which no CPU backend has. Elsewhere all
  requests draw from one stream of the server, so the same seed does not give the same tokens again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from areal_x.api.errors import RequestError
from areal_x.api.records import ModelRequest, SamplingParams
from areal_x.engine.servers.dialect import (
    KvOnUpdate,
    ReplyReader,
    ServerDialect,
    ServerError,
    ServerFacts,
    understood,
)
from areal_x.engine.servers.sglang_command import SPARE_CONTEXT
from areal_x.engine.servers.sglang_reply import SglangReply

if TYPE_CHECKING:
    from areal_x.engine.servers.client import ServerClient

__all__ = ["SglangDialect"]

_MAX_SEED = 2**63 - 1
_ID_END = "\x1f"
_FLUSH_SECONDS = "30"
_KIND = "SGLang 0.5.23"
_MAX_EXPRESSION_BYTES = 256
_ROUTES = (
    "/pause_generation",
    "/continue_generation",
    "/abort_request",
    "/update_weights_from_disk",
    "/begin_weight_update",
    "/update_weights_from_distributed",
    "/update_weight_version",
)


class SglangDialect(ServerDialect):
    """One server of SGLang, 0.5.23.

    Truncated sampling (``top_p`` below 1 or ``top_k``) has NaN log-probabilities: SGLang's are those before truncation.

    Args:
        adapter: name of the LoRA adapter that requests are answered by, where adapters are published
            (``transfer/lora.py``); default: the model itself.
    """

    name = "sglang"
    generate_path = "/generate"
    alive_path = "/model_info"  # Its /health generates a token, for a second, and hangs while paused.
    scores_truncated = False

    def __init__(self, adapter: str | None = None) -> None:
        self.adapter = adapter

    def request_body(
        self, request: ModelRequest, request_id: str, input_ids: list[int], max_new_tokens: int, seed: int | None
    ) -> dict[str, Any]:
        """See ``ServerDialect.request_body``.

        Raises:
            RequestError: a stop string is too long for SGLang.
        """
        sampling = request.sampling
        wanted: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "ignore_eos": sampling.ignore_eos,
        }
        if seed is not None:
            wanted["sampling_seed"] = seed & _MAX_SEED
        if sampling.stop_token_ids:
            wanted["stop_token_ids"] = list(sampling.stop_token_ids)
        if sampling.stop:
            wanted["stop_regex"] = [_stop_expression(text, request.request_id) for text in sampling.stop]
        body: dict[str, Any] = {
            "rid": request_id + _ID_END,
            "input_ids": input_ids,
            "sampling_params": wanted,
            "return_logprob": not _truncates(sampling),
            "logprob_start_len": -1,
            "stream": True,
        }
        if self.adapter is not None:
            body["lora_path"] = self.adapter
        return body

    def reply_reader(self) -> ReplyReader:
        """See ``ServerDialect.reply_reader``."""
        return SglangReply()

    async def facts(self, server: ServerClient) -> ServerFacts:
        """See ``ServerDialect.facts``."""
        described = await server.get("/openapi.json")
        missing = [route for route in _ROUTES if route not in described["paths"]]
        if missing:
            raise ServerError(f"{server.base_url} has no {missing[0]}; is this SGLang 0.5.23?", 404)
        info = await server.get("/model_info")
        if info.get("preferred_sampling_params"):
            raise ServerError(
                f"{server.base_url} changes how requests are sampled; start SGLang without --preferred-sampling-params"
            )
        try:
            # Ends nothing: no request has this id.
            await server.post("/abort_request", {"rid": "areal_x" + _ID_END + "nothing"})
        except ServerError as error:
            raise ServerError(
                f"{server.base_url} refuses its routes of administration; start SGLang with --api-key and without "
                f"--admin-api-key ({error})",
                error.status,
            ) from error
        listed = await server.get("/v1/models")
        models = [card for card in listed["data"] if not card.get("parent")]
        card = next((card for card in models if server.model_name in ("", card["id"])), None)
        if card is None:
            names = ", ".join(card["id"] for card in models)
            raise ServerError(
                f"{server.base_url} serves no model {server.model_name!r}, but {names}; set rollout.server.model_name"
            )
        length = card.get("max_model_len")
        return ServerFacts(card["id"], None if length is None else length - SPARE_CONTEXT)

    async def pause(self, server: ServerClient, kv_on_update: KvOnUpdate) -> None:
        """See ``ServerDialect.pause``."""
        await server.post("/pause_generation", {"mode": "in_place" if kv_on_update == "keep" else "retract"})
        if kv_on_update == "abort":
            await server.post("/abort_request", {"abort_all": True})

    async def resume(self, server: ServerClient) -> None:
        """See ``ServerDialect.resume``."""
        await server.post("/continue_generation", {"torch_empty_cache": False})

    async def join(self, server: ServerClient, order: dict[str, Any]) -> None:
        """See ``ServerDialect.join``. May be sent again: the group joined before is left.

        SGLang makes the group by torch's own functions, so its store lies below two prefixes of the group's name and
        one of the device's.
        """
        group = order["join"]
        try:
            await server.post("/destroy_weights_update_group", {"group_name": group["group"]})
        except ServerError as error:
            if "does not exist" not in str(error):
                raise
        await server.post(
            "/init_weights_update_group",
            {
                "master_address": group["host"],
                "master_port": group["port"],
                "rank_offset": group["rank"],
                "world_size": group["world_size"],
                "group_name": group["group"],
                "backend": group["backend"],
            },
        )

    async def load(self, server: ServerClient, order: dict[str, Any], version: int, kv_on_update: KvOnUpdate) -> None:
        """See ``ServerDialect.load``."""
        stamp = {"weight_version": str(version), "flush_cache": kv_on_update != "keep"}
        match order["way"]:
            case "disk":
                await server.post("/update_weights_from_disk", {"model_path": order["path"]} | stamp)
            case "broadcast":
                bodies = [
                    {
                        **{key: order[key][start:stop] for key in ("names", "dtypes", "shapes")},
                        "group_name": order["group"],
                        "load_format": "flattened_bucket",
                    }
                    for start, stop in order["buckets"]
                ]
                await _update(server, "/update_weights_from_distributed", bodies, stamp)
            case "cuda_ipc":
                body = {"serialized_named_tensors": order["handles"], "load_format": order.get("load_format")}
                await _update(server, "/update_weights_from_tensor", [body], stamp)
            case "lora":
                await self._load_adapter(server, order, version)
            case way:
                raise ServerError(f"SGLang takes no weights by the way {way!r}; use disk, gloo, nccl or cuda_ipc")

    async def _load_adapter(self, server: ServerClient, order: dict[str, Any], version: int) -> None:
        # Requests of the adapter that is replaced end with what they have, or its unloading would wait for them.
        await self.pause(server, "abort")
        loaded = await server.get("/v1/models")
        with understood(server, _KIND):
            is_there = any(card["id"] == order["name"] for card in loaded["data"])
        if is_there:
            await server.post("/unload_lora_adapter", {"lora_name": order["name"]})
        await server.post("/load_lora_adapter", {"lora_name": order["name"], "lora_path": order["path"]})
        await self.set_version(server, version)

    async def forget_prefixes(self, server: ServerClient) -> None:
        """See ``ServerDialect.forget_prefixes``. Waits for requests that nobody awaits any more."""
        await server.post("/flush_cache", timeout=_FLUSH_SECONDS)

    async def set_version(self, server: ServerClient, version: int) -> None:
        """See ``ServerDialect.set_version``."""
        # Its default ends every request in flight.
        await server.post("/update_weight_version", {"new_version": str(version), "abort_all_requests": False})

    async def sleep(self, server: ServerClient) -> None:
        """See ``ServerDialect.sleep``. Requests in flight are computed again afterwards."""
        await server.post("/pause_generation", {"mode": "retract"})
        await server.post("/release_memory_occupation", {"tags": ["kv_cache", "weights"]})

    async def wake_up(self, server: ServerClient) -> None:
        """See ``ServerDialect.wake_up``."""
        await server.post("/resume_memory_occupation", {"tags": ["weights", "kv_cache"]})


async def _update(server: ServerClient, route: str, bodies: list[dict[str, Any]], stamp: dict[str, Any]) -> None:
    """Load in several parts; the last one carries the version and empties the prefix cache."""
    begin = {"selector": "all"}
    try:
        await server.post("/begin_weight_update", begin)
    except ServerError as error:
        if "already open" not in str(error):
            raise
        # Left open by an update that failed half-way; what it loaded is loaded again in whole.
        await server.post("/end_weight_update", {})
        await server.post("/begin_weight_update", begin)
    for body in bodies[:-1]:
        await server.post(route, body | {"flush_cache": False})
    await server.post(route, bodies[-1] | stamp)
    await server.post("/end_weight_update", {})


def _truncates(sampling: SamplingParams) -> bool:
    return sampling.temperature > 0.0 and (sampling.top_p < 1.0 or sampling.top_k > 0)


def _stop_expression(text: str, request_id: str) -> str:
    """An expression that matches ``text`` and is long enough that SGLang looks at all tokens that may have made it.

    SGLang looks at as many tokens as the expression has characters, and a character may be made of as many tokens as
    it has bytes; the second branch, which matches nothing, is as long as what is missing.
    """
    spare = len(text.encode()) - len(text) + 1
    expression = re.escape(text) + rf"|\Zx{{{spare}}}"
    if len(expression.encode()) > _MAX_EXPRESSION_BYTES:
        raise RequestError(
            f"{request_id}: a stop string of {len(text.encode())} bytes; SGLang takes expressions of "
            f"{_MAX_EXPRESSION_BYTES} bytes at most, so shorten it to its beginning"
        )
    return expression
