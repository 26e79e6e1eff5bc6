"""The recipe of `evaluate`: judge predicted files against reference files, case by case."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lesionseg
from lesionseg.core import (
    CaseFiles,
    Dataset,
    Geometry,
    LabelRegion,
    OperatingPoint,
    Prediction,
    Reference,
    Volume,
)
from lesionseg.errors import DatasetError
from lesionseg.evaluation import CaseResult, Preset, evaluate_case, find_preset, summarise
from lesionseg.evaluation.adjudication import Adjudication, adjudicate, read_verdicts
from lesionseg.evaluation.rows import (
    CANDIDATE_COLUMNS,
    LESION_COLUMNS,
    candidate_rows,
    case_columns,
    case_rows,
    lesion_rows,
)
from lesionseg.evaluation.statistics.compare import compare as compare_models
from lesionseg.evaluation.statistics.subgroups import Columns
from lesionseg.io.atomic import read_csv, write_csv, write_json
from lesionseg.io.cases import pixel_mm, read_grid, read_mask
from lesionseg.io.cases import read_reference as read_case_reference
from lesionseg.io.layouts.groups import assign_groups
from lesionseg.io.predictions import find_predictions
from lesionseg.pipeline.evaluate.evaluate_inputs import (
    accepted_from,
    image_readers,
    prediction_reader,
    read_columns,
)
from lesionseg.pipeline.evaluate.reference_cases import (
    cases_of,
    check_role,
    of_role,
    open_reference,
    stated_role,
)
from lesionseg.pipeline.run.progress import bar

_log = logging.getLogger(__name__)

COMPARED = "compare"  # where the second model's tables lie in an output folder

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class CasePair:
    """A case to judge; reference and prediction are read when its turn comes.

    `prediction` is given the reference's grid; None: there is no prediction of this case. `image`
    is read for the lesions' contrast; None: it is not measured. `regions` are the dataset's.
    """

    case: str
    reference: Callable[[], Reference]
    prediction: Callable[[Geometry], Prediction] | None
    group: str = ""
    role: str = ""
    image: Callable[[], Volume] | None = None
    regions: tuple[LabelRegion, ...] = ()


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
    adjudication: str | Path | None = None,
    images: str | Path | None = None,
    columns: str | Path | None = None,
    subgroups: Sequence[str] | None = None,
    resample: bool = False,
    replicates: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge a folder of predictions; writes scores.json and three tables, returns the scores.

    `reference`: a folder of masks named by case, or a dataset folder. `dataset`: already read; its
    labelled cases are judged and `reference` is not looked at. `prediction`: our files, another
    program's masks, or candidate files alone. `evaluated_on`: the role of the cases; of a dataset
    that states roles its cases alone are judged. None: cases of a role of which nothing was
    predicted are left out, and the role is the one that the dataset states of all the others, else
    `unknown`. `groups`: regular expression on the case id that names the patient.
    `operating_point`: `score:0.37`, say; without it candidates are accepted as the predictions'
    files say. A case without prediction counts as missed lesions; a prediction without reference is
    named in a warning. `progress` is called with case, number done and total; without it a bar is
    drawn on the terminal.
    `compare`: another folder of predictions, a second model or reader, judged on the same cases and
    compared. `adjudication`: adjudicate.csv, filled in by a person.
    `images`: a folder of images named by case, or `dataset` for the reference's own, to measure the
    lesions' contrast in. `subgroups`: columns of the dataset's manifest or of `columns`, a CSV file
    with a column `case`; None takes all that divide the cases, an empty list none. `resample`:
    predictions on another grid are brought onto the reference's, which else is an error.
    Raises `ConfigError`, `DatasetError`, `ReadError`, `GeometryError` or `ContentError`, and then
    writes nothing.
    """
    check_role(evaluated_on)
    point = accepted_from(operating_point)
    reference, prediction, output = Path(reference), Path(prediction), Path(output)
    if dataset is None:
        dataset = open_reference(reference)
    labelled = cases_of(reference, dataset)
    chosen = of_role(labelled, find_predictions(prediction), evaluated_on)
    role = evaluated_on or stated_role(chosen)
    cases = assign_groups(chosen, groups, setting="groups")
    pair = partial(_pairs, cases, dataset, {c.case for c in labelled}, role, resample)
    pairs = with_images(pair(prediction), image_readers(cases, dataset, images))
    verdicts = _verdicts(Path(adjudication)) if adjudication else None
    with bar("Judging") if progress is None else nullcontext(progress) as advance:
        return evaluate_pairs(
            pairs,
            output,
            evaluated_on=role,
            operating_point=point,
            preset=preset,
            labels=dataset.lesion_labels if dataset else None,
            replicates=replicates,
            seed=seed,
            provenance=_provenance(dataset),
            columns=read_columns(cases, Path(columns) if columns else None),
            subgroups=subgroups,
            others=pair(Path(compare)) if compare else None,
            verdicts=verdicts,
            progress=advance,
        )


