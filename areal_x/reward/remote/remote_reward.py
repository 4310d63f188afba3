"""A reward that HTTP servers give, in the shapes of slime's and OpenRLHF's remote reward models."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from areal_x.api.errors import ConfigError, DataError
from areal_x.api.reward_arguments import GROUP_ARGUMENTS
from areal_x.api.reward_records import RewardError
from areal_x.reward.registry import register_reward
from areal_x.reward.remote.client import CallLimits, ServersClient
from areal_x.reward.remote.messages import openrlhf_body, openrlhf_results, slime_body, slime_result
from areal_x.reward.remote.secret_headers import SecretHeaders
from areal_x.reward.remote.urls import HostPolicy, Target, TargetError, parse_url

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

__all__ = ["RemoteReward"]


@register_reward(
    "remote_rm",
    extracts="nothing; a server gets prompt, completion and label",
    returns="what the server returns: a number or a dict",
)
class RemoteReward:
    """What an HTTP server returns, in slime's or OpenRLHF's shape.

    Args:
        urls: of one server, or several that give the same rewards.
        shape: ``slime`` or ``openrlhf``.
        batch: send the completions of a whole group in one request (``openrlhf`` only).
        label_key: column that is sent as the label; None: null is sent.
        timeout_seconds: limit of one attempt, from the connection to the last byte.
        deadline_seconds: limit of a call with all its attempts, from when it got a slot.
        max_attempts: how often a call is sent at most.
        max_concurrent: calls under way at once; others wait for a slot.
        backoff_seconds: first pause of a call before it asks the same server again; doubles each time, up to 30 s.
        cooldown_seconds: how long a server that failed is left alone at first; doubles up to 16 times.
        max_response_bytes: limit of a reply.
        headers_env: header -> environment variable with its secret value, or a text such as ``Bearer {NAME}``.
        allowed_hosts: names, ``host:port``, addresses and networks that may be called; None: exactly those of ``urls``.
        allow_private: names may stand for private and loopback addresses.
        max_redirects: how many redirects (307, 308) are followed, to allowed hosts only. 0: a redirect is an error.
        resolver: asked for the addresses of names in place of the system.

    Raises:
        ConfigError: an option has a value that cannot work.
    """

    owns_deadline = True
    """``deadline_seconds`` bounds a call: the wait for a slot must not count."""

    def __init__(
        self,
        *,
        urls: str | Sequence[str],
        shape: Literal["slime", "openrlhf"] = "slime",
        batch: bool = False,
        label_key: str | None = "answer",
        timeout_seconds: float = 30.0,
        deadline_seconds: float = 120.0,
        max_attempts: int = 6,
        max_concurrent: int = 256,
        backoff_seconds: float = 0.5,
        cooldown_seconds: float = 2.0,
        max_response_bytes: int = 1 << 20,
        headers_env: Mapping[str, str] | None = None,
        allowed_hosts: Sequence[str] | None = None,
        allow_private: bool = False,
        max_redirects: int = 0,
        resolver: AbstractResolver | None = None,
    ) -> None:
        if shape not in ("slime", "openrlhf"):
            raise ConfigError(f"shape={shape!r} is unknown; write slime or openrlhf")
        if batch and shape != "openrlhf":
            raise ConfigError("batch=true needs shape=openrlhf: a request in slime's shape holds one completion")
        if label_key in GROUP_ARGUMENTS:
            raise ConfigError(f"label_key={label_key!r} is an argument of rewards, and no column of the data")
        self.shape = shape
        self.is_group_reward = batch
        self.label_key = label_key
        self._limits = CallLimits(
            timeout_seconds, deadline_seconds, max_attempts, max_concurrent, backoff_seconds, cooldown_seconds
        )
        _check_limits(self._limits, max_response_bytes, max_redirects)
        self._targets = _parse_urls(urls)
        self._policy = HostPolicy.of(self._targets, allowed_hosts, allow_private)
        self._secrets = SecretHeaders(headers_env or {})
        self._transport_options = (max_response_bytes, max_redirects, resolver)
        self._client: ServersClient | None = None
        self.__signature__ = _signature(label_key)

    def __repr__(self) -> str:
        return f"RemoteReward({', '.join(target.origin for target in self._targets)}, shape={self.shape!r})"

    async def start(self) -> None:
        """Make the connections' pool, on the event loop of the run. Nothing is sent yet."""
        from areal_x.reward.remote.transport import HttpTransport

        if self._client is None:
            transport = HttpTransport(self._policy, self._secrets, *self._transport_options)
            self._client = ServersClient(self._targets, self._limits, transport, self._secrets)

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raise ``DataError`` if the data has no label column."""
        if self.label_key is not None and self.label_key not in columns:
            raise DataError(_no_label(self.label_key, columns))

    def metrics(self) -> dict[str, float]:
        """Running totals since ``start``: calls and how they ended, attempts and how they failed, the servers' state.

        ``calls`` is ``succeeded + failed + timed_out + cancelled + in_progress``. ``attempts`` is ``replies +
        cancelled_attempts`` and all ``fault/...`` together, once no call is in progress.
        """
        return {} if self._client is None else self._client.metrics()

    async def __call__(self, prompt: str, completions: Any, **columns: Any) -> Any:
        """Ask for the reward of one completion, or with ``batch`` for those of a list of completions of one prompt.

        Raises:
            RemoteRewardError: no server gave one.
            RewardTimeoutError: the same, and the last attempt got no reply in time.
            DataError: there is no label column, or it cannot be written as JSON.
        """
        if self._client is None:
            raise RewardError("RemoteReward has no connections; await its start() before the first call")
        self.check_columns(columns)
        label = None if self.label_key is None else columns[self.label_key]
        if self.shape == "slime":
            return await self._client.ask(slime_body(prompt, completions, label), slime_result)
        texts = list(completions) if self.is_group_reward else [completions]
        results = await self._client.ask(
            openrlhf_body(prompt, texts, label), lambda reply: openrlhf_results(reply, len(texts))
        )
        return results if self.is_group_reward else results[0]


def _check_limits(limits: CallLimits, max_response_bytes: int, max_redirects: int) -> None:
    values = {name: getattr(limits, name) for name in CallLimits.__slots__} | {"max_response_bytes": max_response_bytes}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(f"{name} must be a number above 0, got {value!r}")
    if isinstance(max_redirects, bool) or not isinstance(max_redirects, int) or max_redirects < 0:
        raise ConfigError(f"max_redirects must be 0 or more, got {max_redirects!r}")
    if limits.deadline_seconds < limits.timeout_seconds:
        raise ConfigError(
            f"deadline_seconds={limits.deadline_seconds:g} is for all attempts of a call and must not be below "
            f"timeout_seconds={limits.timeout_seconds:g}, which is for one"
        )


def _parse_urls(urls: str | Sequence[str]) -> list[Target]:
    try:
        targets = [parse_url(str(url)) for url in ([urls] if isinstance(urls, str) else urls)]
    except TargetError as error:
        raise ConfigError(f"urls: {error}") from None
    if not targets or len({target.url for target in targets}) < len(targets):
        raise ConfigError("urls must hold at least one URL, and none twice")
    return targets


def _no_label(label_key: str, columns: Iterable[str]) -> str:
    names = ", ".join(sorted(columns)) or "none"
    return f"label_key={label_key!r} is no column of the data, which has: {names}; name another, or null to send none"


def _signature(label_key: str | None) -> inspect.Signature:
    """What this reward takes, so that it is not handed the other columns. Only ``**`` takes a name with a space."""
    names = ["prompt", "completions"]
    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    if label_key is not None:
        if label_key.isidentifier() and not keyword.iskeyword(label_key):
            parameters.append(inspect.Parameter(label_key, inspect.Parameter.KEYWORD_ONLY, default=None))
        else:
            parameters.append(inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)
