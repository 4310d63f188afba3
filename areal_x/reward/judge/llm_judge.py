"""A language model as a reward, asked through an OpenAI-compatible server.

A call of the reward consumes a completion (or a group) and becomes one or more questions. Each is looked up in the
cache, waits for a place and a turn under the limits that the run's judges share, and is sent until a whole reply has
come or its deadline has passed. It produces rewards, or an error that says what happened; never a number of its own.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from areal_x.api.errors import ConfigError
from areal_x.api.reward_records import RewardResult
from areal_x.reward.judge.cache import ReplyCache
from areal_x.reward.judge.call import JudgeCaller
from areal_x.reward.judge.endpoint import Endpoint, close_endpoint, open_endpoint
from areal_x.reward.judge.forms import ParserName, check_scale, check_words, make_parser, make_winner_parser
from areal_x.reward.judge.meter import JudgeMeter
from areal_x.reward.judge.modes import WINNERS, Pairwise, Ranking, Single, Voting
from areal_x.reward.judge.parsing import Scale
from areal_x.reward.judge.prompts import JudgeMode, JudgePrompt
from areal_x.reward.judge.ranking import RankingParser
from areal_x.reward.judge.settings import CallLimits, ServerSettings, check_sampling
from areal_x.reward.judge.votes import Aggregate
from areal_x.reward.options import check_choice, check_column, check_number, check_whole_number
from areal_x.reward.registry import register_reward

__all__ = ["LLMJudge"]


@register_reward("judge", extracts="a language model's verdict", returns="0 to 1, or the numbers of its scale")
class LLMJudge:
    """The verdict of a language model, asked through an OpenAI-compatible server.

    Args:
        model: its name on the server.
        base_url: of the server, with ``/v1`` where it has that.
        api_key_env: the environment variable with the key; None: the server needs none.
        mode: ``single`` scores each completion; ``pairwise`` and ``ranking`` compare the completions of a group.
        prompt: template with ``{prompt}``, ``{completion}`` (pairwise: ``{completion_a}`` and ``{completion_b}``,
            ranking: ``{completions}``), ``{rubric}``, ``{format}`` and any column of the data.
        system: template of the system text.
        rubric: what counts, in words.
        parser: how the verdict stands in the reply: ``json``, ``number``, ``regex`` or ``choice``.
        scale: the lowest and the highest score.
        normalize: whether rewards are 0 to 1 instead of on the scale (``single``).
        key: where the score is in the JSON object.
        pattern: regular expression whose first group is the score (``regex``).
        choices: verdict words with their scores (``choice``, ``json``).
        structured_output: whether the server is asked to keep to the JSON schema; one that refuses is asked without.
        reference: column with an answer to compare each completion with (``pairwise``); None: the others of the group.
        votes: how often each question is asked.
        min_votes: how many of them must give a verdict; None: all.
        aggregate: ``mean``, ``median`` or ``majority`` (more than half) of the votes.
        sampling: parameters of the request; None: temperature 0 (0.7 with several votes) and ``max_tokens`` 1024.
        max_concurrent, requests_per_minute, tokens_per_minute: limits of the run for this model, shared by its judges.
        proxy: address of the HTTP proxy to go through; None: none, whatever the environment says.
        max_response_bytes: limit of a reply.
        timeout_seconds, deadline_seconds, max_wait_seconds, max_attempts, backoff_seconds: see ``CallLimits``.
        cache: file that keeps replies for later runs; None: none are kept.
        price_per_million: price of a million ``prompt`` and ``completion`` tokens; None: no cost is shown.

    Raises:
        ConfigError: an option has a value that cannot work.
    """

    owns_deadline = True
    """``deadline_seconds`` bounds the work, and waiting for a place or a turn must not count as work."""

    def __init__(
        self,
        *,
        model: str,
        base_url: str = "https://api.openai.com/v1",
        api_key_env: str | None = "OPENAI_API_KEY",
        mode: JudgeMode = "single",
        prompt: str | None = None,
        system: str | None = None,
        rubric: str | None = None,
        parser: ParserName = "json",
        scale: Sequence[float] = (0, 10),
        normalize: bool = True,
        key: str = "score",
        pattern: str | None = None,
        choices: Mapping[str, float] | None = None,
        structured_output: bool = True,
        reference: str | None = None,
        votes: int = 1,
        min_votes: int | None = None,
        aggregate: Aggregate = "mean",
        sampling: Mapping[str, Any] | None = None,
        max_concurrent: int = 64,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        proxy: str | None = None,
        max_response_bytes: int = 1 << 20,
        timeout_seconds: float = 60.0,
        deadline_seconds: float = 180.0,
        max_wait_seconds: float = 3600.0,
        max_attempts: int = 6,
        backoff_seconds: float = 0.5,
        cache: str | None = None,
        price_per_million: Mapping[Literal["prompt", "completion"], float] | None = None,
    ) -> None:
        check_choice("judge", "mode", mode, ("single", "pairwise", "ranking"))
        self._settings = ServerSettings(
            str(base_url).rstrip("/"),
            model,
            api_key_env,
            max_concurrent,
            requests_per_minute,
            tokens_per_minute,
            proxy,
            max_response_bytes,
        )
        self._limits = CallLimits(timeout_seconds, deadline_seconds, max_wait_seconds, max_attempts, backoff_seconds)
        voting = _check_voting(votes, min_votes, aggregate)
        words = check_words(choices) if choices is not None else None
        on_scale = Scale(min(words.values()), max(words.values())) if words else check_scale(scale)
        if mode != "single" and (pattern is not None or words is not None):
            raise ConfigError(f"reward 'judge': pattern and choices go with mode=single, not with {mode!r}")
        if reference is not None and mode != "pairwise":
            raise ConfigError(f"reward 'judge': reference goes with mode=pairwise, not with {mode!r}")
        if reference is not None:
            check_column("judge", "reference", reference)
        self._mode: Single | Pairwise | Ranking
        if mode == "single":
            form = make_parser(parser, on_scale, key, pattern, words)
            templates = JudgePrompt(mode, prompt, system, rubric, form.instruction)
            self._mode = Single(templates, form, on_scale, voting, normalize)
        elif mode == "pairwise":
            check_choice("judge", "parser", parser, ("json", "choice"))
            form = make_winner_parser(parser, WINNERS)
            templates = JudgePrompt(mode, prompt, system, rubric, form.instruction)
            self._mode = Pairwise(templates, form, voting, reference)
        else:
            check_choice("judge", "parser", parser, ("json", "number"))
            ranks = RankingParser(parser == "json")
            templates = JudgePrompt(mode, prompt, system, rubric, ranks.instruction)
            self._mode = Ranking(templates, ranks, voting)
        self.mode = mode
        self.is_group_reward = mode != "single"
        self.min_group_size = 1 if mode == "single" or reference else 2
        self.__signature__ = _signature(templates.columns | ({reference} if reference else set()))
        self._sampling = check_sampling(
            {"temperature": 0.0 if votes == 1 else 0.7, "max_tokens": 1024} if sampling is None else sampling
        )
        self._structured_output = structured_output
        self._cache_path = cache
        self._meter = JudgeMeter(_check_prices(price_per_million))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._endpoint: Endpoint | None = None
        self._cache: ReplyCache | None = None
        self._caller: JudgeCaller | None = None

    def __repr__(self) -> str:
        return f"LLMJudge({self._settings.name}, mode={self.mode!r})"

    async def start(self) -> None:
        """Open the client and the cache, if they are not open on this loop.

        Raises:
            ConfigError: no key in the environment, a cache that cannot be used, or too few file descriptors.
        """
        self._open()

    def _open(self) -> JudgeCaller:
        loop = asyncio.get_running_loop()
        if self._caller is not None and self._loop is loop:
            return self._caller
        self._cache = ReplyCache(self._cache_path) if self._cache_path is not None else None
        self._endpoint = open_endpoint(self._settings)
        schema = self._mode.parser.schema if self._structured_output else None
        response_format = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
        self._caller = JudgeCaller(
            self._endpoint,
            self._limits,
            self._meter,
            self._sampling,
            response_format if schema else None,
            repr(self._mode.parser),
            self._cache,
        )
        self._loop = loop
        return self._caller

    async def close(self) -> None:
        """Cancel what is under way, write the cache, and close the client where no other judge uses it."""
        caller, endpoint, cache = self._caller, self._endpoint, self._cache
        self._caller = self._endpoint = self._cache = None
        if caller is not None and self._loop is asyncio.get_running_loop():
            await caller.close()
            if cache is not None:
                await cache.close()
            if endpoint is not None:
                await close_endpoint(endpoint)

    def metrics(self) -> dict[str, float]:
        """Running totals: see ``JudgeMeter``."""
        found = self._meter.metrics()
        if self._cache is not None:
            found["cache_errors"] = float(self._cache.num_errors)
        return found

    async def __call__(
        self, prompt: str, completions: str | list[str], **columns: Any
    ) -> RewardResult | list[RewardResult | None]:
        """Judge a completion, or in the modes of groups all completions of a prompt.

        Raises:
            JudgeError: there is no verdict.
        """
        caller = self._open()
        await caller.enter()
        try:
            values = {**columns, "prompt": prompt}
            if isinstance(self._mode, Single):
                return await self._mode.score(caller, {**values, "completion": completions})
            return await self._mode.score_group(caller, list(completions), values)
        finally:
            caller.leave()


def _check_voting(votes: int, min_votes: int | None, aggregate: Aggregate) -> Voting:
    check_whole_number("judge", "votes", votes, 1)
    check_choice("judge", "aggregate", aggregate, ("mean", "median", "majority"))
    if min_votes is not None and check_whole_number("judge", "min_votes", min_votes, 1) > votes:
        raise ConfigError(f"reward 'judge': min_votes={min_votes} is above votes={votes}")
    return Voting(votes, votes if min_votes is None else min_votes, aggregate)


def _check_prices(prices: Mapping[Literal["prompt", "completion"], float] | None) -> dict[str, float]:
    if prices is None:
        return {}
    if not isinstance(prices, Mapping) or not set(prices) <= {"prompt", "completion"}:
        raise ConfigError(
            f"reward 'judge': price_per_million={prices!r} takes prompt and completion, as in {{prompt: 0.15}}"
        )
    return {kind: check_number("judge", f"price_per_million.{kind}", price, 0.0) for kind, price in prices.items()}


def _signature(columns: frozenset[str] | set[str]) -> inspect.Signature:
    """Exactly what the templates name, so that a column that the data lacks is an error before the run starts."""
    kind = inspect.Parameter.KEYWORD_ONLY
    names = ["prompt", "completions", *sorted(columns)]
    return inspect.Signature([inspect.Parameter(name, kind) for name in names])
