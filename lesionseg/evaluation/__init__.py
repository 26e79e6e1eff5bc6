"""Compare predictions with references: matching, overlap, curves, intervals, scores.

The package takes predictions and references, and returns numbers and tables. It does not know
networks.
"""

from lesionseg.evaluation.criteria import PRESETS, Criterion, Preset, find_preset
from lesionseg.evaluation.matched_case import MatchedCase, match_case
from lesionseg.evaluation.operating_point_choice import choose
from lesionseg.evaluation.scores import Scores, read_scores
from lesionseg.evaluation.summary import SummarySettings, summarise
from lesionseg.evaluation.tables import CaseRows, Tables

__all__ = [
    "PRESETS",
    "CaseRows",
    "Criterion",
    "MatchedCase",
    "Preset",
    "Scores",
    "SummarySettings",
    "Tables",
    "choose",
    "find_preset",
    "match_case",
    "read_scores",
    "summarise",
]
