"""One HTML page with the pictures of runs or of a sweep."""

from distmeta.report.page import write_report

__all__ = ["write_report"]
