"""`train`: from a folder of scans to a bundle, scores and a report.

`recipe` is the command from top to bottom, `one_training` one run from plan to bundle and
`learning` the steps that `prepare` and `tune` share with it. In come settings; out goes a run
directory.
"""

from lesionseg.pipeline.train.recipe import train as train

__all__ = ["train"]
