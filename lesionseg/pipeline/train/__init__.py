"""`train`: from a folder of scans to a bundle, scores and a report.

`recipe` is the command from top to bottom, `one_training` one run from plan to bundle and
`learning` the steps that `prepare` and `tune` share with it. In come settings; out goes a run
directory.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lesionseg.pipeline.train.recipe import train as train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """Import the recipe only when it is asked for: other commands use this package's helpers."""
    if name == "train":
        from lesionseg.pipeline.train.recipe import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
