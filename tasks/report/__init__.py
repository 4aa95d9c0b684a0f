"""The data card of a dataset: what came in, what is left, why, and what it looks like.

`report` makes the card as data, one small table; `page` draws it as one HTML file. The stage is `Report`.
"""

from tasks.report._page import render
from tasks.report.report import Report

AnyReport = Report
"""The family's union: every `use` that a recipe may say here."""

__all__ = ["AnyReport", "Report", "render"]
