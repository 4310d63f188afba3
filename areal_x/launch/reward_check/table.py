"""A report as tables, for terminals and notebooks. Needs rich."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from areal_x.launch.reward_check import summary
from areal_x.launch.reward_check.derived import KINDS
from areal_x.launch.reward_check.error_text import clipped, digest
from areal_x.launch.reward_check.report import RewardReport

__all__ = ["print_report", "render_html", "render_text"]

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim", "ok": "green"}
_MARKS = {"error": "✗", "warning": "!", "note": "·"}
_SHOWN_SAMPLES = 3
_SHOWN_TRACE_LINES = 12
_SHOWN_TEXT = 160
_BAR_WIDTH = 40
_HTML_WIDTH = 110


def print_report(report: RewardReport) -> None:
    """Print to the standard output, in colour where it is a terminal, as wide as that is."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(_whole(report))
    else:
        sys.stdout.write(render_text(report, console.width) + "\n")


def render_text(report: RewardReport, width: int = 100) -> str:
    """The tables as plain text."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    with console.capture() as capture:
        console.print(_whole(report))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def render_html(report: RewardReport) -> str:
    """The tables for a notebook, with their colours and without anything that a text in them could start."""
    console = Console(file=io.StringIO(), width=_HTML_WIDTH, highlight=False, record=True, force_jupyter=False)
    console.print(_whole(report))
    frame = '<pre style="white-space:pre;overflow-x:auto;line-height:1.25;font-family:monospace">{code}</pre>'
    return console.export_html(inline_styles=True, code_format=frame)


def _whole(report: RewardReport) -> RenderableType:
    sections = [_head(report)]
    if report.outcomes:
        sections += [_outcomes(report), *_traces(report), _kinds(report), _bars(report), *_parts(report)]
        sections += [*_totals(report), _times(report), *_agreement(report), *_runs(report)]
    return Group(*(Padding(section, (0, 0, 1, 0)) for section in sections), *_findings(report))


def _head(report: RewardReport) -> RenderableType:
    items = len({sample.item for sample in report.samples})
    where = "async def, on the event loop" if report.is_async else "def, in worker processes"
    first = Text.assemble(("reward ", "bold"), (report.reward, "bold cyan"), f" on {report.data.source}")
    if not report.outcomes:
        return Group(first, Text("not run: see below", style="dim"))
    name = "group reward, " if report.is_group else ""
    second = f"{items:,} items, {len(report.samples):,} completions, {len(report.runs.outcomes)} runs in "
    return Group(first, Text(f"{second}{report.seconds:.1f} s; {name}{where}", style="dim"))


def _table(*columns: str, title: str) -> Table:
    """The first column is text; the others are figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column(title, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _outcomes(report: RewardReport) -> RenderableType:
    counts = summary.status_counts(report.runs.outcomes)
    total = sum(counts.values())
    table = _table("calls", "share", title="outcome")
    table.add_column("first")
    for status, count in counts.items():
        if count or status == "ok":
            first = next((o.error for run in report.runs.outcomes for o in run if o.status == status and o.error), "")
            line, place = digest((first or "").removeprefix(f"reward {report.name}: "))
            shown = clipped(line, _SHOWN_TEXT) + (f" ({place})" if place else "")
            style = _STYLES["ok"] if status == "ok" else _STYLES["error"] if first else ""
            table.add_row(Text(status, style=style), f"{count:,}", f"{count / total:.1%}", Text(shown))
    return table


def _traces(report: RewardReport) -> Iterator[RenderableType]:
    """The first sample of each kind of failure, with its traceback where there is one."""
    for status in ("timeout", "crash", "error"):
        failed = (i for run in report.runs.outcomes for i, outcome in enumerate(run) if outcome.status == status)
        index = next(failed, None)
        if index is None:
            continue
        error = next(str(run[index].error) for run in report.runs.outcomes if run[index].status == status)
        lines = error.strip().splitlines()
        if len(lines) > _SHOWN_TRACE_LINES:
            half = _SHOWN_TRACE_LINES // 2
            lines = [*lines[:half], "...", *lines[-half:]]
        head = Text(f"first {status}: {_name(report, index)}", style="bold")
        trace = Text("\n".join(clipped(line, 300) for line in lines), style="red")
        yield Group(head, _texts(report, index), Padding(trace, (0, 0, 0, 2)))


def _name(report: RewardReport, index: int) -> str:
    sample = report.samples[index]
    return f"item {sample.item}, {sample.kind}"


def _texts(report: RewardReport, index: int) -> RenderableType:
    """The prompt and the completion of a sample, shortened."""
    grid = Table.grid(padding=(0, 1), pad_edge=True)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    sample = report.samples[index]
    grid.add_row("prompt", Text(clipped(sample.prompt, _SHOWN_TEXT)))
    grid.add_row("completion", Text(clipped(sample.completion, _SHOWN_TEXT) or "(empty)"))
    return grid


def _kinds(report: RewardReport) -> RenderableType:
    """Scores by where the completion is from."""
    table = _table("scored", "mean", "min", "max", "as expected", title="completion")
    checked = set(report.agreement.disagreeing)
    for kind in [*KINDS, "file"]:
        indices = [index for index, sample in enumerate(report.samples) if sample.kind == kind]
        scores = [value for index in indices if (value := report.outcomes[index].value) is not None]
        if not indices:
            continue
        spread = summary.Spread.of(scores) if scores else None
        figures = [f"{value:.3g}" for value in (spread.mean, spread.lowest, spread.highest)] if spread else ["–"] * 3
        known = sum(
            report.samples[index].expected is not None and report.outcomes[index].value is not None for index in indices
        )
        agreed = known - len(checked.intersection(indices))
        shown = Text(f"{agreed:,} of {known:,}" if known else "–", style="" if agreed == known else "yellow")
        table.add_row(kind, f"{len(scores):,}", *figures, shown)
    return table


def _bars(report: RewardReport) -> RenderableType:
    bars = summary.histogram(report.scores)
    table = _table(title="score")
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.columns[0].justify = "right"
    highest = max((count for _, count in bars), default=1)
    for label, count in bars:
        table.add_row(label, Text(_bar(count / highest), style="cyan"), f"{count:,}")
    return table if bars else Text("no scores", style="bold red")


def _bar(share: float) -> str:
    """A bar in steps of an eighth of a character. Whatever is above 0 shows."""
    eighths = max(round(share * _BAR_WIDTH * 8), 1 if share else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _parts(report: RewardReport) -> Iterator[RenderableType]:
    parts = summary.parts_of(report.outcomes)
    if parts:
        table = _table("samples", "mean", "min", "max", title="part")
        for name, spread in parts.items():
            figures = [f"{value:.3g}" for value in (spread.mean, spread.lowest, spread.highest)]
            table.add_row(Text(clipped(name, 40)), f"{spread.count:,}", *figures)
        yield table


def _totals(report: RewardReport) -> Iterator[RenderableType]:
    """What the reward counts itself, over all runs."""
    if report.runs.totals:
        table = _table("value", title="total")
        for name, value in sorted(report.runs.totals.items()):
            table.add_row(Text(clipped(name, 60)), f"{value:,.6g}")
        yield table


def _times(report: RewardReport) -> RenderableType:
    times = report.call_seconds
    slowest = max(range(len(times)), key=times.__getitem__)
    index = slowest % len(report.samples)
    p50, p99 = (_duration(summary.percentile(times, share)) for share in (0.5, 0.99))
    line = Text.assemble(
        ("time of a call  ", "bold"),
        f"p50 {p50}, p99 {p99}, slowest {_duration(times[slowest])} ({_name(report, index)})",
    )
    return Group(line, _texts(report, index))


def _duration(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.{0 if seconds >= 1e-5 else 1}f} us"


def _agreement(report: RewardReport) -> Iterator[RenderableType]:
    checked, threshold = report.agreement, f"{report.options.threshold:g}"
    if not checked.known:
        return
    table = _table(f"scored ≤ {threshold}", f"scored > {threshold}", title="agreement")
    for want, name in ((False, f"expected ≤ {threshold}"), (True, f"expected > {threshold}")):
        cells = [Text(f"{checked.cells[want][got]:,}", style="green" if want == got else "yellow") for got in (0, 1)]
        if any(checked.cells[want]):
            table.add_row(name, *cells)
    yield table
    shown: list[RenderableType] = []
    for index in checked.disagreeing[:_SHOWN_SAMPLES]:
        sample, score = report.samples[index], report.outcomes[index].value
        shown.append(Text(f"{_name(report, index)}: expected {sample.expected:g}, scored {score:g}", style="yellow"))
        shown.append(_texts(report, index))
    left = len(checked.disagreeing) - _SHOWN_SAMPLES
    if left > 0:
        shown.append(Text(f"and {left:,} more", style="dim"))
    if shown:
        yield Group(*shown)


def _runs(report: RewardReport) -> Iterator[RenderableType]:
    num_runs = len(report.runs.outcomes)
    if num_runs < 2:
        return
    title = Text(f"{num_runs} runs  ", style="bold")
    if not report.differing:
        yield title.append(f"the same outcome for each of {len(report.samples):,} completions", style="not bold")
        return
    title.append(f"{len(report.differing):,} of {len(report.samples):,} outcomes differ", style="yellow not bold")
    for index in report.differing[:_SHOWN_SAMPLES]:
        each = (run[index] for run in report.runs.outcomes)
        shown = " / ".join(o.status if o.value is None else f"{o.value:g}" for o in each)
        title.append(f"\n  {_name(report, index)}: {shown}", style="not bold")
    yield title


def _findings(report: RewardReport) -> Iterator[RenderableType]:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for finding in report.findings:
        style = _STYLES[finding.severity]
        grid.add_row(Text(_MARKS[finding.severity], style=style), Text(f"{finding.severity}: {finding.name}", style))
        grid.add_row("", Text("\n".join(clipped(line, 500) for line in finding.message.splitlines())))
        if finding.fix:
            grid.add_row("", Text(f"→ {finding.fix}", style="dim"))
    if report.findings:
        yield grid
    counts = Counter(finding.severity for finding in report.findings)
    words = [f"{counts[kind]} {kind}{'s' * (counts[kind] > 1)}" for kind in ("error", "warning") if counts[kind]]
    worst = "error" if counts["error"] else "warning" if counts["warning"] else "ok"
    yield Text(", ".join(words) or "✓ no mistakes found", style=_STYLES[worst])
