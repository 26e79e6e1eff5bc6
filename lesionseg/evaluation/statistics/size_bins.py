"""Which lesions are of a size: bins of diameters, and what selects them."""

from collections.abc import Callable, Sequence

import numpy as np

from lesionseg.evaluation.results import LesionResult

Selection = Callable[[LesionResult], bool]
OfSize = Callable[[float | None, float | None], Selection]


def bins_between(edges: Sequence[float]) -> list[tuple[float, float | None]]:
    """Neighbouring edges; the last bin has no upper bound."""
    return list(zip(edges, [*edges[1:], None], strict=True))


def within_mm(low: float | None, high: float | None) -> Callable[[float], bool]:
    """Diameters, or other numbers, of `[low, high)`."""
    least, most = -np.inf if low is None else low, np.inf if high is None else high
    return lambda diameter: least <= diameter < most


def of_diameter(low: float | None, high: float | None) -> Selection:
    """Lesions of a diameter `[low, high)`."""
    inside = within_mm(low, high)
    return lambda lesion: inside(lesion.diameter_mm)
