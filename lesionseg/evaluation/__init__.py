"""Compare predictions with references: matching, overlap, curves, intervals, scores.

The package takes predictions and references, and returns numbers and tables. It does not know
networks.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.evaluation.criteria import PRESETS as PRESETS
    from lesionseg.evaluation.criteria import Criterion as Criterion
    from lesionseg.evaluation.criteria import Preset as Preset
    from lesionseg.evaluation.criteria import find_preset as find_preset
    from lesionseg.evaluation.intervals import wilson_interval as wilson_interval
    from lesionseg.evaluation.matched_case import MatchedCase as MatchedCase
    from lesionseg.evaluation.matched_case import match_case as match_case
    from lesionseg.evaluation.operating_points import OperatingPointAim as OperatingPointAim
    from lesionseg.evaluation.operating_points import choose as choose
    from lesionseg.evaluation.operating_points import list_points as list_points
    from lesionseg.evaluation.regrid import resample_prediction as resample_prediction
    from lesionseg.evaluation.scores import Scores as Scores
    from lesionseg.evaluation.scores import read_scores as read_scores
    from lesionseg.evaluation.scores import write_scores as write_scores
    from lesionseg.evaluation.summary import SummarySettings as SummarySettings
    from lesionseg.evaluation.summary import summarise as summarise
    from lesionseg.evaluation.tables import CaseRows as CaseRows
    from lesionseg.evaluation.tables import Tables as Tables

_HOMES = {
    "OperatingPointAim": "operating_points",
    "CaseRows": "tables",
    "Criterion": "criteria",
    "MatchedCase": "matched_case",
    "PRESETS": "criteria",
    "Preset": "criteria",
    "Scores": "scores",
    "SummarySettings": "summary",
    "Tables": "tables",
    "choose": "operating_points",
    "find_preset": "criteria",
    "list_points": "operating_points",
    "match_case": "matched_case",
    "read_scores": "scores",
    "resample_prediction": "regrid",
    "summarise": "summary",
    "wilson_interval": "intervals",
    "write_scores": "scores",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
