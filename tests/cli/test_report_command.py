"""``areal-x report`` draws a run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from areal_x.cli import main


def test_report_and_curves_are_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"step": 1, "version": 0, "time": 1.0, "reward/mean": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    written = [tmp_path / "curves.png", tmp_path / "report.html"]
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == list(map(str, written))
    assert all(path.stat().st_size > 1000 for path in written)
