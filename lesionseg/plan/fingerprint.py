"""The fingerprint: what a dataset's images and lesions are like, in numbers."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat

from lesionseg.core import Case, Dataset, Reference
from lesionseg.core.records import read_record
from lesionseg.errors import DatasetError
from lesionseg.ops.components import lesion_mask, lesions_of
from lesionseg.plan.plan import Millimetres, Modality, Share
from lesionseg.plan.plausibility import ReferenceFacts, reference_facts

CLIPPED = (0.5, 99.5)  # percentiles to which CT is clipped (Isensee et al. 2021)
# voxels looked at per case and kind, evenly spaced, and per channel of all cases: memory is bounded
SAMPLED, MOST_SAMPLED = 8192, 2**22
AIR_HU = -950.0  # CT values above it belong to the body, aerated lung included
NO_MAGNITUDE = -500.0  # values below it occur in CT (air at -1000 HU), never in MRI magnitudes


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and the 0.5 and 99.5 percentiles of some voxels."""

    mean: FiniteFloat
    std: FiniteFloat
    lower: FiniteFloat
    upper: FiniteFloat


@dataclass(frozen=True)
class ChannelStatistics:
    """Intensities of one channel in the file's units, every case with the same weight.

    `lesion` is None without any lesion voxel. `body` are voxels above -950 HU in a CT channel and
    non-zero ones in others. `nonzero_share` is the mean share of non-zero voxels in a case.
    """

    name: str
    is_ct: bool
    body: Spread
    lesion: Spread | None
    nonzero_share: FiniteFloat


