"""`prepare`: reads and checks every case, plans, and fills the cache.

In comes a dataset folder; out go `plan.json`, the cache and, with `check=true`, a page of faults.
"""

from lesionseg.pipeline.prepare.recipe import prepare as prepare

__all__ = ["prepare"]
