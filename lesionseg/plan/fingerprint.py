"""Fingerprint of a dataset: intensities, spacings, lesion sizes, modality; sampled voxels."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat

from lesionseg.config import Probability
from lesionseg.core import Case, Dataset, Reference
from lesionseg.core.records import read_record
from lesionseg.errors import DatasetError
from lesionseg.ops.components import lesion_mask, lesions_of
from lesionseg.plan.plan import Millimetres, Modality
from lesionseg.plan.plausibility import ReferenceStatistics, reference_statistics

CLIPPED = (0.5, 99.5)  # percentiles to which CT is clipped (Isensee et al. 2021)
SAMPLED = 8192  # voxels that are sampled from a case, and as many from its lesions
MAX_SAMPLED = 2**22  # voxels that are sampled from all cases together, per channel
AIR_HU = -950.0  # CT values above it belong to the body, aerated lung included
# Values below it occur in CT, because air has -1000 HU. They do not occur in MRI magnitudes.
MIN_MRI = -500.0


@dataclass(frozen=True)
class Spread:
    """The mean, standard deviation and 0.5 and 99.5 percentiles of some voxels."""

    mean: FiniteFloat
    std: FiniteFloat
    lower: FiniteFloat
    upper: FiniteFloat


@dataclass(frozen=True)
class ChannelStatistics:
    """The intensities of one channel in the file's units.

    Each case contributes at most the same number of voxels to `body`, and to `lesion`. Cases in
    which the channel is 0 everywhere are left out, unless it is in all of them. `lesion` is None if
    there are no lesion voxels. `body` describes voxels above -950 HU in a CT channel, and non-zero
    voxels in other channels; without any, its mean is 0 and its deviation 1. `nonzero_share` is the
    mean over cases of the share of non-zero voxels.
    """

    name: str
    is_ct: bool
    body: Spread
    lesion: Spread | None
    nonzero_share: FiniteFloat


@dataclass(frozen=True)
class Fingerprint:
    """The statistics of a dataset's labelled cases.

    Attributes:
        dims: Number of spatial axes.
        modality: MRI, CT, X-ray, or colour pictures.
        channels: Intensities of each channel.
        shapes: Shape of each case. In 3-D the axes run along S, A, R, as in prepared images.
        spacings_mm: Spacing of each case, in the same axis order.
        lesions_per_case: Number of lesions of each case.
        diameters_mm: Equivalent diameter of each lesion of all cases.
        lesion_voxels: Number of voxels of each lesion on the file's grid. For a box without voxels,
            that of its inscribed ellipsoid.
        lesion_fraction: Share of lesion in the scanned volume, without ignored voxels.
        extents_mm: Sides of each lesion's bounding box, in the axis order of `spacings_mm`.
        n_boxed: Number of cases whose lesions are boxes without a mask.
        n_outlines: Number of lesions whose outlines were tested (`plan.box_outlines`).
        n_box_outlines: Number of them that are filled rectangles or ellipses.
    """

    dims: int
    modality: Modality
    channels: tuple[ChannelStatistics, ...]
    shapes: tuple[tuple[Annotated[int, Field(ge=1, lt=2**31)], ...], ...]
    spacings_mm: tuple[tuple[Millimetres, ...], ...]
    lesions_per_case: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...]
    diameters_mm: tuple[FiniteFloat, ...]
    lesion_voxels: tuple[int, ...]
    lesion_fraction: Probability
    extents_mm: tuple[tuple[FiniteFloat, ...], ...] = ()
    n_boxed: Annotated[int, Field(ge=0)] = 0
    n_outlines: Annotated[int, Field(ge=0)] = 0
    n_box_outlines: Annotated[int, Field(ge=0)] = 0
    schema_version: Literal[1] = 1

    def to_json(self) -> str:
        """Return the fingerprint as JSON text for fingerprint.json.

        The text begins with the numbers of cases, lesions and lesion-free cases for human readers.
        """
        n_lesions = self.lesions_per_case
        counts = {"n_cases": len(self.shapes), "n_lesions": sum(n_lesions)}
        counts["n_lesion_free_cases"] = sum(n == 0 for n in n_lesions)
        return json.dumps({**counts, **asdict(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "fingerprint.json") -> "Fingerprint":
        """Read a fingerprint from JSON text. `where` is the name of the file for messages.

        Raises:
            DatasetError: If a key is missing or wrong. The message names `where` and the key.
        """
        return read_record(cls, text, where, DatasetError)


@dataclass(frozen=True, eq=False)
class CaseStatistics:
    """The statistics of one labelled case, from which a fingerprint is computed.

    `shape`, `spacing_mm` and `extents_mm` are in the axis order of the fingerprint.

    Attributes:
        shape: Shape of the image.
        spacing_mm: Spacing of the image.
        boxed: True if the lesions are boxes without a mask.
        lesion_voxels: Number of voxels of each lesion, as in `Fingerprint`.
        diameters_mm: Equivalent diameter of each lesion.
        extents_mm: Sides of the bounding box of each lesion.
        lesion_mm: Volume of all lesions in mm³; in 2-D, their area in mm².
        scanned_mm: Volume or area of the image, without ignored voxels.
        nonzero: Share of non-zero voxels of each channel.
        sample: Intensities of some voxels of the image, `[C, n]`.
        lesion_sample: Intensities of some voxels of the lesions, `[C, n]`.
        reference: Statistics for the plausibility checks.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    boxed: bool
    lesion_voxels: tuple[int, ...]
    diameters_mm: tuple[float, ...]
    extents_mm: tuple[tuple[float, ...], ...]
    lesion_mm: float
    scanned_mm: float
    nonzero: tuple[float, ...]
    sample: NDArray[np.float32]
    lesion_sample: NDArray[np.float32]
    reference: ReferenceStatistics


