"""The operating point of `evaluate`: given as a score, or chosen on predictions with scores.

Choosing on the evaluated cases themselves flatters. `chosen_on=` names a folder of development
predictions instead, such as the cross-validation of an nnU-Net model folder.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.config import EvaluateConfig
from lesionseg.core import Calibration, CaseFiles, Dataset, OperatingPoint
from lesionseg.core.dataset import assign_groups
from lesionseg.errors import ConfigError, ContentError, DatasetError, count, format_score
from lesionseg.evaluation import CaseResult, MatchedCase, Preset, choose
from lesionseg.evaluation.calibration import fit_calibration
from lesionseg.inference.decision import accept, choose_operating_point
from lesionseg.io.predictions import PredictionFiles, find_predictions
from lesionseg.pipeline.references import all_references
from lesionseg.pipeline.score import OUT_OF_FOLD, match_cases
from lesionseg.pipeline.select import check_point

log = logging.getLogger(__name__)

_DEFAULT = "fp_per_case:1"
_VALIDATION = "validation"


@dataclass(frozen=True)
class Decision:
    """What accepts candidates, and how their scores become chances.

    `point` is None if each prediction's own flags decide.
    """

    point: OperatingPoint | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True)
class PointWish:
    """An operating point as typed: `score`, `fp_per_case` or `sensitivity`, and its number.

    `name`: all of it, such as `fp_per_case:1`.
    """

    name: str
    kind: str
    value: float

    @classmethod
    def parse(cls, text: str | float) -> "PointWish":
        """Read `fp_per_case:1`, `sensitivity:0.9`, `score:0.37` or a bare score."""
        name = str(text) if ":" in str(text) else f"score:{text}"
        if name.startswith("score:"):
            return cls(name, "score", choose_operating_point((), name).score)
        check_point(name)
        kind, _, value = name.partition(":")
        return cls(name, kind, float(value))

    def as_given(self) -> OperatingPoint | None:
        """Return the point of a score given by hand; None if the score has yet to be chosen."""
        return OperatingPoint(self.name, self.value) if self.kind == "score" else None

    def choose(
        self, results: Sequence[CaseResult], confidence: float | None, chosen_on: str | None = None
    ) -> OperatingPoint:
        """Choose the score on evaluated cases; raises `ConfigError` if they do not allow it."""
        try:
            point = choose(
                results,
                fp_per_case=self.value if self.kind == "fp_per_case" else None,
                sensitivity=self.value if self.kind == "sensitivity" else None,
                confidence=confidence,
            )
        except ContentError as error:
            raise ConfigError(f"operating_point={self.name}: {error}") from error
        return point if chosen_on is None else replace(point, chosen_on=chosen_on)


def wished_point(cfg: EvaluateConfig) -> PointWish | None:
    """Return the operating point that the settings ask for; None: that of the predictions.

    Raises `ConfigError` for a point that cannot be, and for settings that do not belong together.
    """
    given = cfg.operating_point
    if given is None and cfg.chosen_on is None:
        wish = None
    else:
        wish = PointWish.parse(_DEFAULT if given is None else given)
    is_chosen = wish is not None and wish.kind != "score"
    if cfg.chosen_on is not None and not is_chosen:
        raise ConfigError(
            f"chosen_on= and operating_point={given}: a given score is not chosen on anything. "
            "Write operating_point=fp_per_case:1, or leave chosen_on= out."
        )
    if cfg.chosen_on_reference is not None and cfg.chosen_on is None:
        raise ConfigError("chosen_on_reference= needs chosen_on=, a folder of predictions.")
    if cfg.rate_confidence is not None and not is_chosen:
        raise ConfigError("rate_confidence= needs operating_point=fp_per_case:1, or another rate.")
    return wish


def decide_on_development(
    cfg: EvaluateConfig, wish: PointWish, preset: Preset, evaluated: Mapping[str, str]
) -> Decision:
    """Choose operating point and calibration on the predictions in `cfg.chosen_on`.

    `evaluated`: the role of each evaluated case. If one of them is among the development cases, the
    point is chosen on that role, and the scores say that they flatter. Raises `ConfigError` for a
    rate out of reach and `DatasetError` for a folder that fits no reference.
    """
    folder = Path(str(cfg.chosen_on))
    predictions, is_cross_validated = development_predictions(folder)
    reference = Path(cfg.chosen_on_reference or cfg.reference)
    dataset, labelled = all_references(reference)
    cases = [c for c in labelled if c.case in predictions]
    if not cases:
        raise DatasetError(
            f"chosen_on={folder}: no prediction has the name of a reference in {reference}. Give "
            "chosen_on_reference=, a folder with the masks of these cases."
        )
    log.info("Choosing the operating point on %s.", count(len(cases), "development case"))
    role = OUT_OF_FOLD if is_cross_validated else _VALIDATION
    if shared := [c.case for c in cases if c.case in evaluated]:
        log.warning(
            "The operating point is chosen on cases that are evaluated (%s): the scores flatter.",
            ", ".join(shared[:5]),
        )
        role = evaluated[shared[0]]
    results = development_results(cases, predictions, dataset, preset, cfg)
    point = wish.choose(results, cfg.rate_confidence, chosen_on=role)
    calibration = None
    with suppress(ContentError):  # too few candidates
        calibration = fit_calibration(results, fitted_on=role)
    log.info(
        "Threshold %s (%s): on these %d cases %.2f of the lesions and %.2f false positives per "
        "case; %.2f expected on new cases.",
        format_score(point.score),
        wish.name,
        len(cases),
        point.lesion_recall or 0.0,
        point.false_positives_per_case or 0.0,
        point.expected_false_positives_per_case or 0.0,
    )
    return Decision(point, calibration)


def development_predictions(folder: Path) -> tuple[dict[str, PredictionFiles], bool]:
    """Find the development predictions in a folder, and tell if each comes from another fold.

    A model folder of nnU-Net, or a run of ours, has them in `fold_0/validation` and so on. The fold
    `all` validates on its own training cases and is left out. Any other folder has them itself.
    """
    folds = sorted(folder.glob("fold_[0-9]*/validation"))
    if not folds:
        if (folder / "fold_all").is_dir():
            raise DatasetError(
                f"chosen_on={folder}: fold_all was trained on the cases that it validates on. "
                "Train folds 0 to 4, or give a folder of predictions of other cases."
            )
        return find_predictions(folder), False
    found: dict[str, PredictionFiles] = {}
    for fold in folds:
        for case, files in find_predictions(fold).items():
            if case in found:
                raise DatasetError(f"{fold}: the case {case!r} was validated in another fold, too.")
            found[case] = files
    return found, True


def development_results(
    cases: Sequence[CaseFiles],
    predictions: Mapping[str, PredictionFiles],
    dataset: Dataset | None,
    preset: Preset,
    cfg: EvaluateConfig,
) -> list[CaseResult]:
    """Match and score development cases, without the surfaces that choose nothing."""
    grouped = assign_groups(cases, cfg.groups, setting="groups")
    matches = match_cases(
        [replace(case, role=None) for case in grouped],
        predictions,
        preset,
        dataset=dataset,
        role=_VALIDATION,
        resample=cfg.resample,
    )
    return [match.result(surface=False) for match in matches]


def decided(matches: Iterable[MatchedCase], decision: Decision) -> list[MatchedCase]:
    """Return the matches with candidates accepted and calibrated by a decision."""
    point = decision.point
    if point is None:
        return list(matches)
    return [
        match.decide(accept(match.prediction, point, decision.calibration))
        if match.prediction.scored
        else match
        for match in matches
    ]
