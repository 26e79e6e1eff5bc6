"""The data types that all packages share: frozen dataclasses over numpy arrays."""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.core.dataset import UNKNOWN_ROLE as UNKNOWN_ROLE
    from lesionseg.core.dataset import AnnotatedBoxes as AnnotatedBoxes
    from lesionseg.core.dataset import Case as Case
    from lesionseg.core.dataset import CaseFiles as CaseFiles
    from lesionseg.core.dataset import Dataset as Dataset
    from lesionseg.core.dataset import Reference as Reference
    from lesionseg.core.dataset import Role as Role
    from lesionseg.core.finding import Finding as Finding
    from lesionseg.core.geometry import Geometry as Geometry
    from lesionseg.core.geometry import Volume as Volume
    from lesionseg.core.geometry import describe_sides as describe_sides
    from lesionseg.core.geometry import joint_unit as joint_unit
    from lesionseg.core.labels import UNION as UNION
    from lesionseg.core.labels import Labels as Labels
    from lesionseg.core.labels import numbers_first as numbers_first
    from lesionseg.core.lesions import Lesions as Lesions
    from lesionseg.core.lesions import Zones as Zones
    from lesionseg.core.lesions import equivalent_diameter_mm as equivalent_diameter_mm
    from lesionseg.core.operating_point import OperatingPoint as OperatingPoint
    from lesionseg.core.prediction import Calibration as Calibration
    from lesionseg.core.prediction import Candidate as Candidate
    from lesionseg.core.prediction import InputCheckResult as InputCheckResult
    from lesionseg.core.prediction import Prediction as Prediction
    from lesionseg.core.selection import NO_SELECTION as NO_SELECTION
    from lesionseg.core.selection import Selection as Selection

_HOMES = {
    "Calibration": "prediction",
    "Candidate": "prediction",
    "Case": "dataset",
    "CaseFiles": "dataset",
    "Dataset": "dataset",
    "Finding": "finding",
    "Geometry": "geometry",
    "InputCheckResult": "prediction",
    "Labels": "labels",
    "Lesions": "lesions",
    "NO_SELECTION": "selection",
    "OperatingPoint": "operating_point",
    "Prediction": "prediction",
    "Reference": "dataset",
    "Role": "dataset",
    "Selection": "selection",
    "AnnotatedBoxes": "dataset",
    "UNION": "labels",
    "UNKNOWN_ROLE": "dataset",
    "Volume": "geometry",
    "Zones": "lesions",
    "describe_sides": "geometry",
    "equivalent_diameter_mm": "lesions",
    "joint_unit": "geometry",
    "numbers_first": "labels",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
