"""The prediction of a scan in Python, which can be saved as `predict` writes it."""

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from lesionseg.core import Prediction
from lesionseg.errors import OutputError
from lesionseg.io.case_file import MaskNames
from lesionseg.io.predictions import MASK_ENDINGS, write_prediction
from lesionseg.io.volumes import case_suffix, is_image_file, result_suffix, strip_suffix


@dataclass(frozen=True, eq=False)
class ScanPrediction(Prediction):
    """A prediction that knows the file of its scan.

    Attributes:
        image: the first file of the scan. None for an array.
    """

    image: Path | None = None

    def save(self, path: str | PathLike[str]) -> None:
        """Write mask, instances and candidates on the grid of the scan, as `predict` does.

        Masks have the axis order of the scan's file and the position of its header.

        Args:
            path: a folder, for `<case>_mask`, `<case>_instances` and `<case>_candidates.json` in
                the format of the scan. Or the file of the mask, such as `found.nii.gz`, for which
                `found_instances.nrrd` and `found_candidates.json` are written next to it.

        Raises:
            OutputError: if a file cannot be written, or its format cannot store the mask.
        """
        folder = Path(path)
        prediction: Prediction = self
        names: MaskNames = "lesionseg"
        suffix = ".nii.gz"
        if self.image is not None:
            suffix = result_suffix(self.image, self.geometry.dims)
        if is_image_file(folder):
            suffix = case_suffix(folder).lower()
            if self.geometry.dims == 2 and suffix != ".png":
                raise OutputError(f"{path}: the mask of a picture is PNG. Name a file in .png.")
            stem = strip_suffix(folder)
            names = next(key for key, ending in MASK_ENDINGS.items() if stem.endswith(ending))
            prediction = replace(self, case=stem.removesuffix(MASK_ENDINGS[names]))
            folder = folder.parent
        write_prediction(folder, prediction, suffix=suffix, like=self.image, names=names)