@dataclass(frozen=True)
class Fingerprint:
    """Statistics of a dataset's labelled cases.

    Per case: `shapes` and `spacings_mm` (3-D: axes turned along +S, +A, +R, as prepared images
    have them) and `lesions_per_case`. Per lesion, in no order that matters: `diameters_mm` (the
    equivalent diameter), `lesion_voxels` on the file's grid and `extents_mm`, the sides of its box
    along the axes of `spacings_mm`. `lesion_fraction` is the share of the scanned volume that is
    lesion, what is to be ignored left out.
    """

    dims: int
    modality: Modality
    channels: tuple[ChannelStatistics, ...]
    shapes: tuple[tuple[Annotated[int, Field(ge=1, lt=2**31)], ...], ...]
    spacings_mm: tuple[tuple[Millimetres, ...], ...]
    lesions_per_case: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...]
    diameters_mm: tuple[FiniteFloat, ...]
    lesion_voxels: tuple[int, ...]
    lesion_fraction: Share
    extents_mm: tuple[tuple[FiniteFloat, ...], ...] = ()
    schema_version: Literal[1] = 1

    def to_json(self) -> str:
        """The fingerprint as JSON, with the counts spelled out for readers."""
        lesions = self.lesions_per_case
        counts = {"n_cases": len(self.shapes), "n_lesions": sum(lesions)}
        counts["n_lesion_free_cases"] = sum(n == 0 for n in lesions)
        return json.dumps({**counts, **asdict(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "fingerprint.json") -> "Fingerprint":
        """Read a fingerprint; raises `DatasetError` naming `where` when it is none."""
        return read_record(cls, text, where, DatasetError)


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What is kept of one labelled case: sizes, and a sample of voxels `[C, n]` of each kind.

    `shape`, `spacing_mm` and `extents_mm` (a row per lesion) are in the order of the fingerprint's.
    `boxed`: its lesions are boxes without a mask. `nonzero`: share of voxels, per channel.
    `reference`: what its plausibility is judged by.
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
    reference: ReferenceFacts


def facts_of(case: Case, reference: Reference, most: int = SAMPLED) -> CaseFacts:
    """Take what the fingerprint needs of a case, with at most `most` voxels in either sample.

    Lesions are those of `lesions_of`; intensities of a bare box are those of all its voxels.
    """
    array, geometry = case.image.array, case.image.geometry
    order = geometry.canonical_order
    lesions, covered = lesions_of(reference), lesion_mask(reference)
    start, stop = np.split(lesions.boxes, 2, axis=1)
    sides = np.maximum(stop - start, 1)
    n_known = covered.size if reference.ignore is None else np.count_nonzero(~reference.ignore)
    flat = array.reshape(len(array), -1)
    return CaseFacts(
        shape=tuple(geometry.shape[a] for a in order),
        spacing_mm=tuple(round(geometry.spacing_mm[a], 6) for a in order),
        boxed=reference.mask() is None and len(lesions.diameters_mm) > 0,
        lesion_voxels=tuple(int(v) for v in lesions.sizes_vox),
        diameters_mm=tuple(float(d) for d in lesions.diameters_mm),
        extents_mm=tuple(
            tuple(round(float(row[a]) * geometry.spacing_mm[a], 4) for a in order) for row in sides
        ),
        lesion_mm=float(covered.sum()) * geometry.voxel_size,
        scanned_mm=float(n_known) * geometry.voxel_size,
        nonzero=tuple(float(np.count_nonzero(c) / c.size) for c in flat),
        sample=_sampled(flat, most),
        lesion_sample=_sampled(array[:, covered], most),
        reference=reference_facts(reference, lesions),
    )


def fingerprint_of(dataset: Dataset, facts: Sequence[CaseFacts]) -> Fingerprint:
    """The fingerprint of labelled cases. Raises `DatasetError` for none."""
    if not facts:
        raise DatasetError(f"{dataset.root}: no labelled case to plan from.")
    channels = tuple(_channel(dataset, facts, c) for c in range(len(dataset.channel_names)))
    scanned = sum(n.scanned_mm for n in facts)  # 0 where every voxel is to be ignored
    return Fingerprint(
        dims=dataset.dims,
        modality="xray" if dataset.dims == 2 else "ct" if any(c.is_ct for c in channels) else "mri",
        channels=channels,
        shapes=tuple(n.shape for n in facts),
        spacings_mm=tuple(n.spacing_mm for n in facts),
        lesions_per_case=tuple(len(n.lesion_voxels) for n in facts),
        diameters_mm=tuple(round(d, 4) for n in facts for d in n.diameters_mm),
        lesion_voxels=tuple(v for n in facts for v in n.lesion_voxels),
        lesion_fraction=sum(n.lesion_mm for n in facts) / scanned if scanned > 0 else 0.0,
        extents_mm=tuple(side for n in facts for side in n.extents_mm),
    )


def _sampled(values: NDArray[Any], most: int) -> NDArray[np.float32]:
    n = values.shape[1]  # a whole step could fall on one column of the image, its edge
    places = np.linspace(0, max(n - 1, 0), min(n, most)).astype(int)
    return np.array(values[:, places], dtype=np.float32)


def _channel(dataset: Dataset, facts: Sequence[CaseFacts], c: int) -> ChannelStatistics:
    """CT by the channel's name (nnU-Net), else by values that only Hounsfield units have."""
    # a channel is 0 in the cases that lack it
    facts = [n for n in facts if n.nonzero[c] > 0] or facts
    samples, name = [n.sample[c] for n in facts], dataset.channel_names[c]
    is_ct = name.strip().casefold() == "ct"
    is_ct |= dataset.dims == 3 and bool(np.median([s.min() for s in samples]) < NO_MAGNITUDE)
    body = np.concatenate([s[s > AIR_HU] if is_ct else s[s != 0] for s in samples])
    return ChannelStatistics(
        name=name,
        is_ct=is_ct,
        body=_spread(body) or Spread(0.0, 1.0, 0.0, 0.0),
        lesion=_spread(np.concatenate([n.lesion_sample[c] for n in facts])),
        nonzero_share=float(np.mean([n.nonzero[c] for n in facts])),
    )


def _spread(values: NDArray[np.float32]) -> Spread | None:
    if values.size == 0:
        return None
    wide = values.astype(np.float64)
    lower, upper = np.percentile(wide, CLIPPED)
    return Spread(float(wide.mean()), float(wide.std()), float(lower), float(upper))
