"""`evaluate`: judges predicted files against reference files, case by case.

In come two folders of anybody's masks, boxes or candidates; out go `scores.json` and the tables of
cases, lesions and candidates.
"""

from lesionseg.pipeline.evaluate.recipe import evaluate as evaluate

__all__ = ["evaluate"]
