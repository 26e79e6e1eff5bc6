"""Rigid registration of two scans by SimpleITK, and how well it went."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Volume
from lesionseg.errors import GeometryError
from lesionseg.io.itk import itk_image

MIN_FOREGROUND_DICE = 0.8  # heads a few degrees apart reach 0.95; another body part stays below
_SHARE_SAMPLED = 0.2
_BINS = 50
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's millimetres run to the left and the back


@dataclass(frozen=True, eq=False)
class Alignment:
    """A rigid movement `matrix` `[4, 4]` of RAS millimetres, from the moving scan to the fixed one.

    `mutual_information` in nats, after the movement (Mattes). `foreground_dice`: of what Otsu's
    threshold takes for the patient in both scans, where both show something.
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
    if fixed.geometry.dims != 3 or moving.geometry.dims != 3:
        raise GeometryError(
            "Only scans with three axes are registered.",
            seen=f"{fixed.geometry.dims} and {moving.geometry.dims} axes",
            remedy="give register=headers.",
        )
    first, second = (itk_image(v.array[0].astype(np.float32), v.geometry) for v in (fixed, moving))
    try:
        transform, information = _optimised(first, second)
    except RuntimeError as error:
        raise GeometryError(
            "The two scans cannot be registered.",
            seen=str(error).strip().splitlines()[-1],
            remedy="check that both show the same body part, or give register=headers.",
        ) from error
    # the transform leads from fixed to moving points; lesions go the other way
    matrix = np.asarray(np.linalg.inv(_matrix(transform)), dtype=np.float64)
    return Alignment(matrix, information, _foreground_dice(first, second, transform))


def _optimised(fixed: Any, moving: Any) -> tuple[Any, float]:
    """The best transform from fixed to moving points, and its mutual information."""
    import SimpleITK as sitk

    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(_SHARE_SAMPLED, 1)  # samples are jittered: a seed
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0, 0.0])
    method.SetInitialTransform(start, inPlace=True)
    with _one_thread():
        method.Execute(fixed, moving)
    return start, -float(method.GetMetricValue())


@contextmanager
def _one_thread() -> Iterator[None]:
    """The metric's sums over several threads differ in their last digits, and steps follow them.

    The method's own number of threads does not reach its metric; the global one does.
    """
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _matrix(transform: Any) -> NDArray[np.float64]:
    """A transform of ITK's millimetres as a matrix `[4, 4]` of RAS millimetres."""
    corners = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    moved = np.array([transform.TransformPoint(p.tolist()) for p in corners])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = (moved[1:] - moved[0]).T, moved[0]
    return np.asarray(_TO_RAS @ matrix @ _TO_RAS)


def _foreground_dice(fixed: Any, moving: Any, transform: Any) -> float:
    """Dice of both foregrounds within the moving scan's field of view; 0 without any."""
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
