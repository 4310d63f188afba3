"""The report, the curves and the closing lines, made from whole and partial runs."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.errors import DataError
from areal_x.observe import build_report, load_run, summary_lines, write_curves
from areal_x.observe.report import embed_json
from areal_x.observe.sample_choice import choose_samples


class Page(html.parser.HTMLParser):
    """Counts elements, and collects addresses and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1] == "script" and self.scripts:
            self.scripts[-1] += data


def report_data(path: Path) -> dict[str, Any]:
    return json.loads(Page(path.read_text()).scripts[0])


def test_the_report_has_everything_and_loads_nothing(whole_run: Path) -> None:
    path = build_report(whole_run)
    assert path == whole_run / "report.html"
    page = Page(path.read_text())
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    data = report_data(path)
    assert len(data["series"]["reward"]) == 60
    assert data["accuracy"]["arithmetic"][0] == [0, 0.3125]
    assert {span["lane"] for span in data["timeline"]["spans"]} >= {"generation", "scoring", "training", "weights"}
    assert data["timeline"]["overlap"] > 0.9
    assert data["samples"]["best"][0]["reward"] == 1.0
    assert data["samples"]["worst"][0]["reward"] < 1.0
    assert all(sample["reward"] is None for sample in data["samples"]["failed"])
    assert sum(count for _, _, count in data["outcomes"]["rows"]) == 60 * 256


def test_text_of_models_cannot_become_markup(whole_run: Path) -> None:
    path = build_report(whole_run)
    page = Page(path.read_text())
    assert page.elements.count("script") == 2
    assert "img" not in page.elements
    assert any("</script>" in sample["completion"] for sample in report_data(path)["samples"]["first"])


def test_names_and_configuration_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"name": "<img src=x>{{data}}", "status": "finished"}))
    (tmp_path / "config.yaml").write_text("data: {path: '<script>alert(1)</script>'}\n")
    page = Page(build_report(tmp_path).read_text())
    assert page.elements.count("script") == 2
    assert "img" not in page.elements


def test_embedded_json_has_no_markup_and_is_strict() -> None:
    value = {"text": "</script><!--<b>&\u2028", "number": float("nan")}
    text = embed_json(value)
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"text": value["text"], "number": None}


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("evaluate", [True, False])
def test_partial_runs_have_a_report_curves_and_closing_lines(
    tmp_path: Path, steps: int, evaluate: bool, write_synthetic_run: Callable[..., Path]
) -> None:
    run_dir = write_synthetic_run(tmp_path / "partial", steps=steps, evaluate=evaluate, finish=False)
    assert ">interrupted<" in build_report(run_dir).read_text()
    assert write_curves(run_dir).stat().st_size > 10_000
    assert summary_lines(run_dir)[-1].startswith("files")


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "run.json"])
def test_one_file_is_enough(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"step": 1, "reward/mean": 0.5}\n' if name == "metrics.jsonl" else "{}")
    build_report(tmp_path)
    write_curves(tmp_path)
    summary_lines(tmp_path)


def test_broken_files_are_tolerated(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1, "reward/mean": 0.5}\nnot json\n[1]\n{"step": "x"}\n\xff\n{"st'
    )
    (tmp_path / "config.yaml").write_text("a: [1\nb: }")
    (tmp_path / "timeline.jsonl").write_text('{"lane": 3}\n{"lane": "training", "start": 2, "end": 1}\n')
    (tmp_path / "trajectories.jsonl").write_text('{"step": 1}\n')
    assert len(load_run(tmp_path).steps) == 1
    assert report_data(build_report(tmp_path))["timeline"]["spans"] == []


def test_a_directory_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        build_report(tmp_path)
    with pytest.raises(DataError, match="not a directory"):
        summary_lines(tmp_path / "missing")


def test_the_closing_lines(whole_run: Path) -> None:
    build_report(whole_run)
    text = "\n".join(summary_lines(whole_run))
    assert re.search(r"accuracy +0\.312 -> 0\.8\d\d on arithmetic", text)
    assert re.search(r"speed +9\d\d\.\d samples per second", text)
    assert re.search(r"of the bound +0\.82, 0\.9\d of the two-process ceiling", text)
    assert re.search(r"best sample +1\.00  .*What is \d+ \+ \d+", text)
    assert "report.html" in text
    assert all(line.isprintable() for line in text.split("\n"))


def test_steady_state_leaves_out_the_filling_of_the_pipeline(tmp_path: Path) -> None:
    rows = [{"step": k, "reward/mean": 0, "perf/samples_per_second": 1 if k <= 2 else 10} for k in range(1, 21)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_run(tmp_path).steady_mean("perf/samples_per_second") == 10
    assert load_run(tmp_path).steady_mean("perf/missing") is None


def test_outcomes_with_reasons_are_not_counted_twice(tmp_path: Path) -> None:
    row = {"step": 1, "outcome/ok": 250, "outcome/timeout": 6, "outcome/timeout/slow": 4, "outcome/crash": 0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert load_run(tmp_path).outcome_counts() == {("ok", ""): 250, ("timeout", "slow"): 4, ("timeout", ""): 2}


def test_samples_are_of_different_prompts_and_late(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n')
    records = [
        {"step": step, "prompt": f"prompt {k % 3}", "reward": k / 10, "episode_id": f"{step}-{k}"}
        for step in range(1, 11)
        for k in range(6)
    ]
    records.append({"step": 10, "prompt": "prompt 9", "reward": None, "status": "crash"})
    (tmp_path / "trajectories.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    chosen = choose_samples(load_run(tmp_path), 3)
    assert [sample["episode_id"] for sample in chosen.best] == ["10-5", "10-4", "10-3"]
    assert [sample["episode_id"] for sample in chosen.worst] == ["10-0", "10-1", "10-2"]
    assert [sample["status"] for sample in chosen.failed] == ["crash"]
    assert {sample["step"] for sample in chosen.first} == {1}


def test_a_long_run_still_makes_a_small_page(tmp_path: Path) -> None:
    rows = [{"step": k, "reward/mean": 0.5, "train/loss": 0.1} for k in range(1, 20_001)]
    spans = [{"lane": "training", "name": "train step", "start": k, "end": k + 0.9} for k in range(20_000)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "timeline.jsonl").write_text("".join(json.dumps(span) + "\n" for span in spans))
    path = build_report(tmp_path)
    assert path.stat().st_size < 1_000_000
    assert report_data(path)["timeline"]["omitted"] == 14_000


def test_importing_observe_loads_neither_matplotlib_nor_rich_nor_torch() -> None:
    program = "import sys, areal_x.observe; print([m for m in ('matplotlib', 'rich', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