def evaluate_pairs(
    pairs: Sequence[CasePair],
    output: Path,
    *,
    evaluated_on: str,
    operating_point: OperatingPoint | None = None,
    preset: str | Preset = "lesionseg",
    labels: Mapping[int, str] | None = None,
    split_is_group_safe: bool | None = None,
    replicates: int = 1000,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    columns: Columns | None = None,
    subgroups: Sequence[str] | None = None,
    others: Sequence[CasePair] | None = None,
    verdicts: Sequence[Adjudication] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge pairs, one in memory at a time; writes and returns as `evaluate` does.

    `others`: the same cases with the predictions to compare with, at their own operating points;
    their tables go into the folder `compare` below `output`.
    """
    rules = find_preset(preset) if isinstance(preset, str) else preset
    results = list(judge_pairs(pairs, rules, operating_point=operating_point, progress=progress))
    scores = summarise(
        results,
        rules,
        evaluated_on=evaluated_on,
        operating_point=operating_point,
        labels=labels,
        split_is_group_safe=split_is_group_safe,
        replicates=replicates,
        seed=seed,
        provenance={"lesionseg": lesionseg.__version__, **(provenance or {})},
        columns=columns,
        subgroups=subgroups,
    )
    if others is not None:
        second = list(judge_pairs(others, rules))
        scores["comparison"] = compare_models(results, second, replicates=replicates, seed=seed)
        beside = summarise(
            second,
            rules,
            evaluated_on=evaluated_on,
            labels=labels,
            split_is_group_safe=split_is_group_safe,
            replicates=replicates,
            seed=seed,
            provenance={"lesionseg": lesionseg.__version__},
        )
        write_results(output / COMPARED, second, beside, labels or {})
    if verdicts is not None:
        scores["adjudication"] = adjudicate(results, verdicts)
    write_results(output, results, scores, labels or {})
    return scores


def judge_pairs(
    pairs: Sequence[CasePair],
    preset: Preset,
    *,
    operating_point: OperatingPoint | None = None,
    progress: Progress | None = None,
) -> Iterator[CaseResult]:
    """The result of each pair in turn; what was read for it is let go before the next."""
    for done, pair in enumerate(pairs, start=1):
        reference = pair.reference()
        yield evaluate_case(
            reference,
            pair.prediction(reference.geometry) if pair.prediction else None,
            preset,
            case=pair.case,
            group=pair.group,
            role=pair.role,
            operating_point=operating_point,
            image=pair.image() if pair.image else None,
            regions=pair.regions,
        )
        if progress:
            progress(pair.case, done, len(pairs))


def write_results(
    output: Path,
    results: Sequence[CaseResult],
    scores: Mapping[str, Any],
    labels: Mapping[int, str],
) -> None:
    """Write the three tables and, last, scores.json; each atomically."""
    output.mkdir(parents=True, exist_ok=True)
    write_csv(output / "cases.csv", case_rows(results), case_columns(results))
    write_csv(output / "lesions.csv", lesion_rows(results, labels), LESION_COLUMNS)
    write_csv(output / "candidates.csv", candidate_rows(results, labels), CANDIDATE_COLUMNS)
    write_json(output / "scores.json", scores)


def _verdicts(path: Path) -> list[Adjudication]:
    return read_verdicts(read_csv(path), str(path))


def _pairs(
    cases: Sequence[CaseFiles],
    dataset: Dataset | None,
    labelled: Collection[str],
    evaluated_on: str,
    resample: bool,
    folder: Path,
) -> list[CasePair]:
    """Pair references and predictions by case id; says which have no counterpart.

    `labelled`: all cases with a reference, those that are not judged included.
    """
    found = find_predictions(folder)
    ids = {c.case for c in cases}
    missing, extra = sorted(ids - set(found)), sorted(set(found) - set(labelled))
    if len(missing) == len(ids):
        raise DatasetError(
            "No prediction has the name of a reference.",
            where=folder,
            seen=", ".join(extra[:3]),
            expected=", ".join(missing[:3]),
            remedy="name the predictions <case>_mask.* or <case>.* after the references.",
        )
    if missing:
        _log.warning("No prediction; all lesions count as missed: %s", ", ".join(missing))
    if extra:
        _log.warning("No reference; these predictions are not judged: %s", ", ".join(extra))
    regions = dataset.regions if dataset else ()
    return [
        CasePair(
            case=files.case,
            reference=partial(read_reference, files, dataset),
            prediction=prediction_reader(found[files.case], resample=resample, united=bool(regions))
            if files.case in found
            else None,
            group=files.group,
            role=files.role or evaluated_on,
            regions=regions,
        )
        for files in cases
    ]


def read_reference(files: CaseFiles, dataset: Dataset | None) -> Reference:
    """The reference of a case on its image's grid; of the image the header is read.

    Of a radiograph that states what it hides the pixels are read as well.
    """
    if dataset is None:
        if files.reference is None:
            raise DatasetError("The case has no reference.", where=f"case {files.case}")
        return read_mask(files.reference, raster_mm=pixel_mm(files))
    found = read_case_reference(files, dataset, read_grid(files, dataset))
    if found is None:
        raise DatasetError("The case has no reference.", where=f"case {files.case}")
    return found


def with_images(
    pairs: Sequence[CasePair], readers: Mapping[str, Callable[[], Volume]]
) -> list[CasePair]:
    """The pairs with the images there are, by case id."""
    return [replace(pair, image=readers.get(pair.case)) for pair in pairs]


def _provenance(dataset: Dataset | None) -> dict[str, Any]:
    if dataset is None:
        return {}
    return {
        "dataset": dataset.name,
        "convention": dataset.convention,
        "simulated": "simulated" in dataset.name.lower(),
        "incomplete_reference": dataset.incomplete_reference,
    }
