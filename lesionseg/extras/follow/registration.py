"""Rigid registration of two scans with SimpleITK; minimum foreground Dice, mutual information."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Volume
from lesionseg.errors import GeometryError
from lesionseg.io import itk_image

MIN_FOREGROUND_DICE = 0.8  # heads rotated by a few degrees reach 0.95; another body part does not
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's millimetres run to the left and the back


@dataclass(frozen=True, eq=False)
class Alignment:
    """A rigid movement from the moving scan to the fixed one, with measures of its quality.

    `matrix` `[4, 4]` maps RAS millimetres. `mutual_information` (Mattes) is in nats, after the
    movement. `foreground_dice` is the Dice of the two foregrounds by Otsu's threshold, within the
    field of view of both scans.
    """

    matrix: NDArray[np.float64]
    mutual_information: float
    foreground_dice: float


def register_rigid(fixed: Volume, moving: Volume) -> Alignment:
    """Register the first channel of two scans by rotation and translation, coarse to fine.

    The metric is the mutual information of every fifth voxel in 50 bins (Mattes et al. 2003). The
    optimisation begins with aligned centres of mass, and uses a quarter, half and the full
    resolution, with at most 200 steps each, from 1 mm down to 0.0001 mm. It has one thread and a
    fixed seed, so that the same scans give the same numbers.

    Args:
        fixed: The scan that defines the coordinates, the later visit.
        moving: The scan to align with it, the earlier visit.

    Returns:
        The movement from the moving scan to the fixed one, with measures of its quality.

    Raises:
        GeometryError: If a scan is 2-D or the optimisation fails.
    """
    import SimpleITK as sitk

    if fixed.geometry.dims != 3 or moving.geometry.dims != 3:
        raise GeometryError("Only scans with three axes can be registered. Set register=headers.")
    fixed_image = itk_image(fixed.array[0].astype(np.float32), fixed.geometry)
    moving_image = itk_image(moving.array[0].astype(np.float32), moving.geometry)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.2, 1)  # the seed is 1: samples are jittered
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-4, numberOfIterations=200
    )
    # a step of an angle or a shift is measured by how far it moves the voxels
    method.SetOptimizerScalesFromPhysicalShift()
    # from a quarter of the resolution to the full one; smoothed by σ voxels before it is reduced
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0, 0.0])
    # Sums over several threads differ in their last digits. The method's own number of threads
    # does not apply to its metric.
    n_threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        # air has no mass: in Hounsfield units it would have a negative one
        transform = sitk.CenteredTransformInitializer(
            fixed_image - float(fixed.array[0].min()),
            moving_image - float(moving.array[0].min()),
            sitk.Euler3DTransform(),
            sitk.CenteredTransformInitializerFilter.MOMENTS,  # aligns the centres of mass
        )
        # `Execute` changes `transform` itself
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(fixed_image, moving_image)
    except RuntimeError as error:
        last_line = str(error).strip().splitlines()[-1]  # the others name places in C++ files
        text = f"The two scans cannot be registered ({last_line}). Set register=headers."
        raise GeometryError(text) from error
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(n_threads)
    euler = sitk.Euler3DTransform(transform)  # `transform` may lack `GetMatrix`
    # the transform as a matrix: the rotation, and the point to which the origin goes
    to_moving = np.eye(4)
    to_moving[:3, :3] = np.reshape(euler.GetMatrix(), (3, 3))
    to_moving[:3, 3] = euler.TransformPoint((0.0, 0.0, 0.0))
    # SimpleITK's transform maps fixed to moving points in ITK's millimetres; lesions need the
    # inverse in RAS millimetres (`_TO_RAS` is its own inverse)
    matrix = np.asarray(np.linalg.inv(_TO_RAS @ to_moving @ _TO_RAS), float)
    # the method minimises, so its metric is the negative mutual information
    information = -float(method.GetMetricValue())
    return Alignment(matrix, information, _foreground_dice(fixed_image, moving_image, transform))


def _foreground_dice(fixed: Any, moving: Any, transform: Any) -> float:
    """Return the Dice of the foregrounds of two registered scans, to detect a failed registration.

    The foreground is above Otsu's threshold. Only the field of view of both scans counts. If there
    is no foreground, the Dice is 0.

    Args:
        fixed: The fixed image of SimpleITK.
        moving: The moving image of SimpleITK.
        transform: Maps points of the fixed image to points of the moving one.
    """
    import SimpleITK as sitk

    def resample_to_fixed(image: Any) -> NDArray[Any]:
        """Return an image of the moving scan as an array on the grid of the fixed scan."""
        # 0: the value outside the image
        resampled = sitk.Resample(image, fixed, transform, sitk.sitkNearestNeighbor, 0)
        result: NDArray[Any] = sitk.GetArrayFromImage(resampled)
        return result

    # ones within the moving scan, and 0 outside
    field_of_view = resample_to_fixed(sitk.Cast(moving * 0 + 1, sitk.sitkUInt8))
    # the threshold filter gives 0 up to the threshold, and 1 above it
    first = sitk.GetArrayFromImage(sitk.OtsuThreshold(fixed, 0, 1)) > 0
    first &= field_of_view > 0
    second = resample_to_fixed(sitk.OtsuThreshold(moving, 0, 1)) > 0
    total = int(first.sum()) + int(second.sum())
    return 2 * float((first & second).sum()) / total if total else 0.0
