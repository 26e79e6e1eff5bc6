"""The size of a lesion as one number."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def equivalent_diameter_mm(volume_mm: ArrayLike, dims: int) -> NDArray[np.float64]:
    """Diameter in mm of the ball (3-D, from mm³) or disc (2-D, from mm²) of the same size.

    `2·(3V/4π)^⅓`, in 2-D `2·(A/π)^½`. Any shape; zero gives zero.

    >>> float(np.round(equivalent_diameter_mm(4 / 3 * np.pi * 5**3, 3), 6))
    10.0
    >>> float(np.round(equivalent_diameter_mm(np.pi * 5**2, 2), 6))
    10.0
    """
    volume = np.asarray(volume_mm, dtype=np.float64)
    unit_ball = {2: np.pi, 3: 4 / 3 * np.pi}[dims]
    return np.asarray(2 * (volume / unit_ball) ** (1 / dims))
