"""Data for SEG and SR besides the prediction: bundle, version, sizes at an earlier visit."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lesionseg.version import __version__


@dataclass(frozen=True)
class ResultOrigin:
    """The origin of a prediction.

    Attributes:
        bundle: The digest of the model.
        key: A text that changes with the scan and the settings.
        version: The version of lesionseg.
    """

    bundle: str
    key: str
    version: str = __version__


@dataclass(frozen=True)
class Comparison:
    """A comparison with an earlier visit, for the report.

    Attributes:
        since: The state of each candidate's lesion since the earlier visit, such as "new", and its
            volume in ml at that visit (None if it is unknown), by the candidate's id.
        remark: A sentence that is appended to the comment of the report.
    """

    since: Mapping[int, tuple[str, float | None]] = field(default_factory=dict)
    remark: str = ""
