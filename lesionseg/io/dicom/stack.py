"""DICOM slices become a volume: sorted along the normal, evenly spaced, nothing twice."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import GeometryError, ReadError
from lesionseg.io.dicom.headers import LPS_TO_RAS
from lesionseg.io.dicom.slices import DicomSlice

logger = logging.getLogger(__name__)

Tilt = Literal["refuse", "resample"]
UNEVEN = 0.05  # share of the slice distance by which a step may differ from the others
_SAME_PLACE_MM = 1e-2
_SAME_DIRECTION = 1e-4
_DRIFT_PIXELS = 0.5  # over the whole stack: less moves no voxel to its neighbour


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in ascending order along their normal, `step` (LPS millimetres) from one to the next.

    `drift`: how far the first pixel moves over the stack, in pixels (down, across): more than half
    a pixel is a tilted gantry.
    """

    slices: tuple[DicomSlice, ...]
    step: NDArray[np.float64]
    drift: NDArray[np.float64]

    @property
    def is_tilted(self) -> bool:
        """Whether slices are shifted against each other."""
        return bool(np.abs(self.drift).max() > _DRIFT_PIXELS)

    @property
    def geometry(self) -> Geometry:
        """The grid of the slices as they lie; sheared when tilted."""
        first = self.slices[0]
        affine = np.eye(4)
        affine[:3, 0] = self.step
        affine[:3, 1] = first.down * first.pixel_mm[0]
        affine[:3, 2] = first.across * first.pixel_mm[1]
        affine[:3, 3] = first.position
        return Geometry((len(self.slices), *first.shape), LPS_TO_RAS @ affine)


def stack_slices(slices: Sequence[DicomSlice], where: Path) -> Stack:
    """Sort and check slices. Raises `ReadError` and `GeometryError` naming the files at fault.

    Refused: several series, differing shapes, directions or pixel sizes, mixed echoes, b-values or
    times, two slices at one place, and steps that differ by more than 5 % of the slice distance.
    """
    _refuse_series(slices, where)
    _refuse_mixture(slices, where)
    _refuse_grids(slices, where)
    normal = slices[0].normal
    order = sorted(slices, key=lambda piece: float(piece.position @ normal))
    _refuse_twice(order, normal, where)
    step = _step(order, normal, where)
    first = order[0]
    drift = (len(order) - 1) * np.array([step @ first.down, step @ first.across])
    return Stack(tuple(order), step, drift / np.array(first.pixel_mm))


def settle_tilt(stack: Stack, values: NDArray[np.float32], tilt: Tilt, where: Path) -> Volume:
    """The volume of a stack; a tilted one is refused, or resampled onto an upright grid."""
    if not stack.is_tilted:
        return Volume(values[np.newaxis], stack.geometry)
    if tilt == "refuse":
        raise _tilted(stack, where)
    from torch import from_numpy

    from lesionseg.ops.resample import resample_linear

    upright = upright_geometry(stack)
    to_stack = np.linalg.inv(stack.geometry.affine) @ upright.affine
    lowest = float(values.min())  # outside the slices lies what is darkest in them: air
    moved = resample_linear(from_numpy(values - lowest)[None], to_stack, upright.shape)
    logger.warning("%s: the slices of a tilted gantry were resampled upright.", where)
    return Volume(moved.numpy() + np.float32(lowest), upright)


def settled_geometry(stack: Stack, tilt: Tilt, where: Path) -> Geometry:
    """The geometry `settle_tilt` would give."""
    if stack.is_tilted and tilt == "refuse":
        raise _tilted(stack, where)
    return upright_geometry(stack) if stack.is_tilted else stack.geometry


def upright_geometry(stack: Stack) -> Geometry:
    """The smallest grid of upright slices that holds every tilted one."""
    first, n = stack.slices[0], len(stack.slices)
    drift = np.round(stack.drift, 3)  # so that a rounding error adds no row
    low, extra = np.minimum(np.floor(drift), 0), np.ceil(np.abs(drift)).astype(int)
    affine = np.array(LPS_TO_RAS @ stack.geometry.affine)
    affine[:3, 0] = first.normal * (stack.step @ first.normal)
    affine[:3, 3] += affine[:3, 1:3] @ low
    shape = (n, first.shape[0] + int(extra[0]), first.shape[1] + int(extra[1]))
    return Geometry(shape, LPS_TO_RAS @ affine)


