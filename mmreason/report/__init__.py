"""The report: one self-contained HTML file made from a run directory."""

from mmreason.report.page import write_report

__all__ = ["write_report"]
