"""How long a call leaves a server alone before it asks again: what the server wishes, and a pause that grows."""

from __future__ import annotations

import email.utils
import math
import random
import time
from collections.abc import Mapping

__all__ = ["backoff_seconds", "retry_after_seconds"]

_LONGEST_BACKOFF_SECONDS = 30.0


def retry_after_seconds(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that ``retry-after-ms`` or ``Retry-After`` (a number or a date, RFC 9110, 10.2.3) asks for.

    Args:
        headers: with small or any letters, as the mapping looks them up.
        now: seconds since the epoch; None: the system's clock.

    Returns:
        0 or more; None where nothing readable is asked for.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        moment = email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, moment - (time.time() if now is None else now))


def backoff_seconds(
    num_faults: int, first: float, retry_after: float | None = None, chance: float | None = None
) -> float:
    """The pause after the ``num_faults``-th fault of a call.

    ``first`` seconds, doubled with each fault up to 30 s, of which a random half is taken off, so that calls that
    failed together do not come back together. A ``Retry-After`` is kept in full and spread over another tenth.

    Args:
        chance: 0 to 1; None: random.
    """
    chance = random.random() if chance is None else chance
    # The exponent is capped, since 2.0**1024 overflows.
    pause = min(first * 2.0 ** min(num_faults - 1, 30), _LONGEST_BACKOFF_SECONDS) * (1.0 - 0.5 * chance)
    return pause if retry_after is None else max(pause, retry_after * (1.0 + 0.1 * chance))
