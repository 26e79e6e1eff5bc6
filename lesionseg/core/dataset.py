"""A dataset: its cases on disk, its channels and its lesion labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.core.case import CaseFiles
from lesionseg.errors import LesionsegError

# what a lesion is called whose voxels may hold several mask values
UNION: Mapping[int, str] = {1: "lesion"}


@dataclass(frozen=True)
class LabelRegion:
    """Mask values that are learnt and judged as one, such as all parts of a tumour.

    `values` ascending; those of several regions may overlap. `painted` is the value that stands
    for the region in a predicted mask, later regions over earlier ones; it is one of `values`.
    """

    name: str
    values: tuple[int, ...]
    painted: int


@dataclass(frozen=True, eq=False)
class Problem:
    """Why a case cannot be taken as it is listed; `repeated` when reading it says the same."""

    case: str
    error: LesionsegError
    repeated: bool = False


@dataclass(frozen=True)
class Dataset:
    """What a data folder holds, whatever convention it follows.

    `labels` maps a lesion label's value in the masks to its name, background left out, in
    ascending order of value. `regions`: what is learnt in place of the labels, in the order in
    which predicted masks are painted; empty where each label is learnt by itself. A lesion then is
    a component of all of them together, one lesion and not one a region. `convention` names how
    the folder was read. `merged_values` are the mask values that all count as the one label 1,
    when the user asked for that; else empty. `resample_tilt`: DICOM series of a tilted gantry are
    resampled upright, not refused. `problems`: what is wrong with single cases, in a dataset that
    was read to look for it; else empty.
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
    resample_tilt: bool = False
    regions: tuple[LabelRegion, ...] = ()
    problems: tuple[Problem, ...] = ()

    def datalist(self) -> list[dict[str, Any]]:
        """The cases as MONAI's loaders and `CacheDataset` take them, paths as strings.

        `image`: a path, or one per channel; `label`: the mask, where there is one; `case`, `group`,
        and `role` and `fold` where the dataset states them.
        """
        return [case.listed() for case in self.cases]

    @property
    def lesion_labels(self) -> Mapping[int, str]:
        """Labels by which lesions are told apart: one for all where there are regions."""
        return UNION if self.regions else self.labels
