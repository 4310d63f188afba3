"""``report.html``: one self-contained page about a run, made from its files alone."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib import resources
from pathlib import Path
from typing import Any

from areal_x.observe.line_file import plain_value, replace_file
from areal_x.observe.report_data import headline, report_data
from areal_x.observe.run_files import RunData, load_run

__all__ = ["build_report", "embed_json"]

_SCRIPTS = ("charts.js", "timeline.js", "samples.js", "page.js")
_STATUS_WORDS = {"finished": "finished", "running": "interrupted", "interrupted": "interrupted", "failed": "failed"}


def build_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run's directory, whole or partial, and return its path.

    The page asks the network for nothing: its policy (CSP) forbids it, and lets only this script run. Text of models
    reaches the page as data, and the script writes it as text, never as markup.

    Raises:
        DataError: ``run_dir`` holds no run.
        RunWriteError: the page cannot be written.
    """
    run = load_run(run_dir)
    script, style = "".join(_asset(name) for name in _SCRIPTS), _asset("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    page = _asset("report.html")
    values = {
        "policy": policy,
        "title": html.escape(run.name),
        "style": style,
        "status": html.escape(_status(run)),
        "subtitle": html.escape(_subtitle(run)),
        "figures": _figures(run),
        "config": html.escape(run.config_text or "This run has no config.yaml."),
        "data": embed_json(report_data(run)),
        "script": script,
    }
    # One pass over the template: a value that happens to contain a marker is never replaced again.
    pieces = page.split("{{")
    parts = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        parts += [values[name], rest]
    path = run.run_dir / "report.html"
    replace_file(path, "".join(parts))
    return path


def embed_json(value: Any) -> str:
    """JSON that is safe inside a script element: no ``<``, ``>`` or ``&``, so no text in it can end the element."""
    text = json.dumps(plain_value(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return (resources.files("areal_x.observe") / "report_assets" / name).read_text(encoding="utf-8")


def _status(run: RunData) -> str:
    return _STATUS_WORDS.get(str(run.info.get("status", "")), "unknown")


def _subtitle(run: RunData) -> str:
    model = run.setting("model", "path") or run.setting("model", "init", "architecture", default="")
    data = run.setting("data", "name") or run.setting("data", "path", default="")
    algorithm = run.setting("algorithm", "name", default="")
    known = [
        f"model {model}" if model else "",
        f"data {data}" if data else "",
        f"algorithm {algorithm}" if algorithm else "",
        str(run.info.get("machine", "")),
        str(run.info.get("started_at", "")).replace("T", " ").replace("+00:00", " UTC"),
    ]
    return " · ".join(text for text in known if text)


def _figures(run: RunData) -> str:
    return "".join(
        f'<div class="figure"><dt>{html.escape(label)}</dt><dd class="value">{html.escape(value)}</dd>'
        f'<dd class="note">{html.escape(note)}</dd></div>'
        for label, value, note in headline(run)
    )
