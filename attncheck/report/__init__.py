"""The report page: one HTML file that shows every head, needs no network and no server."""

from attncheck.report.entries import FailureEntry, HeadEntry, ModelEntry, Report
from attncheck.report.failures import describe_failure
from attncheck.report.heads import describe_model
from attncheck.report.heatmaps import Heatmap, heatmaps_of
from attncheck.report.page import render_page, write_page

__all__ = [
    "FailureEntry",
    "HeadEntry",
    "Heatmap",
    "ModelEntry",
    "Report",
    "describe_failure",
    "describe_model",
    "heatmaps_of",
    "render_page",
    "write_page",
]
