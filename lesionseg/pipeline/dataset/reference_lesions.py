"""The lesions of a reference, whatever it holds: instances, labels or boxes."""

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Reference
from lesionseg.ops.components import lesion_instances
from lesionseg.ops.lesion_size import equivalent_diameter_mm


def lesion_mask(reference: Reference) -> NDArray[np.bool_]:
    """Voxels of any lesion, boxes filled."""
    if reference.instances is not None:
        return np.asarray(reference.instances > 0)
    if reference.labels is not None:
        return np.asarray(reference.labels > 0)
    mask, dims = np.zeros(reference.geometry.shape, dtype=bool), reference.geometry.dims
    for box in () if reference.boxes is None else reference.boxes:
        start, stop = np.floor(box[:dims]).astype(int), np.ceil(box[dims:]).astype(int)
        mask[tuple(slice(max(a, 0), b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def lesion_diameters(reference: Reference | None) -> tuple[float, ...]:
    """Equivalent diameters of the lesions, those of boxes as if they were filled."""
    if reference is None:
        return ()
    dims, size = reference.geometry.dims, reference.geometry.voxel_size
    instances = reference.instances
    if instances is None and reference.labels is not None:
        instances = lesion_instances(reference.labels).instances
    if instances is not None:
        voxels = np.bincount(instances.ravel())[1:]
        voxels = voxels[voxels > 0].astype(float)
    else:
        boxes = np.zeros((0, 2 * dims)) if reference.boxes is None else reference.boxes
        voxels = (boxes[:, dims:] - boxes[:, :dims]).prod(axis=1).astype(float)
    return tuple(float(d) for d in np.atleast_1d(equivalent_diameter_mm(voxels * size, dims)))
