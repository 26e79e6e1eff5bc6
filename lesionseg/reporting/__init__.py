"""The report: a page for clinicians, made from the tables of an evaluation and the scans.

The package computes no metrics. It shows the numbers of `evaluation`, and the reasons for undefined
numbers.
"""

from lesionseg.reporting.write import write_report as write_report

__all__ = ["write_report"]
