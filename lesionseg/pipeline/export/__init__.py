"""`export`: a bundle for other programs, as ONNX or in MONAI's layout."""

from lesionseg.pipeline.export.recipe import export as export

__all__ = ["export"]
