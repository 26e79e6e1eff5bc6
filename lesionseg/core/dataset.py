"""A dataset: its cases on disk, its channels and its lesion labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lesionseg.core.case import CaseFiles


@dataclass(frozen=True)
class Dataset:
    """What a data folder holds, whatever convention it follows.

    `labels` maps a lesion label's value in the masks to its name, background left out, in
    ascending order of value. `convention` names how the folder was read. `merged_values` are the
    mask values that all count as the one label 1, when the user asked for that; else empty.
    `resample_tilt`: DICOM series of a tilted gantry are resampled upright, not refused.
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
