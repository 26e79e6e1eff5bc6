"""Rigid registration of two scans with SimpleITK, and measures of its quality."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Volume
from lesionseg.errors import GeometryError
from lesionseg.io.itk import itk_image

MIN_FOREGROUND_DICE = 0.8  # heads a few degrees apart reach 0.95; another body part stays below
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's millimetres run to the left and the back


@dataclass(frozen=True, eq=False)
class Alignment:
    """A rigid movement `matrix` `[4, 4]` of RAS millimetres, from the moving scan to the fixed one.

    `mutual_information` (Mattes) in nats, after the movement. `foreground_dice`: Dice of the two
    foregrounds by Otsu's threshold, within the field of view of both scans.
    """

    matrix: NDArray[np.float64]
    mutual_information: float
    foreground_dice: float


def register_rigid(fixed: Volume, moving: Volume) -> Alignment:
    """Register the first channel of two scans: rotation and translation, coarse to fine.

    Mattes' mutual information (Mattes et al. 2003) of every fifth voxel, on grids of a quarter,
    half and whole resolution, from centred centres of mass. One thread and a seed: the same scans
    give the same numbers. Raises `GeometryError` for 2-D scans and failed optimisation.
    """
    import SimpleITK as sitk

    if fixed.geometry.dims != 3 or moving.geometry.dims != 3:
        raise GeometryError("Only scans with three axes are registered: give register=headers.")
    first, second = (itk_image(v.array[0].astype(np.float32), v.geometry) for v in (fixed, moving))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.2, 1)  # samples are jittered: a seed
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0, 0.0])
    # sums over several threads differ in their last digits; the method's own number of threads
    # does not reach its metric
    n_threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        moments = sitk.CenteredTransformInitializerFilter.MOMENTS
        rigid = sitk.Euler3DTransform()
        transform = sitk.CenteredTransformInitializer(first, second, rigid, moments)
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(first, second)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        text = f"The two scans cannot be registered ({last}). Give register=headers."
        raise GeometryError(text) from error
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(n_threads)
    corners = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    moved = np.array([transform.TransformPoint(p.tolist()) for p in corners])
    to_moving = np.eye(4)
    to_moving[:3, :3], to_moving[:3, 3] = (moved[1:] - moved[0]).T, moved[0]
    # the transform leads from fixed to moving points; lesions go the other way
    matrix = np.asarray(np.linalg.inv(_TO_RAS @ to_moving @ _TO_RAS), dtype=np.float64)
    information = -float(method.GetMetricValue())
    return Alignment(matrix, information, _foreground_dice(first, second, transform))


def _foreground_dice(fixed: Any, moving: Any, transform: Any) -> float:
    """Return the Dice of both foregrounds within the moving scan's field of view; 0 if empty."""
    import SimpleITK as sitk

    seen = sitk.Cast(moving * 0 + 1, sitk.sitkUInt8)
    masks = [sitk.OtsuThreshold(image, 0, 1) for image in (fixed, moving)]
    moved, inside = (
        sitk.GetArrayFromImage(sitk.Resample(image, fixed, transform, sitk.sitkNearestNeighbor, 0))
        for image in (masks[1], seen)
    )
    first, second = (sitk.GetArrayFromImage(masks[0]) > 0) & (inside > 0), moved > 0
    total = int(first.sum()) + int(second.sum())
    return 2 * float((first & second).sum()) / total if total else 0.0
