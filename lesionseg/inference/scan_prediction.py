"""`ScanPrediction.save`: the prediction of a scan in Python, saved as `predict` writes it."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from lesionseg.core import Prediction
from lesionseg.io.results.case import write_prediction


@dataclass(frozen=True, eq=False, repr=False)
class ScanPrediction(Prediction):
    """A prediction that knows the file of its scan.

    Attributes:
        image: The first file of the scan. None for an array.
    """

    image: Path | None = None

    def save(self, path: str | PathLike[str]) -> None:
        """Write mask, instances and candidates on the grid of the scan, as `predict` does.

        Masks have the axis order and the position of the scan's file.

        Args:
            path: A folder or a file. In a folder, `<case>_mask`, `<case>_instances` (both in the
                format of the scan) and `<case>_candidates.json` are written. A file, such as
                `found.nii.gz`, is the file of the mask, and `found_instances.nrrd` and
                `found_candidates.json` are written next to it.

        Raises:
            OutputError: If a file cannot be written, or its format cannot store the mask.
        """
        write_prediction(Path(path), self, like=self.image)
