"""What is selected after training, on predictions of development cases."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lesionseg.core.operating_point import OperatingPoint
from lesionseg.core.prediction import Calibration
from lesionseg.core.records import read_record
from lesionseg.errors import BundleError

# the parts of a selection that have a reason, by their keys in `reasons`
OPERATING_POINT = "operating point"
CALIBRATION = "calibration"
VOXEL_CALIBRATION = "voxel calibration"
SELECTED = (OPERATING_POINT, CALIBRATION, VOXEL_CALIBRATION)


@dataclass(frozen=True)
class Selection:
    """The choices made after training; an empty one accepts candidates from score 0.5.

    `operating_points`: the first one accepts candidates by default. `calibration` turns a
    candidate's score into its chance of being a lesion. `voxel_calibration` is applied to the
    voxels' probabilities before candidates are found. `n_members`: networks whose probabilities are
    averaged. `reasons`: a sentence for each part, by the names in `SELECTED`.
    """

    operating_points: tuple[OperatingPoint, ...] = ()
    calibration: Calibration | None = None
    voxel_calibration: Calibration | None = None
    n_members: Annotated[int, Field(ge=1, le=1000)] = 1
    reasons: Mapping[str, str] = field(default_factory=dict, hash=False)
    schema_version: Literal[1] = 1

    @property
    def point(self) -> OperatingPoint | None:
        """The operating point that accepts candidates by default; None if there is none."""
        return self.operating_points[0] if self.operating_points else None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "selection.json") -> "Selection":
        """Read a selection; raises `BundleError` naming `where` and the key that is wrong.

        Keys that are not of a selection are skipped: version 1 of `plan.json` had those of plan and
        selection in one file.
        """
        selection = read_record(cls, text, where, BundleError)
        reasons = {name: why for name, why in selection.reasons.items() if name in SELECTED}
        return replace(selection, reasons=reasons)


NO_SELECTION = Selection()
