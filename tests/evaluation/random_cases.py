"""Random small cases that crowd, split, merge and tie: what scorers disagree on if they can."""

from dataclasses import dataclass

import numpy as np

from lesionseg.core import Geometry, Prediction, Reference
from lesionseg.ops.components import label_components
from tests.evaluation.hand_cases import prediction_of


@dataclass(frozen=True)
class RandomCase:
    """`reference` bool, `instances` int32 (1..n in the order of their first voxel)."""

    name: str
    reference: np.ndarray
    instances: np.ndarray
    scores: tuple[float, ...]
    spacing_mm: tuple[float, ...]

    def geometry(self):
        return Geometry.from_spacing(self.reference.shape, self.spacing_mm)

    def as_reference(self):
        return Reference(self.geometry(), labels=self.reference.astype(np.uint8))

    def as_prediction(self, accepted_from=0.0) -> Prediction:
        return prediction_of(
            self.instances, self.scores, self.geometry(), (), accepted_from, self.name
        )


def random_cases(n, seed, dims=3, size=14):
    """Lesions and candidates as boxes at random places, candidates near lesions more often."""
    rng = np.random.default_rng(seed)
    return [_case(rng, f"case{i:03d}", (size,) * dims) for i in range(n)]


def _case(rng, name, shape):
    reference, drawn = np.zeros(shape, bool), np.zeros(shape, bool)
    corners = []
    for _ in range(rng.integers(0, 5)):
        corner, sides = rng.integers(0, shape[0] - 2, len(shape)), rng.integers(1, 5, len(shape))
        reference[_box(corner, sides)] = True
        corners.append((corner, sides))
    for corner, sides in corners:
        if rng.random() < 0.75:
            moved = np.maximum(corner + rng.integers(-1, 2, len(shape)), 0)
            drawn[_box(moved, np.maximum(sides + rng.integers(-1, 2, len(shape)), 1))] = True
    for _ in range(rng.integers(0, 3)):
        drawn[_box(rng.integers(0, shape[0] - 1, len(shape)), rng.integers(1, 4, len(shape)))] = (
            True
        )
    drawn &= rng.random(shape) > 0.1  # ragged, and now and then split
    instances = label_components(drawn)
    scores = rng.integers(1, 12, int(instances.max())) / 12  # ties, none of them 0
    spacing = rng.choice([0.5, 1.0, 1.5, 3.0], len(shape))
    return RandomCase(name, reference, instances, tuple(scores.tolist()), tuple(spacing.tolist()))


def _box(corner, sides):
    return tuple(slice(int(a), int(a + b)) for a, b in zip(corner, sides, strict=True))
