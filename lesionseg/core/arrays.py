"""Type aliases of numpy arrays: `Flags`, `Numbers`, `Integers`, `Slab`.

Docstrings state the shape, such as `[n, dims]`.
"""

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]
Slab = NDArray[np.float32]  # probabilities of neighbouring rows of a volume
