"""The report: a page for clinicians, made from the tables of an evaluation and the scans.

The package computes no metrics. It shows the numbers of `evaluation`, and the reasons for undefined
numbers.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.reporting.charts import ACCENT as ACCENT
    from lesionseg.reporting.charts import OTHER as OTHER
    from lesionseg.reporting.charts import Chart as Chart
    from lesionseg.reporting.charts import new_figure as new_figure
    from lesionseg.reporting.images import Scene as Scene
    from lesionseg.reporting.pictures import Card as Card
    from lesionseg.reporting.pictures import write_preview as write_preview
    from lesionseg.reporting.rendering import render as render
    from lesionseg.reporting.rendering import write_page as write_page
    from lesionseg.reporting.viewer import NIIVUE as NIIVUE
    from lesionseg.reporting.viewer import viewer_data as viewer_data
    from lesionseg.reporting.write import write_report as write_report

_HOMES = {
    "ACCENT": "charts",
    "Card": "pictures",
    "Chart": "charts",
    "NIIVUE": "viewer",
    "OTHER": "charts",
    "Scene": "images",
    "new_figure": "charts",
    "render": "rendering",
    "viewer_data": "viewer",
    "write_page": "rendering",
    "write_preview": "pictures",
    "write_report": "write",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
