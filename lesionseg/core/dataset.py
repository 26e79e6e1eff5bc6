"""A dataset and its cases: each one visit of one patient, on disk and in memory."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lesionseg.core.geometry import Geometry, Volume
from lesionseg.core.labels import Labels
from lesionseg.errors import ConfigError, DatasetError, GeometryError, count

logger = logging.getLogger(__name__)

Role = Literal["train", "validation", "test", "external"]
# What scores say where nobody stated one role for the cases; no dataset can state it.
UNKNOWN_ROLE = "unknown"
_BIDS_SUBJECT = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)")
_HALF = re.compile(r"(.*[^_.-])[_.-]?([LR])")


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

        Raises `DatasetError` if it is no positive number.
        """
        text = self.columns.get("pixel_mm", "")
        try:
            size = float(text) if text else None
        except ValueError:
            size = math.nan
        if size is not None and not 0 < size < math.inf:
            raise DatasetError(
                f"pixel_mm of {self.case!r} is {text}. Write the width of a pixel in millimetres, "
                "such as 0.143, or leave it empty."
            )
        return size


@dataclass(frozen=True, eq=False)
class StatedBoxes:
    """Boxes `[n, 2·dims]` of lesions as a table states them, not cut to the image; their labels."""

    boxes: NDArray[np.float64]
    labels: tuple[int, ...]


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
    `stated`: the boxes of a table as it has them; None if the lesions come from elsewhere.
    """

    geometry: Geometry
    labels: NDArray[np.integer[Any]] | None = None
    instances: NDArray[np.int32] | None = None
    instance_labels: tuple[int, ...] = ()
    boxes: NDArray[np.float32] | None = None
    box_labels: tuple[int, ...] = ()
    ignore: NDArray[np.bool_] | None = None
    annotated: Mapping[int, bool] = field(default_factory=dict)
    stated: StatedBoxes | None = None

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


class Problem(NamedTuple):
    """Why an entry of a dataset's list is wrong; `case` is "" where it names none."""

    case: str
    message: str


class Remark(NamedTuple):
    """Something in a dataset's folder or tables that may be wrong, but stops nothing.

    `kind` is one of the findings of `prepare check=true`. `case` is "" if the remark is about the
    whole dataset. `is_note` is True if nothing needs to be done.
    """

    kind: str
    message: str
    case: str = ""
    is_note: bool = False


@dataclass(frozen=True)
class Dataset:
    """The content of a data folder, in any layout.

    `convention` is the name of the layout. `may_lack`: cases may lack channels; otherwise that is
    an error. `problems`: errors in single cases, if the folder was read to find them. `remarks`:
    possible mistakes in the folder or in single cases that stop nothing. `split_file`: a file in
    the folder that states which cases train and which validate. `nan_background`: NaN voxels of
    images and masks are background; otherwise they are an error. `grid_of_image`: files of a case
    that have the shape and the spacing of its first image are on that image's grid, whatever else
    their headers say.
    """

    name: str
    root: Path
    convention: str
    dims: int
    channel_names: tuple[str, ...]
    labels: Labels
    cases: tuple[CaseFiles, ...]
    may_lack: bool = False
    problems: tuple[Problem, ...] = ()
    remarks: tuple[Remark, ...] = ()
    split_file: Path | None = None
    nan_background: bool = False
    grid_of_image: bool = False

    def datalist(self) -> list[dict[str, Any]]:
        """The cases as MONAI's loaders and `CacheDataset` take them, paths as strings.

        `image`: a path, or one per channel; `label`: the mask, where there is one; `case`, `group`,
        and `role` and `fold` where the dataset states them.
        """
        entries = []
        for case in self.cases:
            images = [str(path) for path in case.images]
            stated: dict[str, Any] = {
                **{name: getattr(case, name) for name in ("case", "group", "role", "fold")},
                "image": images[0] if len(images) == 1 else images,
                "label": case.reference and str(case.reference),
            }
            entries.append({name: value for name, value in stated.items() if value is not None})
        return entries


def assign_groups(
    cases: Sequence[CaseFiles], pattern: str | None, *, setting: str = "data.group"
) -> tuple[CaseFiles, ...]:
    """Give every case its group.

    With a `pattern` (searched in the case id) it is its first bracket, or the whole match; else
    what the dataset says, the BIDS subject `sub-…` in the id, the common part of two ids that
    differ only in a last L or R (two halves of one patient), or the id itself. `setting` is what
    messages call the pattern.
    """
    groups = {case.case: case.group for case in cases}
    if pattern is not None:
        try:
            found = {case: re.search(pattern, case) for case in groups}
        except re.error as error:
            raise ConfigError(f"{setting}={pattern} is no regular expression: {error}.") from error
        groups = {case: m[m.re.groups > 0] or "" if m else "" for case, m in found.items()}
        if "" in groups.values():
            case = next(case for case, group in groups.items() if not group)
            raise DatasetError(f"{setting}={pattern} finds no patient in the case {case!r}.")
    open_ids = {case for case, group in groups.items() if not group}
    n_halves = 0
    for case in open_ids:
        subject, half = _BIDS_SUBJECT.search(case), _HALF.fullmatch(case)
        is_half = half is not None and case[:-1] + "LR"[case[-1] == "L"] in open_ids
        groups[case] = subject[1] if subject else half[1] if half and is_half else case
        n_halves += is_half
    if n_halves:
        paired = f"{count(n_halves, 'case')}, {count(n_halves // 2, 'patient')}"
        text = "Case names ending in L and R were paired: %s. To change this, set %s."
        logger.info(text, paired, setting)
    return tuple(replace(case, group=groups[case.case]) for case in cases)
