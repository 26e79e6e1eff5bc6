"""Loop over cases: reference and prediction read and matched; message for a case not scored.

The results are the three tables and the scores.

Training, `evaluate`, cross-validation and `tune` call `score_cases`. Predictions are files, or a
network makes them at this moment. Each case is matched once, for any operating point.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lesionseg.core import (
    Calibration,
    CaseFiles,
    Dataset,
    Finding,
    Labels,
    OperatingPoint,
    Prediction,
)
from lesionseg.errors import CASE_ERRORS, DatasetError
from lesionseg.evaluation import (
    MatchedCase,
    Preset,
    Scores,
    SummarySettings,
    Tables,
    match_case,
    summarise,
)
from lesionseg.evaluation.label_names import LabelNumbers, add_predicted_names, warn_of_labels
from lesionseg.evaluation.scores import write_scores
from lesionseg.inference.open_prediction import read_on_grid
from lesionseg.io.references import open_reference
from lesionseg.io.results.case import PredictionFiles
from lesionseg.io.zone_files import ZoneFolder
from lesionseg.pipeline.log import Advance, bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatchOptions:
    """Settings for matching predictions with references.

    Attributes:
        preset: The rule by which candidates and lesions match.
        dataset: The dataset of the cases; None if there are only masks.
        role: The role of cases without a role.
        zones: The masks of anatomical zones; None without zones.
        resample: True resamples a prediction on another grid, see `read_on_grid`.
        by_image: True treats grids of equal shape and spacing as the same, see `read_on_grid`.
        keep: Called with each prediction, under the case's id; None for no call.
    """

    preset: Preset
    dataset: Dataset | None = None
    role: str = ""
    zones: ZoneFolder | None = None
    resample: bool = False
    by_image: bool = False
    keep: Callable[[Prediction], None] | None = None

    @property
    def labels(self) -> Labels | None:
        """The labels of the dataset; None without a dataset."""
        return self.dataset.labels if self.dataset else None

    @property
    def lesion_names(self) -> Mapping[int, str]:
        """The names of the label values; empty without a dataset."""
        return self.dataset.labels.lesion_names if self.dataset else {}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The tables and scores of cases at one operating point.

    Attributes:
        tables: The three tables.
        scores: The scores.
        settings: The settings of the scores, with the names of all labels.
    """

    tables: Tables
    scores: Scores
    settings: SummarySettings

    def write(self, folder: Path) -> None:
        """Write the three tables and scores.json into a folder."""
        write_scores(folder, self.tables, self.scores, self.settings.labels)


@dataclass(frozen=True, eq=False)
class ScoredCases:
    """Cases that are matched with their predictions, for any operating point.

    Attributes:
        preset: The rule of matching.
        matches: The matched cases.
        findings: The errors of the cases that cannot be scored.
    """

    preset: Preset
    matches: Sequence[MatchedCase]
    findings: Sequence[Finding] = ()

    def tables(
        self,
        point: OperatingPoint | None = None,
        calibration: Calibration | None = None,
        *,
        surface: bool = True,
    ) -> Tables:
        """Return the three tables (cases, lesions, candidates) at an operating point.

        Args:
            point: Accepts candidates; None: each prediction keeps its accepted candidates.
            calibration: Calibrates the scores of the candidates; None for no calibration.
            surface: False leaves out the distances between surfaces, which are slow to compute.
        """
        accepted = (match.accept(point, calibration) for match in self.matches)
        return Tables.of(match.rows(surface=surface) for match in accepted)

    def shared_with(self, other: "ScoredCases") -> "ScoredCases":
        """Return only the cases that `other` contains, too, so that two models can be compared."""
        cases = {match.case for match in other.matches}
        return replace(self, matches=[match for match in self.matches if match.case in cases])

    def evaluate(
        self, settings: SummarySettings, calibration: Calibration | None = None
    ) -> Evaluation:
        """Return the tables and scores at the operating point of the settings.

        Without an operating point in the settings, each prediction keeps its accepted candidates.
        Labels that only candidates have get a name in the settings.
        """
        tables = self.tables(settings.operating_point, calibration)
        settings = replace(settings, labels=add_predicted_names(settings.labels, self.matches))
        scores = summarise(tables, self.preset, settings)
        failed = {finding.case: finding.message for finding in self.findings}
        return Evaluation(tables, replace(scores, failed_cases=failed), settings)


