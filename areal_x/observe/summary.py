"""The closing lines of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from areal_x.observe.run_files import RunData, load_run
from areal_x.observe.sample_choice import choose_samples

__all__ = ["format_duration", "server_events", "summary_lines"]

_TEXT_WIDTH = 96


def format_duration(seconds: float) -> str:
    """``seconds`` as people say it: ``60 ms``, ``41 s``, ``2 min 5 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if 0 < seconds < 0.95:
        return f"{seconds * 1000:.0f} ms"
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def server_events(run: RunData) -> list[str]:
    """What happened to inference servers and to the requests on them; empty where nothing did."""
    names = {
        "engine/servers_restarted": "restarts",
        "engine/requests_continued": "requests continued",
        "engine/tokens_sampled_again": "tokens sampled again",
        "engine/updates_redone": "weight updates redone",
    }
    return [f"{int(run.last(name))} {words}" for name, words in names.items() if run.last(name)]


def summary_lines(run_dir: Path) -> list[str]:
    """What a run did and where its files are. Lines of things that the run does not have are left out.

    Raises:
        DataError: ``run_dir`` holds no run.
    """
    run = load_run(run_dir)
    lines = [*_accuracy_lines(run), *_reward_lines(run), *_speed_lines(run), *_server_lines(run)]
    chosen = choose_samples(run, 1)
    lines += [_sample_line("best sample", record) for record in chosen.best[:1]]
    lines += [_sample_line("worst sample", record) for record in chosen.worst[:1]]
    lines += [_sample_line("not scored", record) for record in chosen.failed[:1]]
    files = ("report.html", "curves.png", "metrics.jsonl", "trajectories.jsonl")
    present = [name for name in files if (run.run_dir / name).is_file()]
    models = [f"{path.parent.name}/" for path in sorted(run.run_dir.glob("*/config.json"))]
    checkpoints = ["checkpoints/"] if (run.run_dir / "checkpoints").is_dir() else []
    lines.append(f"{'files':<16}{run.run_dir}/: {', '.join([*present, *checkpoints, *models])}")
    return lines


def _accuracy_lines(run: RunData) -> list[str]:
    lines = []
    for dataset, points in run.accuracies.items():
        before, after = points[0][1], points[-1][1]
        change = f"{before:.3f} -> {after:.3f}" if len(points) > 1 else f"{before:.3f} (evaluated once)"
        lines.append(f"{'accuracy':<16}{change} on {dataset}")
    return lines


def _reward_lines(run: RunData) -> list[str]:
    rewards = run.values("reward/mean")
    if not rewards:
        return []
    width = max(1, min(5, len(rewards) // 2))
    before, after = sum(rewards[:width]) / width, sum(rewards[-width:]) / width
    steps = run.trained_steps[-1]["step"]
    if width == 1:
        return [f"{'reward':<16}{after:.3f} (last step)"]
    return [f"{'reward':<16}{before:.3f} -> {after:.3f} ({width}-step means, {steps} steps)"]


def _speed_lines(run: RunData) -> list[str]:
    lines = []
    speed, share = run.steady_mean("perf/samples_per_second"), run.steady_mean("perf/fraction_of_bound")
    ceiling = run.steady_mean("perf/two_process_ceiling")
    if speed is not None:
        lines.append(f"{'speed':<16}{speed:.1f} samples per second in steady state")
    if share is not None:
        of_ceiling = f", {share / ceiling:.2f} of the two-process ceiling" if ceiling else ""
        lines.append(f"{'of the bound':<16}{share:.2f}{of_ceiling}")
    if run.duration is not None:
        status = run.info.get("status", "")
        note = "" if status in ("", "finished") else f" ({'interrupted' if status == 'running' else status})"
        lines.append(f"{'duration':<16}{format_duration(run.duration)}{note}")
    return lines


def _server_lines(run: RunData) -> list[str]:
    """What became of inference servers, if anything did."""
    told = server_events(run)
    return [f"{'servers':<16}{', '.join(told)}"] if told else []


def _sample_line(label: str, record: dict[str, Any]) -> str:
    reward = record.get("reward")
    value = f"{reward:.2f}" if isinstance(reward, int | float) else str(record.get("status", "no reward"))
    return f"{label:<16}{value}  {_one_line(record.get('prompt'))} -> {_one_line(record.get('completion'))}"


def _one_line(text: Any) -> str:
    """Model text on one line: control characters cannot reach the terminal."""
    shown = "".join(c if c.isprintable() else " " for c in str(text or "")).strip()
    shown = " ".join(shown.split())
    half = _TEXT_WIDTH // 2
    return shown if len(shown) <= _TEXT_WIDTH else f"{shown[: half - 2]} ... {shown[-half + 3 :]}"
