"""selection.json of a bundle: keys, version; operating points, calibrations, number of members.

These are the choices made after training, on predictions for development cases.
"""

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

# keys of `Selection.reasons`: the parts of a selection that have a reason
OPERATING_POINT = "operating point"
CALIBRATION = "calibration"
VOXEL_CALIBRATION = "voxel calibration"
SELECTED = (OPERATING_POINT, CALIBRATION, VOXEL_CALIBRATION)


@dataclass(frozen=True)
class Selection:
    """The choices made after training. Without operating points, score 0.5 accepts candidates.

    The first of `operating_points` accepts candidates by default. `calibration` converts a
    candidate's score to its probability of being a lesion. `voxel_calibration` is applied to the
    voxels' probabilities before candidates are found. `n_members` is the number of networks whose
    probabilities are averaged. `is_mirrored` states whether operating points and calibrations were
    chosen on means over mirrored views (`inference.flips`); None if that is not known. `reasons`
    has sentences about parts of the selection; its keys are in `SELECTED`.
    """

    operating_points: tuple[OperatingPoint, ...] = ()
    calibration: Calibration | None = None
    voxel_calibration: Calibration | None = None
    n_members: Annotated[int, Field(ge=1, le=1000)] = 1
    is_mirrored: bool | None = None
    reasons: Mapping[str, str] = field(default_factory=dict, hash=False)
    schema_version: Literal[1] = 1

    @property
    def point(self) -> OperatingPoint | None:
        """The operating point that accepts candidates by default; None if there is none."""
        return self.operating_points[0] if self.operating_points else None

    def to_json(self) -> str:
        """Return the content of selection.json as text."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "selection.json") -> "Selection":
        """Read a selection from the text of selection.json, or of plan.json of earlier versions.

        Version 1 of plan.json contained both plan and selection. Therefore, unknown keys are
        skipped, and so are the reasons that do not belong to `SELECTED`.

        Args:
            text: The text of the file.
            where: The name of the file, for error messages.

        Raises:
            BundleError: If the text is not JSON, or if a key has a wrong type.
        """
        selection = read_record(cls, text, where, BundleError)
        reasons = {name: why for name, why in selection.reasons.items() if name in SELECTED}
        return replace(selection, reasons=reasons)


NO_SELECTION = Selection()
