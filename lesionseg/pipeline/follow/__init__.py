"""`follow`: what became of each lesion between two visits.

In come two folders of anybody's masks or predictions, named alike; out go `changes.csv`, a page
and, beside a reference of change, scores.
"""

from lesionseg.pipeline.follow.recipe import follow as follow

__all__ = ["follow"]
