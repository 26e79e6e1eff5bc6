"""The report: a page for clinicians, made from the tables of an evaluation and the scans.

The package computes no metrics. It shows the numbers of `evaluation`, and the reasons for undefined
numbers.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.reporting.write import write_report as write_report

_HOMES = {
    "write_report": "write",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