def score_cases(
    cases: Sequence[CaseFiles],
    predictions: Mapping[str, PredictionFiles]
    | Callable[[Callable[[CaseFiles, Prediction], MatchedCase]], Generator[MatchedCase]],
    options: MatchOptions,
    *,
    findings: Iterable[Finding] = (),
    progress: Advance | None = None,
    what: str = "Scoring",
) -> ScoredCases:
    """Match each case with its prediction, and warn of each case that cannot be scored.

    A case without prediction files is matched with no candidate, so that all its lesions are
    missed.

    Args:
        cases: The cases with references.
        predictions: The prediction files by case, which are read one by one. Or a function that
            predicts the cases now, such as `predict_volumes`: it gets a function that matches a
            prediction, and yields the matched cases. Errors of these cases are raised.
        options: Settings for matching.
        findings: The errors of further cases, which are left out.
        progress: Called with case, number done and total, instead of a bar.
        what: The name of the step in progress lines.

    Raises:
        DatasetError: If there are cases, but none can be scored.
    """
    match = partial(_match_one, options=options, numbers=LabelNumbers(options.labels))
    matches: list[MatchedCase] = []
    findings = [*findings]

    def match_files(files_of: Mapping[str, PredictionFiles]) -> Generator[MatchedCase | None]:
        """Yield each case matched with its files; None for a case whose files cannot be used."""
        for files in cases:
            try:
                matched = match(files, files_of.get(files.case))
            except CASE_ERRORS as error:
                findings.append(Finding.of(error, files.case))
                matched = None
            yield matched

    results = match_files(predictions) if isinstance(predictions, Mapping) else predictions(match)
    with bar(what, progress) as advance, closing(results):
        for done, (files, matched) in enumerate(zip(cases, results, strict=True), start=1):
            if matched is not None:
                matches.append(matched)
            advance(files.case, done, len(cases))
    if cases and not matches:
        raise nothing_scored(findings)
    for finding in findings:
        log.warning("Not scored, %s: %s", finding.case, finding.message)
    warn_of_labels(matches, options.lesion_names)
    return ScoredCases(options.preset, matches, findings)


def nothing_scored(findings: Iterable[Finding]) -> DatasetError:
    """Return the error that no case can be scored. Its message lists each reason once."""
    messages = dict.fromkeys(finding.message for finding in findings)
    return DatasetError("\n  ".join(["No case can be scored:", *messages]))


def _match_one(
    files: CaseFiles,
    predicted: Prediction | PredictionFiles | None,
    options: MatchOptions,
    numbers: LabelNumbers,
) -> MatchedCase:
    """Read the reference of a case, and match the case with its prediction.

    Args:
        files: The files of the case.
        predicted: The prediction, or its files, which are read; None if there is no prediction.
        options: Settings for matching.
        numbers: Changes the label values of the prediction to those of the reference.
    """
    dataset = options.dataset
    labels = options.labels
    reference = open_reference(files, dataset)
    if isinstance(predicted, PredictionFiles):
        predicted = read_on_grid(
            predicted,
            reference.geometry,
            resample=options.resample,
            binary=labels is not None and bool(labels.regions or labels.merged),
            by_image=options.by_image or (dataset is not None and dataset.grid_of_image),
        )
    if predicted is not None:
        predicted = numbers.apply(predicted)
        if options.keep is not None:
            options.keep(replace(predicted, case=files.case))
    zones = None
    if options.zones is not None:
        # a mask that is a picture has the pixel size of the reference
        zones = options.zones.read(files.case, reference.geometry.spacing_mm[0])
    return match_case(
        reference,
        predicted,
        options.preset,
        case=files.case,
        group=files.group,
        role=files.role or options.role,
        labels=labels,
        zones=zones,
    )