def measure_case(case: Case, reference: Reference, maximum: int = SAMPLED) -> CaseStatistics:
    """Compute the statistics of a labelled case, from which `fingerprint_of` makes a fingerprint.

    Args:
        case: The case.
        reference: Its reference. Lesions are those of `lesions_of`. For `lesion_mm` and
            `lesion_sample`, the lesion voxels of a box without a mask are all voxels of the box.
        maximum: Maximum number of voxels in each of the two samples.

    Returns:
        Sizes in voxels and millimetres, and float32 intensities in the file's units. A case without
        lesions has empty lesion tuples and an empty `lesion_sample` `[C, 0]`.
    """
    array = case.image.array
    geometry = case.image.geometry
    order = geometry.canonical_order  # axes in the order of `Fingerprint.shapes`
    lesions = lesions_of(reference)
    is_lesion = lesion_mask(reference)
    has_only_boxes = reference.mask() is None and len(lesions.diameters_mm) > 0
    n_annotated = is_lesion.size
    if reference.ignore is not None:
        n_annotated = int(np.count_nonzero(~reference.ignore))
    # a box is (start, stop); a box without extent counts as one voxel
    start, stop = np.split(lesions.boxes, 2, axis=1)
    sides_vox = np.maximum(stop - start, 1).astype(float).tolist()
    extents_mm = [
        tuple(round(sides[a] * geometry.spacing_mm[a], 4) for a in order) for sides in sides_vox
    ]
    channels = array.reshape(len(array), -1)  # `[C, voxels]`
    return CaseStatistics(
        shape=tuple(geometry.shape[a] for a in order),
        spacing_mm=tuple(round(geometry.spacing_mm[a], 6) for a in order),
        boxed=has_only_boxes,
        lesion_voxels=tuple(map(int, lesions.sizes_vox)),
        diameters_mm=tuple(map(float, lesions.diameters_mm)),
        extents_mm=tuple(extents_mm),
        lesion_mm=float(is_lesion.sum()) * geometry.voxel_size,
        scanned_mm=float(n_annotated) * geometry.voxel_size,
        nonzero=tuple(float(np.count_nonzero(c) / c.size) for c in channels),
        sample=_sample_columns(channels, maximum),
        lesion_sample=_sample_columns(array[:, is_lesion], maximum),
        reference=reference_statistics(reference, lesions),
    )


