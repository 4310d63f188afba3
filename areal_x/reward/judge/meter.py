"""Running totals of a judge: every call and every request ends in exactly one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

__all__ = ["JudgeMeter"]

_MILLION = 1_000_000
_ALWAYS = ("calls", "answered", "failed", "cancelled", "requests", "replies", "prompt_tokens", "completion_tokens")


class JudgeMeter:
    """Counts calls, requests, tokens and seconds.

    ``calls = answered + failed + cancelled + in_flight``; of them ``cache_hits`` and ``shared`` sent nothing.
    ``requests = replies + fault/... + requests_cancelled`` once nothing is under way.

    Args:
        price_per_million: price of a million ``prompt`` and ``completion`` tokens; empty: no cost is shown.
    """

    def __init__(self, price_per_million: Mapping[str, float]) -> None:
        self.totals: Counter[str] = Counter()
        self.seconds: dict[str, float] = {"wait_seconds": 0.0, "request_seconds": 0.0}
        self._price = dict(price_per_million)

    def add(self, name: str, amount: int = 1) -> None:
        """Count one more (or ``amount``)."""
        self.totals[name] += amount

    def add_seconds(self, name: str, seconds: float) -> None:
        """``wait_seconds`` (for a place or a turn) or ``request_seconds`` (for servers)."""
        self.seconds[name] += seconds

    @property
    def cost(self) -> float:
        """What the tokens cost, in the currency of the prices."""
        return sum(price * self.totals[f"{kind}_tokens"] for kind, price in self._price.items()) / _MILLION

    def metrics(self) -> dict[str, float]:
        """All totals."""
        found = {name: float(self.totals[name]) for name in (*_ALWAYS, *self.totals)} | self.seconds
        found["in_flight"] = found["calls"] - found["answered"] - found["failed"] - found["cancelled"]
        if self._price:
            found["cost"] = self.cost
        return found