def _tilted(stack: Stack, where: Path) -> GeometryError:
    normal = stack.slices[0].normal
    angle = np.degrees(np.arccos(np.clip(stack.step @ normal / np.linalg.norm(stack.step), -1, 1)))
    return GeometryError(
        "The gantry was tilted: the slices are shifted against each other.",
        where=where,
        seen=f"{angle:.1f} degrees",
        remedy="Resample them upright: data.dicom.tilt=resample, in predict dicom.tilt=resample.",
    )


def _refuse_series(slices: Sequence[DicomSlice], where: Path) -> None:
    series = Counter(piece.series for piece in slices)
    if len(series) > 1:
        odd = next(p for p in slices if p.series != series.most_common(1)[0][0])
        raise ReadError(
            f"The folder holds {len(series)} DICOM series.",
            where=where,
            seen=f"{odd.name} is of another series than the most",
            remedy="Sort the files into one folder a series.",
        )


def _refuse_mixture(slices: Sequence[DicomSlice], where: Path) -> None:
    for what in slices[0].kind:
        values = sorted({piece.kind[what] for piece in slices})
        if len(values) > 1:
            raise ReadError(
                f"The DICOM series mixes images of different {what}.",
                where=where,
                seen=f"{what} {', '.join(v or 'none' for v in values[:6])}",
                remedy="Sort the files into one folder for each, or name one as its own channel.",
            )


def _refuse_grids(slices: Sequence[DicomSlice], where: Path) -> None:
    first = slices[0]
    for piece in slices:
        difference = max(
            np.abs(piece.across - first.across).max(), np.abs(piece.down - first.down).max()
        )
        if difference > _SAME_DIRECTION:
            what = "direction"
        elif piece.shape != first.shape:
            what = "number of pixels"
        elif not np.allclose(piece.pixel_mm, first.pixel_mm, rtol=1e-4):
            what = "pixel size"
        else:
            continue
        raise GeometryError(
            f"Two slices of the series differ in their {what}: {piece.name} and {first.name}.",
            where=where,
            remedy="Keep the slices of one stack in the folder.",
        )


def _refuse_twice(order: Sequence[DicomSlice], normal: NDArray[np.float64], where: Path) -> None:
    """Two slices at one place: copies, or phases of something that moves."""
    for one, other in pairwise(order):
        if float((other.position - one.position) @ normal) > _SAME_PLACE_MM:
            continue
        phases = [what for what in one.phase if one.phase[what] != other.phase[what]]
        if one.uid != other.uid and phases:
            raise ReadError(
                f"The DICOM series holds several phases of one place: {phases[0]} differs.",
                where=where,
                seen=f"{one.name} and {other.name}",
                remedy="Sort the files into one folder a phase.",
            )
        raise ReadError(
            "Two slices of the DICOM series are duplicates: they lie at the same place.",
            where=where,
            seen=f"{one.name} and {other.name}",
            remedy="Keep one of the two files.",
        )


def _step(
    order: Sequence[DicomSlice], normal: NDArray[np.float64], where: Path
) -> NDArray[np.float64]:
    if len(order) == 1:
        thickness = order[0].thickness_mm
        logger.warning("%s: a single slice; its thickness stands for the slice distance.", where)
        return normal * (thickness if thickness else 1.0)
    places = np.stack([piece.position for piece in order])
    steps = np.diff(places, axis=0)
    usual = np.median(steps, axis=0)
    off = np.linalg.norm(steps - usual, axis=1) / np.linalg.norm(usual)
    if (off > UNEVEN).any():
        worst = int(off.argmax())
        raise GeometryError(
            "The slices are not evenly spaced: one is missing or displaced.",
            where=where,
            seen=f"{np.linalg.norm(steps[worst]):.4g} mm between {order[worst].name} and "
            f"{order[worst + 1].name}",
            expected=f"{np.linalg.norm(usual):.4g} mm within {UNEVEN:.0%}",
            remedy="Copy the missing file, or leave the series out.",
        )
    return np.asarray((places[-1] - places[0]) / (len(order) - 1))