def fingerprint_of(dataset: Dataset, statistics: Sequence[CaseStatistics]) -> Fingerprint:
    """Compute the fingerprint of a dataset from the statistics of its labelled cases.

    In 2-D, the modality is "colour" for pictures in colour, and otherwise "xray". In 3-D, it is
    "ct" if any channel is CT, and otherwise "mri".

    Args:
        dataset: The dataset. Its axes and channel names are used.
        statistics: The statistics of each labelled case, at least one.
    """
    channels = tuple(
        _measure_channel(dataset, statistics, c) for c in range(len(dataset.channel_names))
    )
    # `scanned_mm` and `lesion_mm` are in mm³ or, in 2-D, mm²; 0 if all voxels are ignored
    scanned = sum(case.scanned_mm for case in statistics)
    modality: Modality = "mri"
    if dataset.dims == 2:
        modality = "colour" if dataset.is_colour else "xray"
    elif any(channel.is_ct for channel in channels):
        modality = "ct"
    return Fingerprint(
        dims=dataset.dims,
        modality=modality,
        channels=channels,
        shapes=tuple(case.shape for case in statistics),
        spacings_mm=tuple(case.spacing_mm for case in statistics),
        lesions_per_case=tuple(len(case.lesion_voxels) for case in statistics),
        diameters_mm=tuple(round(d, 4) for case in statistics for d in case.diameters_mm),
        lesion_voxels=tuple(v for case in statistics for v in case.lesion_voxels),
        lesion_fraction=sum(case.lesion_mm for case in statistics) / scanned
        if scanned > 0
        else 0.0,
        extents_mm=tuple(side for case in statistics for side in case.extents_mm),
        n_boxed=sum(case.boxed for case in statistics),
        n_outlines=sum(case.reference.n_outlines for case in statistics),
        n_box_outlines=sum(case.reference.n_box_outlines for case in statistics),
    )


def _sample_columns(values: NDArray[Any], maximum: int) -> NDArray[np.float32]:
    """Return at most `maximum` evenly spaced voxels of an image `[C, n]` as float32 `[C, m]`."""
    n = values.shape[1]
    # A constant step could always hit the same column of the image, such as its edge.
    columns = np.linspace(0, max(n - 1, 0), min(n, maximum)).astype(int)
    return np.array(values[:, columns], np.float32)


def _measure_channel(
    dataset: Dataset, statistics: Sequence[CaseStatistics], c: int
) -> ChannelStatistics:
    """Compute the intensity statistics of channel `c` over the cases that have this channel.

    A case whose channel is 0 everywhere has no file of the channel. If no case has the channel, all
    cases are used.

    The channel is CT if its name is "CT" (as in nnU-Net). In 3-D, the channel is also CT if its
    lowest intensity, as the median over cases, is below `MIN_MRI`. This occurs only in Hounsfield
    units.
    """
    # leave out cases without a file of this channel
    statistics = [case for case in statistics if case.nonzero[c] > 0] or statistics
    samples = [case.sample[c] for case in statistics]
    name = dataset.channel_names[c]
    is_named_ct = name.strip().casefold() == "ct"
    has_hounsfield_units = False
    if dataset.dims == 3:
        has_hounsfield_units = bool(np.median([sample.min() for sample in samples]) < MIN_MRI)
    is_ct = is_named_ct or has_hounsfield_units
    body = np.concatenate(samples)
    body = body[body > AIR_HU if is_ct else body != 0]  # outside the body, other images are 0
    return ChannelStatistics(
        name=name,
        is_ct=is_ct,
        # without a voxel in the body: mean 0 and standard deviation 1, which change nothing
        body=_measure_spread(body) or Spread(mean=0.0, std=1.0, lower=0.0, upper=0.0),
        lesion=_measure_spread(np.concatenate([case.lesion_sample[c] for case in statistics])),
        nonzero_share=float(np.mean([case.nonzero[c] for case in statistics])),
    )


def _measure_spread(values: NDArray[np.float32]) -> Spread | None:
    """Compute mean, standard deviation and the percentiles `CLIPPED` of intensities.

    Return None if there are no intensities, such as in a dataset without lesions.
    """
    if values.size == 0:
        return None
    values_fp64 = values.astype(float)  # the sum of many float32 values would lose digits
    lower, upper = np.percentile(values_fp64, CLIPPED)
    return Spread(
        mean=float(values_fp64.mean()),
        std=float(values_fp64.std()),
        lower=float(lower),
        upper=float(upper),
    )
