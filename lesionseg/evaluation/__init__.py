"""Judge predictions against references: matching, overlap, curves, intervals, scores.

Knows neither networks nor files: results in, numbers out.
"""

from lesionseg.evaluation.case.evaluate_case import MatchedCase as MatchedCase
from lesionseg.evaluation.case.evaluate_case import evaluate_case as evaluate_case
from lesionseg.evaluation.case.evaluate_case import match_case as match_case
from lesionseg.evaluation.presets import PRESETS as PRESETS
from lesionseg.evaluation.presets import Criterion as Criterion
from lesionseg.evaluation.presets import Preset as Preset
from lesionseg.evaluation.presets import find_preset as find_preset
from lesionseg.evaluation.results import CandidateResult as CandidateResult
from lesionseg.evaluation.results import CaseResult as CaseResult
from lesionseg.evaluation.results import LesionResult as LesionResult
from lesionseg.evaluation.scores import summarise as summarise
from lesionseg.evaluation.statistics.operating_point import choose as choose

__all__ = [
    "PRESETS",
    "CandidateResult",
    "CaseResult",
    "Criterion",
    "LesionResult",
    "MatchedCase",
    "Preset",
    "choose",
    "evaluate_case",
    "find_preset",
    "match_case",
    "summarise",
]
