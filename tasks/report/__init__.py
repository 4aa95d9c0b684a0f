"""The data card of a dataset: what came in, what is left, why, and what it looks like.

`card` makes the card as data, one small table; `page` draws it as one HTML file. The stage is `Report`.
"""

from tasks.report.card import Report
from tasks.report.page import render

AnyReport = Report
"""The family's union: every `use` that a recipe may say here."""

__all__ = ["AnyReport", "Report", "render"]
