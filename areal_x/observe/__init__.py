"""What a run leaves behind and shows: metrics, trajectories, a time line, the step line, curves and the report.

::

    trainer ──write_step / write_trajectories / add_span──▶ RunWriter ──▶ metrics, trajectories, timeline .jsonl
       │                                                       └────────▶ TensorBoard, Weights & Biases (extras)
       └──phase / step──▶ RunDisplay ──▶ terminal
    run directory ──load_run──▶ build_report (report.html), write_curves (curves.png), summary_lines

Everything after the run reads only the files, so a report of an interrupted run is made the same way.
"""

from areal_x.observe.curves import write_curves
from areal_x.observe.display import RunDisplay
from areal_x.observe.line_file import RunWriteError
from areal_x.observe.redaction import redact_yaml
from areal_x.observe.report import build_report
from areal_x.observe.run_files import RunData, load_run
from areal_x.observe.run_writer import RunWriter
from areal_x.observe.step_line import reward_parts, step_header, step_line
from areal_x.observe.summary import summary_lines
from areal_x.observe.trajectory_records import trajectory_record

__all__ = [
    "RunData",
    "RunDisplay",
    "RunWriteError",
    "RunWriter",
    "build_report",
    "load_run",
    "redact_yaml",
    "reward_parts",
    "step_header",
    "step_line",
    "summary_lines",
    "trajectory_record",
    "write_curves",
]
