"""Read the prediction of a case that lesionseg, nnU-Net or another program wrote."""

from lesionseg.core import Geometry, Prediction
from lesionseg.inference.nnunet.outputs import read_probabilities, with_nnunet_names
from lesionseg.io.results.case import PredictionFiles


def open_prediction(
    files: PredictionFiles,
    *,
    geometry: Geometry | None = None,
    binary: bool = False,
    by_image: bool = False,
) -> Prediction:
    """Read a predicted case, from candidate files, nnU-Net's probabilities or masks.

    Candidate files have priority, because they contain the candidates already. Labels of a mask
    have names if nnU-Net's `dataset.json` is next to it.

    Args:
        files: the files of the case.
        geometry: grid of the scan. None is the grid of the prediction.
        binary: True if all values of a mask without probabilities are one label.
        by_image: True if grids of equal shape and spacing are the same.

    Raises:
        LesionsegError: see `PredictionFiles.read` and `read_probabilities`.
    """
    if files.candidates is None and files.probabilities is not None:
        return read_probabilities(files, geometry=geometry, by_image=by_image)
    found = files.read(geometry=geometry, binary=binary, by_image=by_image)
    if files.mask is None or files.candidates is not None or binary:
        return found
    return with_nnunet_names(found, files.read_nnunet_labels())
