"""Folder `predictions` of `evaluate`: masks and candidates found in nnU-Net's probabilities."""

import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from lesionseg.core import Finding, Geometry, Labels, Prediction, Selection
from lesionseg.errors import CASE_ERRORS
from lesionseg.evaluation.label_names import LabelNumbers
from lesionseg.inference.open_prediction import open_prediction
from lesionseg.io.results.case import PredictionFiles, write_prediction
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.index import find_predictions
from lesionseg.io.results.row import CaseRow

log = logging.getLogger(__name__)

FOLDER = "predictions"
_KEY = "evaluate"  # states in a candidate file that this module wrote it


class KeptPredictions:
    """The predictions from nnU-Net's probabilities, in a temporary folder until `finish`.

    Use it as a context manager. Without `finish`, no new file remains in `output`.
    """

    def __init__(self, output: Path, predictions: Mapping[str, PredictionFiles]) -> None:
        """Select the predictions that come from nnU-Net's probabilities.

        Args:
            output: The output folder of `evaluate`.
            predictions: The prediction files of all cases by case id.
        """
        self.results = PredictionFolder(output / FOLDER)
        self._temporary = output / f".{uuid4().hex[:8]}-{FOLDER}"
        # files with candidates are results of lesionseg, which need no new ones
        # by case id: the files of the predictions to find candidates in
        self._from_probabilities = {
            case: files
            for case, files in predictions.items()
            if files.probabilities is not None and files.candidates is None
        }
        # True if all predictions come from probabilities
        self.has_all = len(self._from_probabilities) == len(predictions)
        # evaluated candidates, which may be in the folder of the results and are not removed there
        self._evaluated_files = {
            f.candidates.resolve() for f in predictions.values() if f.candidates
        }
        # the image geometry of each case in the temporary folder, by case id
        self._geometry: dict[str, Geometry] = {}

    def __enter__(self) -> "KeptPredictions":
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the temporary folder, also after an error."""
        shutil.rmtree(self._temporary, ignore_errors=True)

    def keep(self, prediction: Prediction) -> None:
        """Write a case's mask and candidates to the temporary folder.

        `evaluate` calls this for each prediction that it reads. Nothing is written if the
        prediction does not come from probabilities, or if nnU-Net wrote no mask next to the
        probabilities.
        """
        files = self._from_probabilities.get(prediction.case)
        if files is not None and files.mask is not None:
            self._geometry[prediction.case] = prediction.geometry
            self._write(self._temporary, prediction)

    def _write(self, folder: Path, prediction: Prediction) -> None:
        """Write the files of a case. The mask has the same file format as nnU-Net's mask."""
        case = prediction.case
        write_prediction(
            folder, prediction, like=self._from_probabilities[case].mask, row=_kept_row(case)
        )

    def keep_others(self, labelled: Collection[str], labels: Labels | None) -> list[Finding]:
        """Find the candidates of the cases without a reference, and keep them, too.

        `open_prediction` finds the candidates in nnU-Net's probabilities. Cases without such files
        are left out. As in evaluated cases, the label values become those of the reference. Warn of
        cases that cannot be read, and return a finding for each of these cases.

        Args:
            labelled: The ids of the cases with a reference, even if they are not evaluated.
            labels: The labels of the reference; None if they are unknown.
        """
        numbers = LabelNumbers(labels)
        findings: list[Finding] = []
        for case in sorted(self._from_probabilities.keys() - labelled):
            try:
                prediction = numbers.apply(open_prediction(self._from_probabilities[case]))
            except CASE_ERRORS as error:
                findings.append(Finding.of(error, case))
                log.warning("Not read, %s: %s", case, error)
            else:
                self.keep(prediction)
        return findings

    def check_replaceable(self) -> None:
        """Raise `ConflictError` if a kept case would replace files that `evaluate` did not write.

        Such files are results of `predict` or of other programs, and damaged files.
        """
        for case in self._geometry:
            self.results.claim(case, _kept_row(case), overwrite=None)  # None: no setting allows it

    def finish(self, selection: Selection) -> Path | None:
        """Accept candidates at the operating point, and write all cases to `output/predictions`.

        Without an operating point, the candidates are written unchanged. Results of earlier
        evaluations in that folder are removed, unless they are among the evaluated files. Return
        the folder, or None if no case was kept.
        """
        new = find_predictions(self._temporary) if self._geometry else {}
        for case, files in new.items():
            prediction = replace(files.read(geometry=self._geometry[case]), case=case)
            if selection.point is not None:
                prediction = prediction.accept(selection.point, selection.calibration)
            with self.results.write_case(case) as new_folder:
                self._write(new_folder, prediction)
        for case in self.results.cases():
            row = self.results.row(case)
            is_evaluated = self.results.candidate_file(case).resolve() in self._evaluated_files
            # the key tells that `evaluate` wrote the result
            is_earlier = row is not None and row.key == _KEY and case not in new
            if is_earlier and not is_evaluated:
                self.results.remove(case)
        return self.results.path if new else None


def _kept_row(case: str) -> CaseRow:
    """Return the row of a kept case. Its key says that `evaluate` wrote the candidate file."""
    return CaseRow(case, key=_KEY)
