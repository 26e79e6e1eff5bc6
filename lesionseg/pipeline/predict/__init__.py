"""`predict`: a bundle and scans in; masks, candidates and a status per scan out.

`recipe` is the command, `engine` decides where cases are worked on, `case_pipeline` reads, infers
and writes them with the steps overlapped. One bad file never ends the batch: its row says why.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lesionseg.pipeline.predict.recipe import predict as predict

__all__ = ["predict"]


def __getattr__(name: str) -> Any:
    """Import the recipe only when it is asked for: other commands use this package's helpers."""
    if name == "predict":
        from lesionseg.pipeline.predict.recipe import predict

        return predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
