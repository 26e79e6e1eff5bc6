"""What of a case lies in one region of labels, to be judged by itself."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lesionseg.core import UNION, LabelRegion, Prediction, Reference
from lesionseg.ops.components import lesion_instances

REGION_LABEL = next(iter(UNION))


def united(prediction: Prediction) -> Prediction:
    """The prediction with the one label that lesions have where there are regions."""
    candidates = tuple(replace(c, label=REGION_LABEL) for c in prediction.candidates)
    return replace(prediction, candidates=candidates)


def reference_of(reference: Reference, region: LabelRegion) -> Reference:
    """The lesions of a region: its components, whatever lesion of the union they belong to."""
    if reference.labels is None:
        return Reference(reference.geometry, ignore=reference.ignore)
    inside = np.isin(reference.labels, region.values).astype(np.uint8)
    found = lesion_instances(inside)
    return Reference(
        reference.geometry,
        labels=inside,
        instances=found.instances,
        instance_labels=found.labels,
        ignore=reference.ignore,
    )


def prediction_of(prediction: Prediction, region: LabelRegion) -> Prediction | None:
    """What the candidates hold of a region; those without are left out. None without values."""
    if prediction.values is None or prediction.instances is None:
        return None
    inside = np.isin(prediction.values, region.values)
    instances = np.where(inside, prediction.instances, 0)
    present = set(np.unique(instances).tolist())
    kept = tuple(c for c in united(prediction).candidates if c.id in present)
    return replace(prediction, candidates=kept, instances=instances, values=None)


def can_be_divided(prediction: Prediction | None, regions: Sequence[LabelRegion]) -> bool:
    """Whether each region can be judged by itself: boxes do not tell them apart."""
    return bool(regions) and (prediction is None or prediction.values is not None)
