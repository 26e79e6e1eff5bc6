"""The report: from an evaluation's tables and the scans to a page that a clinician reads alone.

It computes no metric; it prints what `evaluation` found, and why something has no number.
"""

from lesionseg.reporting.write import write_report as write_report

__all__ = ["write_report"]
