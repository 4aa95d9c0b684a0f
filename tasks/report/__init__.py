"""The `report` family: the data card of a dataset: input rows, kept rows, reasons, and pictures.

`report` makes the card as data, one small table; `_page` renders it as one HTML file.
"""

from tasks.report.report import Report

AnyReport = Report
"""Every member that a recipe can name."""

__all__ = ["AnyReport", "Report"]
