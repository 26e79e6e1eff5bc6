"""Keep the masks and candidates that `evaluate` finds in nnU-Net's probabilities."""

import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from lesionseg.core import Finding, Geometry, Prediction, Selection
from lesionseg.errors import CASE_ERRORS, ConflictError
from lesionseg.evaluation.label_names import LabelNumbers
from lesionseg.inference.open_prediction import open_prediction
from lesionseg.io.case_file import CaseRow
from lesionseg.io.prediction_folder import PredictionFolder
from lesionseg.io.predictions import (
    PredictionFiles,
    find_predictions,
    write_prediction,
)

log = logging.getLogger(__name__)

FOLDER = "predictions"
_KEY = "evaluate"  # states in a candidate file that this module wrote it


class KeptPredictions:
    """The predictions from nnU-Net's probabilities, in a temporary folder until `finish`.

    Use it as a context manager. Without `finish`, no new file remains in `output`.
    """

    def __init__(self, output: Path, predictions: Mapping[str, PredictionFiles]) -> None:
        self.folder = output / FOLDER
        self._temporary = output / f".{uuid4().hex[:8]}-{FOLDER}"
        candidates = [files.candidates for files in predictions.values()]
        self._files = {
            case: files
            for case, files in predictions.items()
            if files.probabilities is not None and files.candidates is None
        }
        # True if all predictions come from probabilities
        self.has_all = len(self._files) == len(predictions)
        # the evaluated files, which may be in `folder`
        self._given = {file.resolve() for file in candidates if file is not None}
        self._geometry: dict[str, Geometry] = {}

    def __enter__(self) -> "KeptPredictions":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)

    def keep(self, prediction: Prediction) -> None:
        """Write a case's candidates to the temporary folder.

        Do nothing if the prediction does not come from probabilities, or has no mask next to them.
        """
        files = self._files.get(prediction.case)
        if files is None or files.mask is None:
            return
        self._geometry[prediction.case] = prediction.geometry
        write_prediction(
            self._temporary,
            prediction,
            like=files.mask,
            row=CaseRow(prediction.case, key=_KEY),
        )

    def keep_others(
        self, labelled: Collection[str], numbers: LabelNumbers, *, merge_labels: bool
    ) -> list[Finding]:
        """Find the candidates of the cases without a reference, and keep them as well.

        `labelled` are the ids of the cases with a reference, even if they are not evaluated. As in
        evaluated cases, the values of labels become those of the reference (`numbers`), and
        `merge_labels` merges them into one. Warn of cases that cannot be used, and return the
        finding of each.
        """
        faults: list[Finding] = []
        for case in sorted(self._files.keys() - labelled):
            try:
                prediction = numbers.apply(open_prediction(self._files[case]))
                if merge_labels:
                    prediction = prediction.merge_labels()
            except CASE_ERRORS as error:
                faults.append(Finding.of(error, case))
                log.warning("Not read, %s: %s", case, error)
            else:
                self.keep(prediction)
        return faults

    def finish(self, selection: Selection) -> Path | None:
        """Accept the candidates of all kept cases and move the files to `output/predictions`.

        Without an operating point, the candidates stay as they are. The files of earlier
        evaluations in that folder are removed, except for those that were evaluated. Return the
        folder, or None if nothing was kept.
        """
        if not self._geometry:
            self._remove_earlier()
            return None
        for case, files in find_predictions(self._temporary).items():
            if selection.point is not None:
                geometry = self._geometry[case]
                prediction = replace(files.read(geometry=geometry), case=case)
                self.keep(prediction.accept(selection.point, selection.calibration))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_earlier()
        for file in sorted(self._temporary.iterdir()):
            file.replace(self.folder / file.name)
        return self.folder

    def _remove_earlier(self) -> None:
        """Remove the files of earlier evaluations, which may have had other cases and labels.

        The evaluated files, and those of `predict` and of other programs, remain.
        """
        results = PredictionFolder(self.folder)
        for case in results.cases():
            row = results.row(case)
            is_given = results.candidate_file(case).resolve() in self._given
            if row is not None and row.key == _KEY and not is_given:
                results.remove(case)

    def check_replaceable(self) -> None:
        """Raise `ConflictError` if `predict` may have written results of a kept case to the folder.

        Only `predict` writes the digest of a scan into the file of candidates. A damaged file may
        be one of `predict`, so it is not replaced either.
        """
        results = PredictionFolder(self.folder)
        for case in self._geometry:
            row = results.row(case)
            earlier = results.candidate_file(case)
            if earlier.is_file() and (row is None or row.digest):
                raise ConflictError(
                    f"{self.folder} contains results that predict wrote, or that are damaged, such "
                    f"as {earlier.name}. Name another output."
                )
