"""Run directories become one self-contained HTML page."""

from sibert.reporting.page import render_page, write_report
from sibert.reporting.run_directory import Run, load_run
from sibert.reporting.summary import Summary, summarise

__all__ = [  # noqa: RUF022  (grouped by what they do)
    # reading
    "Run",
    "load_run",
    # condensing
    "Summary",
    "summarise",
    # writing
    "render_page",
    "write_report",
]
