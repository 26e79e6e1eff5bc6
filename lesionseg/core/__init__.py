"""The data types that all packages share: frozen dataclasses over numpy arrays."""

from lesionseg.core.dataset import UNKNOWN_ROLE as UNKNOWN_ROLE
from lesionseg.core.dataset import Case as Case
from lesionseg.core.dataset import CaseFiles as CaseFiles
from lesionseg.core.dataset import Dataset as Dataset
from lesionseg.core.dataset import Problem as Problem
from lesionseg.core.dataset import Reference as Reference
from lesionseg.core.dataset import Remark as Remark
from lesionseg.core.dataset import Role as Role
from lesionseg.core.dataset import StatedBoxes as StatedBoxes
from lesionseg.core.geometry import Geometry as Geometry
from lesionseg.core.geometry import Volume as Volume
from lesionseg.core.geometry import joint_unit as joint_unit
from lesionseg.core.labels import UNION as UNION
from lesionseg.core.labels import Labels as Labels
from lesionseg.core.lesions import Lesions as Lesions
from lesionseg.core.lesions import Zones as Zones
from lesionseg.core.lesions import equivalent_diameter_mm as equivalent_diameter_mm
from lesionseg.core.operating_point import Aim as Aim
from lesionseg.core.operating_point import OperatingPoint as OperatingPoint
from lesionseg.core.prediction import Calibration as Calibration
from lesionseg.core.prediction import Candidate as Candidate
from lesionseg.core.prediction import InputCheckResult as InputCheckResult
from lesionseg.core.prediction import Prediction as Prediction
from lesionseg.core.selection import NO_SELECTION as NO_SELECTION
from lesionseg.core.selection import Selection as Selection
