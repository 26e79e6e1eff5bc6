"""`report`: a page and a PDF from the tables that `evaluate` wrote, and the images behind them."""

from lesionseg.pipeline.report.recipe import report as report

__all__ = ["report"]
