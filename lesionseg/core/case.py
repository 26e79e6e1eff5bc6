"""A case: one visit of one patient, on disk (`CaseFiles`) and in memory (`Case`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg.core.geometry import Geometry, Volume
from lesionseg.errors import GeometryError

Role = Literal["train", "validation", "test", "external"]
# What scores say where nobody stated one role for the cases; no dataset can state it.
UNKNOWN_ROLE = "unknown"


@dataclass(frozen=True)
class CaseFiles:
    """Where a case lies on disk and what the dataset says of it.

    `images` has one file per channel. `reference` is a label mask, an instance mask or None
    (boxes only, or unlabelled). `annotations` holds what a table says of the lesions (COCO); `{}`
    for masks. `role` and `fold` are None where the dataset leaves the choice to us.
    `columns` keeps all further manifest columns, for subgroups.
    """

    case: str
    images: tuple[Path, ...]
    reference: Path | None = None
    group: str = ""
    role: Role | None = None
    fold: int | None = None
    annotations: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)

    def listed(self) -> dict[str, Any]:
        """The case as an entry of MONAI's datalists; see `Dataset.datalist`."""
        images = [str(path) for path in self.images]
        entry: dict[str, Any] = {"image": images[0] if len(images) == 1 else images}
        label = None if self.reference is None else str(self.reference)
        stated = {"label": label, "role": self.role, "fold": self.fold}
        entry |= {"case": self.case, "group": self.group}
        return entry | {name: value for name, value in stated.items() if value is not None}


@dataclass(frozen=True, eq=False)
class Reference:
    """What a reader marked, on the image's grid; lesion-free is all zeros and no boxes.

    `labels` `[*spatial]` integer: 0 background, else the label's file value; None with boxes only.
    `instances` `[*spatial]` int32: lesion id 1..n; None when the components of `labels` are the
    lesions (`ops.lesions.lesions_of`). `instance_labels[id-1]` is the label of lesion id.
    `boxes` `[n, 2·dims]` (starts, stops; half-open voxels) float32 and `box_labels` `[n]`: given by
    the dataset; None when they follow from the instances. `ignore` `[*spatial]` bool: voxels that
    neither teach nor judge; None for none.
    """

    geometry: Geometry
    labels: NDArray[np.integer[Any]] | None = None
    instances: NDArray[np.int32] | None = None
    instance_labels: tuple[int, ...] = ()
    boxes: NDArray[np.float32] | None = None
    box_labels: tuple[int, ...] = ()
    ignore: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "instances", "ignore"):
            array = getattr(self, name)
            if array is not None and array.shape != self.geometry.shape:
                raise GeometryError(
                    f"The reference's {name} do not fit its grid.",
                    seen=array.shape,
                    expected=self.geometry.shape,
                )

    def mask(self) -> NDArray[np.bool_] | None:
        """Voxels `[*spatial]` of any lesion; None where there are boxes alone."""
        marked = self.labels if self.instances is None else self.instances
        return None if marked is None else np.asarray(marked > 0)


@dataclass(frozen=True, eq=False)
class Case:
    """One visit of one patient in memory: image `[C, *spatial]` float32 and optional reference."""

    case: str
    image: Volume
    reference: Reference | None = None
    group: str = ""
