"""The numbers of other scorers, by their own rules: what a challenge's leader board would print.

Each module holds scorers of one kind; `score_case` takes from a judged case what the preset's
scorer needs, `score_cases` puts the cases together.
"""

from lesionseg.evaluation.official.scorers import OfficialScores as OfficialScores
from lesionseg.evaluation.official.scorers import score_case as score_case
from lesionseg.evaluation.official.scorers import score_cases as score_cases
from lesionseg.evaluation.official.scorers import score_intervals as score_intervals

__all__ = ["OfficialScores", "score_case", "score_cases", "score_intervals"]
