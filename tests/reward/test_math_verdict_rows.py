"""The documented differences: each row of the table holds on both sides, and the pages show the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from areal_x.api.reward_api import RewardResult
from areal_x.reward import get_reward_fn
from areal_x.reward.math.verdicts import VERDICTS, VerdictRow, verdict_table

DOCS = Path(__file__).parents[2] / "docs"


def value(result: Any) -> float:
    if isinstance(result, dict):
        return float(result["score"])
    assert not isinstance(result, RewardResult) or result.value is not None
    return float(result.value) if isinstance(result, RewardResult) else float(result)


@pytest.mark.parametrize("row", VERDICTS, ids=lambda row: f"{row.reward}-{row.completion[:20]}")
def test_each_row_holds_on_both_sides(row: VerdictRow) -> None:
    theirs = get_reward_fn(row.reward, compat=row.compat)
    if row.theirs is None:
        with pytest.raises(ValueError, match="could not convert"):
            theirs(completions=row.completion, answer=row.gold)
    else:
        assert value(theirs(completions=row.completion, answer=row.gold)) == row.theirs
    assert value(get_reward_fn(row.reward)(completions=row.completion, answer=row.gold)) == row.ours
    assert row.theirs != row.ours and all(row.why)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_shows_the_rows(language: str) -> None:
    page = (DOCS / language / "rewards" / "verdicts.md").read_text(encoding="utf-8")
    shown = [line for line in page.splitlines() if line.startswith("| ")]
    wanted = verdict_table(language).splitlines()
    assert shown[: len(wanted)] == wanted, f"paste verdict_table({language!r}) into the page"
