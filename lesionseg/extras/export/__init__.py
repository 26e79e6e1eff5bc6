"""`export`: write a network for other programs, as ONNX, in MONAI's layout or as a bundle."""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.extras.export.recipe import ExportOutcome as ExportOutcome
    from lesionseg.extras.export.recipe import export as export
    from lesionseg.extras.export.settings import ExportConfig as ExportConfig

_HOMES = {
    "ExportConfig": "settings",
    "ExportOutcome": "recipe",
    "export": "recipe",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
