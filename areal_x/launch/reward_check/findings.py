"""Mistakes that the scores, the times and the outcomes of a check show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from areal_x.launch.reward_check import summary
from areal_x.launch.reward_check.derived import KINDS
from areal_x.launch.reward_check.error_text import clipped, digest
from areal_x.launch.reward_check.finding import Finding
from areal_x.launch.reward_check.report import RewardReport

__all__ = ["measured_findings"]

_TOLERATED_SHARE = 0.05
"""Data has errors of its own, and chance makes a number come out right."""
_HUGE = 100.0
_MUCH_OUTPUT = 100
"""Characters for each call."""
_SHOWN_ERRORS = 5
_OTHER_FORM = "if the reward wants another form, give --gold-format, such as '\\boxed{{answer}}'"

_BAD_RETURNS = {
    " a bool": "return float(...), or 1.0 and 0.0",
    "finite number": "guard the division or logarithm; return None where the reward does not apply",
    "dict without": "return that key, or name another: --reward-key, in a run reward.reward_key",
    "for a group of": "return a list with one result for each sample, in their order",
}
_UNREWARDED = ("wrong", "truncated", "empty", "garbage", "echo")
"""Kinds of completions that ought to score nothing."""


def measured_findings(report: RewardReport) -> list[Finding]:
    """All that the runs show."""
    checks = (
        _failures,
        _bad_scores,
        _never,
        _constant,
        _stalls,
        _of_file,
        _gold,
        _rewarded,
        _prompt_read,
        _differing,
        _warnings,
    )
    return [finding for check in checks for finding in check(report)]


def _failures(report: RewardReport) -> Iterator[Finding]:
    failed = [outcome for outcomes in report.runs.outcomes for outcome in outcomes if outcome.error]
    total = sum(map(len, report.runs.outcomes))
    counts = Counter(outcome.status for outcome in failed)
    if counts["timeout"]:
        yield Finding(
            "timeout",
            "error",
            f"{counts['timeout']} of {total} calls did not return within {report.options.timeout_seconds:g} s",
            "bound the work (an endless loop, a regular expression that backtracks, a server that does not answer), "
            "or raise --timeout and reward.timeout_seconds",
        )
    if counts["crash"]:
        first = next(outcome for outcome in failed if outcome.status == "crash")
        yield Finding(
            "crash",
            "error",
            f"{counts['crash']} of {total} calls killed their worker, twice: {clipped(str(first.error), 200)}",
            "look for exits, recursion in C code and memory above the limit",
        )
    raised: dict[tuple[str, str], list[str]] = {}
    for outcome in failed:
        if outcome.status == "error" and "Traceback" in str(outcome.error):
            line, place = digest(str(outcome.error))
            raised.setdefault((line.partition(":")[0], place), []).append(line)
    gold_fails = any(outcome.status == "error" for _, outcome in report.of_kind("gold"))
    for (_, place), lines in sorted(raised.items(), key=lambda item: -len(item[1]))[:_SHOWN_ERRORS]:
        yield Finding(
            "raises",
            "error",
            f"{len(lines)} of {total} calls raise {clipped(lines[0], 200)}{f' at {place}' if place else ''}",
            "it fails for gold solutions, too: see the traceback above"
            if gold_fails
            else "handle the texts that models write (empty, cut off, garbage), by a score or None",
        )


def _bad_scores(report: RewardReport) -> Iterator[Finding]:
    failed = (o.error for outcomes in report.runs.outcomes for o in outcomes if o.status == "error" and o.error)
    errors = [error.removeprefix(f"reward {report.name}: ") for error in failed]
    by_fix: dict[str, list[str]] = {}
    for error in errors:
        if "Traceback" not in error:
            fix = next((fix for part, fix in _BAD_RETURNS.items() if part in error), "return a number, a dict or None")
            by_fix.setdefault(fix, []).append(error)
    for fix, same in by_fix.items():
        yield Finding("not_a_reward", "error", f"{len(same)} times, first: {clipped(same[0], 300)}", fix)


def _never(report: RewardReport) -> Iterator[Finding]:
    if report.outcomes and all(outcome.status == "not_applicable" for outcome in report.outcomes):
        yield Finding(
            "never_applies",
            "error",
            "the reward is None for every completion: every sample of a run would be rejected",
            "a branch without return gives None",
        )


def _is_constant(report: RewardReport) -> bool:
    """One score for different completions, where that is not what was expected."""
    scores, checked = report.scores, report.agreement
    as_expected = checked.known == checked.agreed == len(scores)
    return len({sample.completion for sample in report.samples}) > 1 and len(set(scores)) == 1 and not as_expected


def _constant(report: RewardReport) -> Iterator[Finding]:
    if not _is_constant(report):
        return
    scores = report.scores
    zero = scores[0] == 0
    yield Finding(
        "all_zero" if zero else "constant_score",
        "error",
        f"every completion scores {scores[0]:g}: all advantages are 0 and nothing is learned",
        f"compare a gold solution with what the reward finds in it; {_OTHER_FORM}"
        if scores[0] <= report.options.threshold
        else "make the score depend on the completion",
    )


def _stalls(report: RewardReport) -> Iterator[Finding]:
    places = Counter(stall.place for stall in report.runs.stalls)
    for place, count in places.most_common(3):
        longest = max(stall.seconds for stall in report.runs.stalls if stall.place == place)
        yield Finding(
            "event_loop_stall",
            "error",
            f"the event loop stood still in {place}: {longest:.2f} s at most ({count} times); in a run, generation and "
            "all other rewards would wait",
            "await an asynchronous call; put computing into a def reward, which runs in a worker process",
        )


def _of_file(report: RewardReport) -> Iterator[Finding]:
    wrong = [index for index in report.agreement.disagreeing if report.samples[index].exact]
    if wrong:
        known = sum(sample.exact and sample.expected is not None for sample in report.samples)
        sample, outcome = report.samples[wrong[0]], report.outcomes[wrong[0]]
        yield Finding(
            "disagrees_with_file",
            "error",
            f"{len(wrong)} of {known} scores are not those of the completions file; first: item {sample.item} scores "
            f"{outcome.value:g}, expected {sample.expected:g}",
            "the samples are listed above",
        )


def _gold(report: RewardReport) -> Iterator[Finding]:
    gold = [(sample, outcome) for sample, outcome in report.of_kind("gold") if outcome.value is not None]
    low = [(sample, outcome) for sample, outcome in gold if (outcome.value or 0.0) <= report.options.threshold]
    if len(low) > _TOLERATED_SHARE * len(gold) and not _is_constant(report):
        yield Finding(
            "gold_not_rewarded",
            "warning",
            f"{len(low)} of {len(gold)} gold solutions score at most {report.options.threshold:g}",
            f"{_OTHER_FORM}; if 1 is not its highest score, --threshold",
        )
    from_data = bool(report.samples) and all(sample.kind != "file" for sample in report.samples)
    if from_data and not any(sample.kind == "gold" for sample in report.samples):
        yield Finding(
            "no_gold",
            "note",
            "no column holds gold solutions, so only texts were tried that ought to score nothing",
            "--gold-key COLUMN, or --completions FILE",
        )


def _high(report: RewardReport, kind: str) -> tuple[int, int]:
    """How many completions of a kind score as right ones do, and how many are scored."""
    scores = [outcome.value for _, outcome in report.of_kind(kind) if outcome.value is not None]
    return sum(score > report.options.threshold for score in scores), len(scores)


def _rewarded(report: RewardReport) -> Iterator[Finding]:
    high = {kind: _high(report, kind) for kind in _UNREWARDED}
    shown = [
        f"{count} of {total} {kind} ({KINDS[kind]})"
        for kind, (count, total) in high.items()
        if count > _TOLERATED_SHARE * total
    ]
    if shown and not _is_constant(report):
        yield Finding(
            "wrong_texts_rewarded",
            "warning",
            f"texts that are not right score above {report.options.threshold:g}: {'; '.join(shown)}",
            "a policy that is to be right would learn these instead; for a reward of form or length they are in order",
        )


def _prompt_read(report: RewardReport) -> Iterator[Finding]:
    count, total = _high(report, "leak")
    if report.differing:
        return  # Two scores of one text differ, so that those of two texts say nothing.
    if count - _high(report, "empty")[0] > _TOLERATED_SHARE * total:
        yield Finding(
            "reads_the_prompt",
            "warning",
            f"{count} of {total} empty completions score above {report.options.threshold:g} when the answer stands in "
            "the prompt, as in one with examples",
            "score the completion alone, not the prompt with it",
        )


def _differing(report: RewardReport) -> Iterator[Finding]:
    if report.differing:
        yield Finding(
            "not_deterministic",
            "warning",
            f"{len(report.differing)} of {len(report.samples)} completions score differently in "
            f"{len(report.runs.outcomes)} runs",
            "return the results in the order of the samples, whatever that is (it changes from run to run)"
            if report.is_group
            else "look for chance, time, the order of a set, and state that calls leave behind (runs differ in order)",
        )


def _warnings(report: RewardReport) -> Iterator[Finding]:
    scores, runs, limit = report.scores, report.runs, report.options.timeout_seconds
    if scores and max(map(abs, scores)) > _HUGE:
        largest = max(scores, key=abs)
        yield Finding(
            "huge_score",
            "warning",
            f"a score of {largest:g}: one sample would outweigh its whole group",
            "scale it to about -1 to 1, or set reward clipping in the configuration",
        )
    slow = summary.percentile(report.call_seconds, 0.99) if report.call_seconds else 0.0
    if limit / 2 < slow < limit:
        yield Finding(
            "slow",
            "warning",
            f"p99 is {slow:.2f} s, near the deadline of {limit:g} s: on a busy machine such calls time out",
            "make it faster, or raise --timeout and reward.timeout_seconds",
        )
    calls = sum(map(len, runs.outcomes))
    if runs.printed_characters > _MUCH_OUTPUT * max(calls, 1):
        first = clipped(runs.first_output, 60)
        yield Finding(
            "prints_much",
            "warning",
            f"{runs.printed_calls} calls print {runs.printed_characters:,} characters; the first: {first}",
            "return what you want to see in RewardResult.metadata; a worker's output is dropped unless it fails",
        )
    if runs.retried and not any(outcome.status == "crash" for outcomes in runs.outcomes for outcome in outcomes):
        yield Finding(
            "worker_died",
            "warning",
            f"{runs.retried} calls killed their worker and were tried once more",
            "look for memory above the limit and for exits in libraries",
        )
