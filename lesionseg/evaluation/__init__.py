"""Judge predictions against references: matching, overlap, curves, intervals, scores.

Knows neither networks nor files: results in, numbers out.
"""

from lesionseg.evaluation.one_case import MatchedCase, evaluate_case, match_case
from lesionseg.evaluation.presets import PRESETS, Criterion, Preset, find_preset
from lesionseg.evaluation.results import CandidateResult, CaseResult, LesionResult
from lesionseg.evaluation.scores import summarise
from lesionseg.evaluation.statistics.operating_point import choose

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
