"""`tune`: searches alpha and gamma of a focal loss together, by short trainings.

In come a dataset and the bounds of the search; out go `tune.json` and `tune.html`. `search` keeps
the journal that processes share, `trial` trains and judges one pair.
"""

from lesionseg.pipeline.tune.recipe import tune as tune

__all__ = ["tune"]
