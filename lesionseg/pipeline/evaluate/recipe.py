"""The recipe of `evaluate`: judge predicted files against reference files, case by case."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lesionseg.core import Dataset, OperatingPoint
from lesionseg.errors import ConfigError
from lesionseg.evaluation import CaseResult, Preset, find_preset
from lesionseg.evaluation.readers.adjudication import adjudicate, read_verdicts
from lesionseg.evaluation.statistics.compare import compare as compare_models
from lesionseg.inference.candidates.accept import choose_operating_point
from lesionseg.io.atomic import read_csv
from lesionseg.io.folder_locks import locks
from lesionseg.io.layouts.conventions import assign_groups
from lesionseg.io.predictions import find_predictions
from lesionseg.io.zone_files import ZoneFolder, find_zones
from lesionseg.pipeline.evaluate.reference_cases import (
    JudgedCases,
    cases_of,
    check_role,
    of_role,
    open_reference,
    stated_role,
)
from lesionseg.pipeline.judging.case_pairs import CasePair, Scoring, judge_pairs, read_columns
from lesionseg.pipeline.run.outcome import Advance, CommandOutcome, bar, scores_lines

COMPARED = "compare"  # where the second model's tables lie in an output folder


@dataclass(frozen=True)
class EvaluateOutcome(CommandOutcome):
    """The scores, as they stand in `output/scores.json`."""

    scores: Mapping[str, Any]
    output: Path

    def summary(self) -> list[str]:
        """The table of the most important numbers."""
        return scores_lines({str(self.scores["evaluated_on"]): self.scores})


@locks("output")
def evaluate(
    reference: str | Path,
    prediction: str | Path,
    output: str | Path,
    *,
    dataset: Dataset | None = None,
    evaluated_on: str | None = None,
    operating_point: OperatingPoint | str | float | None = None,
    preset: str | Preset = "lesionseg",
    groups: str | None = None,
    compare: str | Path | None = None,
    margin: float | None = None,
    adjudication: str | Path | None = None,
    images: str | Path | None = None,
    columns: str | Path | None = None,
    zones: str | Path | None = None,
    subgroups: Sequence[str] | None = None,
    resample: bool = False,
    replicates: int = 1000,
    seed: int = 0,
    progress: Advance | None = None,
) -> EvaluateOutcome:
    """Judge a folder of predictions; writes scores.json and three tables.

    A case without prediction counts as missed lesions; a prediction without reference is named in a
    warning. Raises `ConfigError`, `DatasetError`, `ReadError`, `GeometryError` or `ContentError`,
    and then writes nothing.

    Args:
        reference: a folder of masks named by case, or a dataset folder.
        prediction: our files, another program's masks, or candidate files alone.
        output: the folder for the tables.
        dataset: already read; its labelled cases are judged and `reference` is not looked at.
        evaluated_on: the role of the cases; of a dataset that states roles its cases alone are
            judged. None: cases of a role of which nothing was predicted are left out, and the
            role is the one that the dataset states of all the others, else `unknown`.
        operating_point: `score:0.37`, say; None: candidates are accepted as their files say.
        preset: the match rule and what is measured beside it, or its name.
        groups: regular expression on the case id that names the patient.
        compare: another folder of predictions, a second model or reader, judged on the same cases
            at its own operating point, and compared; its tables go into `output/compare`.
        margin: by how much the sensitivity at one false positive per case (of masks: the F1) may
            be lower than that of `compare`, to be called not inferior.
        adjudication: adjudicate.csv, filled in by a person.
        images: a folder of images named by case, or `dataset` for the reference's own, to measure
            the lesions' contrast in.
        columns: a CSV file with a column `case`, beside the columns of the dataset's manifest.
        zones: a folder of anatomy masks named by case, on any grid, and a table of names; lesions,
            candidates, sensitivity and false positives are given by zone (`io.zone_files`).
        subgroups: columns to divide by; None takes all that divide the cases, empty none.
        resample: predictions on another grid are brought onto the reference's, else an error.
        replicates: of the bootstrap behind every interval.
        seed: of the bootstrap.
        progress: called with case, number done and total, in place of a bar.
    """
    check_role(evaluated_on)
    point = _operating_point(operating_point)
    reference, prediction, output = Path(reference), Path(prediction), Path(output)
    dataset = dataset or open_reference(reference)
    labelled = cases_of(reference, dataset)
    predicted = of_role(labelled, find_predictions(prediction), evaluated_on)
    role = evaluated_on or stated_role(predicted)
    ids = {c.case for c in labelled}
    cases = assign_groups(predicted, groups, setting="groups")
    judged = JudgedCases(cases, dataset, ids, role, resample)
    pairs = judged.pairs(prediction, images)
    if zones is not None:
        pairs = _in_zones(pairs, find_zones(Path(zones)))
    others = None if compare is None else judged.pairs(Path(compare))
    verdicts = None
    if adjudication is not None:
        verdicts = read_verdicts(read_csv(Path(adjudication)), str(adjudication))
    scoring = Scoring(
        preset=find_preset(preset) if isinstance(preset, str) else preset,
        evaluated_on=role,
        operating_point=point,
        labels=dataset.lesion_labels if dataset else {},
        replicates=replicates,
        seed=seed,
        provenance=_provenance(dataset),
        columns=read_columns(cases, Path(columns) if columns else None),
        subgroups=subgroups,
    )
    with bar("Judging") if progress is None else nullcontext(progress) as advance:
        results = judge_pairs(pairs, scoring.preset, operating_point=point, progress=advance)
    scores = scoring.sum_up(results)
    if others is not None:
        second = judge_pairs(others, scoring.preset)
        scores["comparison"] = compare_models(
            results,
            second,
            fp_per_case=scoring.preset.fp_per_case,
            margin=margin,
            replicates=replicates,
            seed=seed,
        )
        _write_alone(second, scoring, output / COMPARED)
    if verdicts is not None:
        scores["adjudication"] = adjudicate(results, verdicts)
    scoring.write(output, results, scores)
    return EvaluateOutcome(scores, output)


def _write_alone(results: Sequence[CaseResult], scoring: Scoring, folder: Path) -> None:
    """Write the tables of another model, at its own operating point."""
    n, seed, labels = scoring.replicates, scoring.seed, scoring.labels
    own = Scoring(scoring.preset, scoring.evaluated_on, labels=labels, replicates=n, seed=seed)
    own.write(folder, results, own.sum_up(results))


def _in_zones(pairs: Sequence[CasePair], folder: ZoneFolder) -> list[CasePair]:
    """The pairs, each with its anatomy; says which have none."""
    folder.check([pair.case for pair in pairs])
    return [replace(pair, zones=folder.read) for pair in pairs]


def _operating_point(point: OperatingPoint | str | float | None) -> OperatingPoint | None:
    """The operating point as a user names it, `score:0.37` or 0.37; None: the predictions' own.

    Raises `ConfigError` for a point that only a bundle could look up.
    """
    if point is None or isinstance(point, OperatingPoint):
        return point
    if not isinstance(point, str):
        return choose_operating_point((), f"score:{point}")
    if point.partition(":")[0].strip() in ("fp_per_case", "sensitivity"):
        raise ConfigError(
            "Only a bundle knows the score of this operating point; predictions do not hold it.",
            where="operating_point",
            seen=point,
            expected="score:<0 to 1>",
            remedy="give the score itself; the bundle's plan.json lists its operating_points.",
        )
    return choose_operating_point((), point)


def _provenance(dataset: Dataset | None) -> dict[str, Any]:
    if dataset is None:
        return {}
    return {
        "dataset": dataset.name,
        "convention": dataset.convention,
        "simulated": "simulated" in dataset.name.lower(),
        "incomplete_reference": dataset.incomplete_reference,
    }
