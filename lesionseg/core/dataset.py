"""A dataset and its cases: each one visit of one patient, on disk and in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lesionseg.core.geometry import Geometry, Volume
from lesionseg.errors import DatasetError, GeometryError

Role = Literal["train", "validation", "test", "external"]
# What scores say where nobody stated one role for the cases; no dataset can state it.
UNKNOWN_ROLE = "unknown"
# what a lesion is called whose voxels may hold several mask values
UNION: Mapping[int, str] = {1: "lesion"}


@dataclass(frozen=True)
class CaseFiles:
    """Where a case lies on disk and what the dataset says of it.

    `images` has one file per channel, but for those whose places are `missing`. `reference` is a
    label mask, an instance mask or None (boxes only, or unlabelled). `annotations` holds what a
    table says of the lesions (COCO); `{}` for masks. `role` and `fold` are None where the dataset
    leaves the choice to us. `columns` keeps all further manifest columns, for subgroups.
    `annotated`: names of the labels that a reader looked for in this case; empty: all of the
    dataset's.
    """

    case: str
    images: tuple[Path, ...]
    reference: Path | None = None
    group: str = ""
    role: Role | None = None
    fold: int | None = None
    annotations: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    annotated: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()

    @property
    def is_labelled(self) -> bool:
        """Whether a reader's result is known of it: one without lesions, too."""
        return self.reference is not None or bool(self.annotations)

    @property
    def pixel_mm(self) -> float | None:
        """Pixel size of its rasters, from the column of that name; None when unknown.

        Raises `DatasetError` where it is no number.
        """
        text = self.columns.get("pixel_mm", "")
        try:
            return float(text) if text else None
        except ValueError as error:
            message = f"pixel_mm of the case {self.case!r} is not a number: {text}."
            raise DatasetError(message) from error


@dataclass(frozen=True, eq=False)
class Reference:
    """What a reader marked, on the image's grid; lesion-free is all zeros and no boxes.

    `labels` `[*spatial]` integer: 0 background, else the label's file value; None with boxes only.
    `instances` `[*spatial]` int32: lesion id 1..n; None when the components of `labels` are the
    lesions (`ops.components.lesions_of`). `instance_labels[id-1]` is the label of lesion id.
    `boxes` `[n, 2·dims]` (starts, stops; half-open voxels) float32 and `box_labels` `[n]`: given by
    the dataset; None when they follow from the instances. `ignore` `[*spatial]` bool: voxels that
    neither teach nor score; None for none. `annotated`: whether a reader looked for each label, by
    its value; empty: for all. Of the others nothing is marked here, and background may be of them.
    """

    geometry: Geometry
    labels: NDArray[np.integer[Any]] | None = None
    instances: NDArray[np.int32] | None = None
    instance_labels: tuple[int, ...] = ()
    boxes: NDArray[np.float32] | None = None
    box_labels: tuple[int, ...] = ()
    ignore: NDArray[np.bool_] | None = None
    annotated: Mapping[int, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("labels", "instances", "ignore"):
            array = getattr(self, name)
            if array is not None and array.shape != self.geometry.shape:
                shapes = f"{array.shape}, not {self.geometry.shape}"
                raise GeometryError(f"The reference's {name} do not fit its grid: {shapes}.")

    def mask(self) -> NDArray[np.bool_] | None:
        """Voxels `[*spatial]` of any lesion; None where there are boxes alone."""
        marked = self.labels if self.instances is None else self.instances
        return None if marked is None else np.asarray(marked > 0)

    @property
    def unannotated(self) -> tuple[int, ...]:
        """The labels of which nothing is known."""
        return tuple(label for label, looked_for in self.annotated.items() if not looked_for)


@dataclass(frozen=True, eq=False)
class Case:
    """One visit of one patient in memory: image `[C, *spatial]` float32 and optional reference."""

    case: str
    image: Volume
    reference: Reference | None = None
    group: str = ""


@dataclass(frozen=True)
class LabelRegion:
    """Mask values that are learnt and scored as one, such as all parts of a tumour.

    `values` ascending; those of several regions may overlap. `painted` is the value that stands
    for the region in a predicted mask, later regions over earlier ones; it is one of `values`.
    """

    name: str
    values: tuple[int, ...]
    painted: int


class Problem(NamedTuple):
    """Why an entry of a dataset's list is wrong; `case` is "" where it names none."""

    case: str
    message: str


@dataclass(frozen=True)
class Dataset:
    """What a data folder holds, whatever convention it follows.

    `labels` maps a lesion label's value in the masks to its name, background left out, in
    ascending order of value. `regions`: what is learnt in place of the labels, in the order in
    which predicted masks are painted; empty where each label is learnt by itself. A lesion then is
    a component of all of them together, one lesion and not one a region. `convention` names how
    the folder was read. `merged_values` are the mask values that all count as the one label 1,
    when the user asked for that; else empty. `may_lack`: cases may lack channels; else that is an
    error. `problems`: what is wrong with single cases, in a dataset that was read to look for it.
    """

    name: str
    root: Path
    convention: str
    dims: int
    channel_names: tuple[str, ...]
    labels: Mapping[int, str]
    cases: tuple[CaseFiles, ...]
    ignore_label: int | None = None
    incomplete_reference: bool = False
    merged_values: tuple[int, ...] = ()
    regions: tuple[LabelRegion, ...] = ()
    may_lack: bool = False
    problems: tuple[Problem, ...] = ()

    def datalist(self) -> list[dict[str, Any]]:
        """The cases as MONAI's loaders and `CacheDataset` take them, paths as strings.

        `image`: a path, or one per channel; `label`: the mask, where there is one; `case`, `group`,
        and `role` and `fold` where the dataset states them.
        """
        entries = []
        for case in self.cases:
            images = [str(path) for path in case.images]
            stated = {
                "image": images[0] if len(images) == 1 else images,
                "case": case.case,
                "group": case.group,
                "label": case.reference and str(case.reference),
                "role": case.role,
                "fold": case.fold,
            }
            entries.append({name: value for name, value in stated.items() if value is not None})
        return entries

    @property
    def lesion_labels(self) -> Mapping[int, str]:
        """Labels by which lesions differ: one for all where there are regions."""
        return UNION if self.regions else self.labels
