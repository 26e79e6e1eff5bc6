"""Report page: choice, order and number of pictures; scan table, slider, adjudicate.csv."""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from lesionseg.config import ReportSection
from lesionseg.core import Dataset, Prediction
from lesionseg.errors import ContentError, LesionsegError, format_score, join_names, require_one_of
from lesionseg.evaluation.adjudication import Key, candidate_key
from lesionseg.evaluation.scores import SECOND_MODEL, Provenance
from lesionseg.io.text import read_csv, read_yaml, write_csv
from lesionseg.reporting import charts
from lesionseg.reporting.charts import Chart
from lesionseg.reporting.content import Pictures, ReportContent
from lesionseg.reporting.evaluation_tables import (
    EvaluationTables,
    read_evaluation,
    write_pseudonyms,
)
from lesionseg.reporting.identity import read_identity
from lesionseg.reporting.images import CaseFolders, Scene
from lesionseg.reporting.pdf import write_pdf
from lesionseg.reporting.pictures import Card
from lesionseg.reporting.rendering import (
    render,
    render_lines,
    render_sentence,
    split_lines,
    write_page,
)
from lesionseg.reporting.viewer import remove_viewer_pages, write_viewer
from lesionseg.reporting.whole_images import (
    WholeImage,
    choose_whole_images,
    draw_whole_image,
    label_keys,
)
from lesionseg.reporting.words import (
    basis,
    comparison_table,
    false_positive_words,
    headline,
    key_figures,
    limit_words,
    limitations,
    measures,
    read_questions,
    size_class_words,
    size_words,
    study_lines,
    tags,
    why_missed,
)

log = logging.getLogger(__name__)
MAX_MISSED = 60  # pictures of missed lesions
MAX_FALSE = 30  # pictures of false positives
MAX_FOUND = 12  # pictures of found lesions
UNNAMED = ("this program", "other program")  # if their scores do not state names
N_ON_TOP = 3  # pictures of lesions on the first screen
MAX_PRINTED = 200  # scans in the table of the PDF, because a longer table takes minutes
MAX_ON_SLIDER = 100_000  # with more lesions and false positives, the page has no slider
Progress = Callable[[str, int, int], None]
Kind = Literal["top", "missed", "false_positive", "found"]
# for each mask of a scene: the class of its outline in style.css, and its description
OUTLINES = {
    "reference": ("reference", "lesion in the reference"),
    "accepted": ("accepted", "marking of the program"),
    "below": ("below", "marking rated below the limit"),
}
ANSWERS = ("answer", "reader", "comment")  # columns that a reader fills in
BOX_ROUNDING = 1e-3  # voxels by which boxes in candidates.csv may differ from those of predictions


def write_report(
    scores_dir: Path,
    output: Path,
    *,
    images: Path | Dataset | None = None,
    reference: Path | None = None,
    prediction: Path | None = None,
    compare: Path | None = None,
    options: ReportSection | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write `output/report.html` from the tables of an evaluation.

    The page needs no network. Next to it are `adjudicate.csv` with the false positives,
    `pseudonyms.csv` if the page shows pseudonyms, and `report.pdf` and pages in `viewer/` if the
    options ask for them. Such files of an earlier report are removed, except for the rows of
    `adjudicate.csv` that a reader has filled in.

    Args:
        scores_dir: The folder that `evaluate` or `train` wrote. Predictions and metrics.csv in a
            run directory, and the evaluation of a second model in `compare`, are used.
        output: The folder of the page.
        images: A dataset, its root, or a folder of images. None draws no pictures.
        reference: The root of a dataset, or a folder of masks, to draw into the pictures. None
            draws those of `images`.
        prediction: A folder of prediction files, to draw into the pictures. None takes those in
            `scores_dir`, if any.
        compare: The evaluation of another model on the same scans. None takes the one in
            `scores_dir`, if any.
        options: Study file, names, PDF and viewer. None uses the defaults of conf/.
        progress: Called with the case, the number of pictures done, and their total.

    Returns:
        The path of the page.

    Raises:
        ReadError: If a file is missing or unreadable.
        DatasetError: If the images or the references have no case that can be used.
        ContentError: If a table cannot be read, or the tables do not belong together.
        ConfigError: If the study file has an unknown key, or if the viewer lacks NiiVue.
        OutputError: If a file cannot be written.
    """
    options = options or ReportSection.of()
    models = _read_models(scores_dir, compare, identifiers=options.identifiers)
    tables = models[0][1]  # of the evaluated model; a second one may follow
    study = read_study(Path(options.study) if options.study else None)
    adjudication = output / "adjudicate.csv"
    if adjudication.is_file():
        _read_answered(adjudication)  # a wrong table is an error before any file changes
    folders = None
    if images is not None:
        folders = CaseFolders(
            images,
            reference,
            prediction or _find_predictions(scores_dir),
            made=tables.scores.provenance,
        )
    viewer = output / "viewer"
    remove_viewer_pages(viewer)
    pictures = Pictures()
    if folders is not None:
        pictures = _draw_pictures(tables, folders, viewer if options.viewer else None, progress)
    content = _collect_content(models, study, pictures, history=scores_dir / "metrics.csv")
    output.mkdir(parents=True, exist_ok=True)
    # files of an earlier page with other settings or cases would contradict this page
    (output / "report.pdf").unlink(missing_ok=True)
    write_page(output / "report.html", "report.html.j2", report=content, max_rows=None)
    write_adjudication(adjudication, tables)
    write_pseudonyms(output, tables.names)
    if options.pdf:
        printed = render("report.html.j2", report=content, max_rows=MAX_PRINTED)
        write_pdf(output / "report.pdf", printed)
    return output / "report.html"


def _find_predictions(scores_dir: Path) -> Path | None:
    """Return the folder of predictions next to the scores, to draw them into the pictures.

    `train` writes the folder `validation`, `evaluate` the folder `predictions`. Return None if
    there is neither.
    """
    for name in ("validation", "predictions"):
        if (scores_dir / name).is_dir():
            return scores_dir / name
    return None


def _read_models(
    scores_dir: Path, compare: Path | None, *, identifiers: bool
) -> list[tuple[str, EvaluationTables]]:
    """Return the name and the tables of the evaluated model, and of a second model to compare with.

    The second model is the one evaluated in `compare`. If `compare` is None, it is the model that
    `evaluate` compared with the first one, if any. Without a second model, the name is empty.

    Raises:
        ContentError: If the second model was evaluated on other cases.
    """
    tables = read_evaluation(scores_dir, identifiers=identifiers)
    second = scores_dir / SECOND_MODEL
    if compare is None and (second / "scores.json").is_file():
        compare = second
    elif compare is not None and compare.resolve() != second.resolve():
        # the differences in these scores compare with the model in `second`, not in `compare`
        tables = replace(tables, scores=replace(tables.scores, comparison={}, programs=()))
    if compare is None:
        return [("", tables)]
    names = [program.name for program in tables.scores.programs] or UNNAMED
    other = read_evaluation(compare, identifiers=identifiers)
    # a case that failed for one model only has no row in its tables, which is no difference
    cases_of_first = {*tables.real_names, *tables.scores.failed_cases}
    cases_of_second = {*other.real_names, *other.scores.failed_cases}
    if set(tables.real_names) - cases_of_second or set(other.real_names) - cases_of_first:
        raise ContentError(
            f"{compare}: this is an evaluation of other cases. Evaluate both models on the "
            "same cases."
        )
    return list(zip(names, (tables, other), strict=True))


def _collect_content(
    models: Sequence[tuple[str, EvaluationTables]],
    study: Mapping[str, str],
    pictures: Pictures,
    *,
    history: Path,
) -> ReportContent:
    """Collect everything that the page shows, which the template then fills in.

    Args:
        models: The name and tables of the evaluated model, and of the model to compare with, if
            any.
        study: The answers of study.yaml.
        pictures: The pictures.
        history: The metrics.csv of a training. It may be missing.
    """
    tables = models[0][1]
    scores = tables.scores
    identity = read_identity(tables.folder, scores.provenance)
    charts, more_charts = _draw_charts(models, history)
    all_measures, measures_note = measures(tables)
    is_unseen = scores.evaluated_on in ("test", "external")  # other roles have a tag
    return ReportContent(
        title=page_title(tables, study, identity),
        identity=identity,
        tags=tags(tables),
        role=f"{render_sentence('role_words', role=scores.evaluated_on)} · " if is_unseen else "",
        headline=headline(tables),
        key_figures=key_figures(tables),
        basis=basis(tables),
        charts=charts,
        pictures=pictures,
        n_found=len(tables.found),
        n_missed=len(tables.missed),
        n_false_positive=scores.count("n_false_positive"),
        false_positive_rule=render_sentence("false_positive_rule", scores=scores),
        limitations=limitations(tables, study),
        more_charts=more_charts,
        slider=slider_data(tables),
        measures=all_measures,
        measures_note=measures_note,
        case_rows=case_rows(tables),
        label_rows=label_rows(tables),
        about=about_lines(tables, study, identity),
        comparison=comparison_table(scores, for_page=True),
        n_compared=len(models[-1][1].cases),  # scans of the second model, if there is one
    )


def _draw_charts(
    models: Sequence[tuple[str, EvaluationTables]], history: Path
) -> tuple[list[Chart], list[Chart]]:
    """Draw the charts of the page. Return those of the first screen, and all further charts.

    The first screen has the sensitivity by size and the FROC curve. Without scores there is no FROC
    curve, and the Dice of each scan replaces it. Charts without data are left out.

    Args:
        models: The name and tables of the evaluated model, and of the model to compare with, if
            any.
        history: The metrics.csv of a training. It may be missing.
    """
    tables = models[0][1]
    froc = charts.froc_chart(models)
    dice = charts.dice_chart(tables)
    has_froc = froc is not None
    first = [charts.size_chart(tables), froc if has_froc else dice]
    more = [
        dice if has_froc else None,
        charts.curve_chart(tables),
        charts.subgroup_chart(tables),
        charts.reliability_chart(tables),
        charts.load_chart(tables),
        *charts.training_charts(history),
    ]
    return [chart for chart in first if chart], [chart for chart in more if chart]


def read_study(path: Path | None) -> dict[str, str]:
    """Read the answers that describe the study on the page, from study.yaml, by key.

    Empty answers are left out. The items of a list are joined by semicolons.

    Args:
        path: The file study.yaml. None returns no answers.

    Raises:
        ReadError: If the file cannot be read.
        ConfigError: If a key is unknown. The message names the nearest one.
    """
    answers = {} if path is None else read_yaml(path)
    for key in answers:
        require_one_of(f"{path}: the key", key, read_questions())
    texts: dict[str, str] = {}
    for key, answer in answers.items():
        if answer in (None, ""):
            continue
        is_list = isinstance(answer, list)
        texts[key] = "; ".join(map(str, answer)) if is_list else str(answer).strip()
    return texts


def page_title(tables: EvaluationTables, study: Mapping[str, str], identity: Provenance) -> str:
    """Return the title in study.yaml, or a title made of the dataset, the role and the date."""
    if title := study.get("title"):
        return title
    return render_sentence("page_title", role=tables.scores.evaluated_on, identity=identity)


def about_lines(
    tables: EvaluationTables, study: Mapping[str, str], identity: Provenance
) -> list[tuple[str, str]]:
    """Return the section about the test: lines of a name and a text.

    The lines describe the model, the scans, the match rule, the operating point, and the study.
    """
    lines = [
        *split_lines(render_lines("identity_rows", identity=identity)),
        *split_lines(render_lines("about_scans", tables=tables)),
        ("Counts as found", render_sentence("rule_words", scores=tables.scores)),
    ]
    if limit := limit_words(tables):
        lines.append(("Limit", limit))
    return [*lines, *study_lines(study)]


def case_rows(tables: EvaluationTables) -> list[dict[str, Any]]:
    """Return the table of scans, one row per scan, with the column names of the page.

    - Columns without any value are left out, such as volumes of radiographs. The columns "warning"
      and "outside" (markings outside the zones or the reference) are left out if all are empty or
      0.
    - A scan without a prediction has "no result" instead of its number of lesions found, and no
      Dice.
    - If patients are known, the scans of a patient follow each other. Otherwise there is no column
      "patient".
    """
    columns = {
        "group": "patient",
        "case": "scan",
        "n_lesions": "lesions",
        "n_detected": "found",
        "n_false_positive": "false positives",
        "n_outside": "outside",
        "dice": "Dice",
        "reference_ml": "marked, ml",
        "predicted_ml": "predicted, ml",
        "warning": "warning",
    }
    cases = tables.cases
    filled = cases.columns[cases.notna().any()]  # the names of columns with a value
    shown_columns = {old: new for old, new in columns.items() if old in filled}
    for name, empty_cell in (("warning", ""), ("n_outside", 0)):
        if name in shown_columns and (cases[name].fillna(empty_cell) == empty_cell).all():
            shown_columns.pop(name)
    cases = cases.astype(object)  # a copy, in which a column of numbers may contain text
    cases.loc[~tables.is_predicted, ["n_detected", "dice"]] = ["no result", None]
    if tables.has_patients:
        # patients keep the order in which they first appear
        position_of = {group: position for position, group in enumerate(cases["group"].unique())}
        cases = cases.sort_values("group", key=lambda group: group.map(position_of), kind="stable")
    else:
        shown_columns.pop("group", None)
    result: list[dict[str, Any]] = (
        cases[list(shown_columns)].rename(columns=shown_columns).to_dict("records")
    )
    return result


def label_rows(tables: EvaluationTables) -> list[dict[str, Any]]:
    """Return the table of labels, one row per label or region; empty if there is a single label.

    A row has the name, the counts and the average precision. The last columns are box APs if the
    test is judged by boxes, otherwise the Dice.
    """
    scores = tables.scores
    if len(scores.labels) < 2:
        return []
    columns = {
        "lesions": "n_lesions",
        "found": "n_true_positive",
        "false positives": "n_false_positive",
        "average precision": "average_precision",
    }
    if scores.is_judged_by_boxes:
        columns["box AP at IoU 0.4"] = "box_ap_40"
        columns["box AP at IoU 0.5"] = "box_ap_50"
        columns["box AP, IoU 0.5 to 0.95"] = "box_ap_50_95"
    else:
        columns["Dice"] = "dice"
    return [
        {
            "label": label,
            **{words: scores.find(name, label=label).value for words, name in columns.items()},
        }
        for label in scores.labels
    ]


def slider_data(tables: EvaluationTables) -> dict[str, Any] | None:
    """Return the data of the threshold slider, which `templates/slider.js` reads by these keys.

    - `cases`: the number of scans, the divisor of rates.
    - `start`: the score threshold in use.
    - `lesions`: a row per lesion with the highest threshold that finds it (None if never), its
      diameter, its case and its id.
    - `false`: the scores of false positives, the highest first.
    - `sizes`: a row per size class with its lower bound, its upper bound (None if open) and its
      name.

    Return None, which omits the slider, without a threshold, and if the number of lesions and false
    positives is 0 or above `MAX_ON_SLIDER`.
    """
    n_points = len(tables.lesions) + len(tables.false_score)
    if tables.threshold is None or not 0 < n_points <= MAX_ON_SLIDER:
        return None
    lesions = tables.lesions[["detected_at", tables.size_column, "case", "lesion"]].astype(object)
    rows = lesions.where(lesions.notna(), None).to_numpy().tolist()  # JSON has no NaN
    unit = tables.scores.size_unit
    sizes = [
        [size_class.minimum, size_class.below, size_class_words(size_class, unit)]
        for size_class in tables.size_classes
    ]
    return {
        "cases": tables.n_scanned,
        "start": tables.threshold,
        "lesions": rows,
        "false": np.sort(tables.false_score)[::-1].tolist(),
        "sizes": sizes,
    }


def write_adjudication(path: Path, tables: EvaluationTables) -> int:
    """Write the false positives into `path` for a reader to judge, and return their number.

    Each row is a false positive, by descending score, with the real name of its case and empty
    columns for answers. Rows in an existing file that a reader has filled in are kept:

    - The answers are copied to the row of the same candidate (`candidate_key`), even if a
      spreadsheet program formats its numbers differently.
    - Rows of candidates that are no false positives any more follow at the end.

    Without any row, the file is removed.

    Raises:
        ContentError: If the existing file is not such a table.
    """
    false = tables.false_positives.sort_values("score", ascending=False, na_position="last").copy()
    false["case"] = false["case"].map(lambda name: tables.names.get(name, name))
    # the columns of the box and the centre of a candidate
    positions = [c for c in false if c.endswith(("_vox", "_mm")) and c != "diameter_mm"]
    columns = ["case", "candidate", "label", "score", "diameter_mm", *positions, "touches_lesion"]
    table = false[columns].astype(object).where(false[columns].notna(), None)
    # the answered rows of the existing file, as a list for each candidate
    answered = _read_answered(path) if path.is_file() else {}
    rows: list[dict[Any, Any]] = table.to_dict("records")
    for row in rows:
        row.update(dict.fromkeys(ANSWERS, ""))
        same_candidate = answered.get(candidate_key(row))
        if same_candidate:
            old = same_candidate.pop(0)
            row.update({name: old[name] for name in ANSWERS})
    written = [*columns, *ANSWERS]
    for no_longer_false in answered.values():  # answers are kept although no new row has them
        for row in no_longer_false:  # a reader may have added columns
            rows.append({name: row.get(name, "") for name in written})
    if rows:
        write_csv(path, rows, written)
    else:  # a table of an earlier setting would list candidates that are true positives now
        path.unlink(missing_ok=True)
    return len(false)


def _read_answered(path: Path) -> dict[Key, list[dict[Any, Any]]]:
    """Read the rows of an existing adjudicate.csv that a reader has filled in.

    The columns `reader` and `comment` may be missing.

    Returns:
        The rows by `candidate_key`, which has the case, the id and the box of a candidate.

    Raises:
        ContentError: If another column is missing or a number cannot be read.
    """
    answered: dict[Key, list[dict[Any, Any]]] = defaultdict(list)
    try:
        for row in read_csv(path):
            answers = {"answer": row["answer"]}
            answers |= {name: row.get(name, "") for name in ANSWERS[1:]}  # reader and comment
            if any(answers.values()):
                answered[candidate_key(row)].append({**row, **answers})
    except (KeyError, ValueError, OverflowError) as error:
        raise ContentError(
            f"{path}: a column or number that the report writes is missing ({error}). Correct the "
            "table, or move it away."
        ) from error
    return answered


@dataclass(frozen=True, eq=False)
class _PictureOrder:
    """A picture to draw.

    Attributes:
        kind: The section of the page.
        row: The row of the lesion in lesions.csv, or of the false positive in candidates.csv.
        words: The caption.
    """

    kind: Kind
    row: pd.Series
    words: str


def _draw_pictures(
    tables: EvaluationTables, folders: CaseFolders, viewer: Path | None, progress: Progress | None
) -> Pictures:
    """Draw the pictures of lesions and false positives, and the whole images.

    Cases are read one after the other, because only one scan is kept in memory. A case that cannot
    be read has no picture, and a warning names it.

    Args:
        tables: The tables of the evaluation.
        folders: Read the image, reference and prediction of a case.
        viewer: The folder for a viewer page of each case with a picture. None writes no pages.
        progress: Called after each case.
    """
    shown_whole = choose_whole_images(tables)  # cases whose whole image is shown
    wanted = list(_choose_pictures(tables, with_top=not shown_whole))
    unread: dict[str, str] = {}
    cards: dict[int, Card] = {}  # by index in `wanted`
    whole_images: dict[str, WholeImage] = {}
    visible: set[str] = set()  # keys of `OUTLINES`
    # the pictures of each case, as indices in `wanted`
    indices_of: dict[str, list[int]] = defaultdict(list)
    for index, picture in enumerate(wanted):
        indices_of[str(picture.row["case"])].append(index)
    n_done = 0
    n_wanted = len(wanted) + len(shown_whole)
    cases = sorted({*indices_of, *shown_whole})
    # read each case once, and draw all its pictures
    for case in cases:
        scene = _load_scene(folders, tables, case, unread)
        if scene is not None:
            visible |= _find_visible_masks(scene)
            if viewer is not None:
                write_viewer(viewer, case, scene, tables.threshold)
            if case in shown_whole:
                whole_images[case] = draw_whole_image(scene, case, tables)
            for index in indices_of[case]:
                cards[index] = _draw_card(scene, wanted[index], tables)
        # a case that cannot be read counts as done, so that the progress reaches its end
        n_done += len(indices_of[case]) + (case in shown_whole)
        if progress is not None:
            progress(case, n_done, n_wanted)
    if unread:
        reason = next(iter(unread.values()))
        log.warning("The report has no pictures of %s: %s", join_names(unread), reason)
    # sort the pictures into the sections of the page
    cards_of_kind: dict[Kind, list[Card]] = defaultdict(list)
    for index in sorted(cards):  # the order of the page, not that of the cases
        cards_of_kind[wanted[index].kind].append(cards[index])
    boxes_on_images = [box for image in whole_images.values() for box in image.boxes]
    letters = {box.label.letter for box in boxes_on_images if box.label}
    return Pictures(
        top=cards_of_kind["top"],
        missed=cards_of_kind["missed"],
        false_positives=cards_of_kind["false_positive"],
        found=cards_of_kind["found"],
        outlines=_outlines_of(visible),
        whole_images=[whole_images[case] for case in shown_whole if case in whole_images],
        labels=[key for key in label_keys(tables).values() if key.letter in letters],
        box_outlines=_outlines_of({box.kind for box in boxes_on_images}),
    )


def _outlines_of(kinds: Collection[str]) -> list[tuple[str, str]]:
    """Return the legend of the outlines of these kinds, in the order of `OUTLINES`.

    Each entry has the class in style.css and a description. The legend only explains outlines that
    occur in the pictures.
    """
    return [outline for kind, outline in OUTLINES.items() if kind in kinds]


def _find_visible_masks(scene: Scene) -> set[str]:
    """Return the keys of `OUTLINES` whose masks in a scene have voxels, for the legend."""
    masks = {"reference": scene.reference, "accepted": scene.accepted, "below": scene.below}
    return {name for name, mask in masks.items() if mask is not None and mask.any()}


def _choose_pictures(tables: EvaluationTables, *, with_top: bool) -> Iterator[_PictureOrder]:
    """Yield the pictures to draw, in the order of the page.

    - For the first screen (`with_top`): the `N_ON_TOP` largest missed lesions or, if none was
      missed, the smallest found ones.
    - Up to `MAX_MISSED` missed lesions, the largest first.
    - Up to `MAX_FALSE` false positives, the highest score first.
    - Up to `MAX_FOUND` found lesions, at equal steps from all found lesions by ascending size.

    Args:
        tables: The tables of the evaluation.
        with_top: False if whole images replace the pictures of the first screen.
    """
    missed = tables.missed
    found = tables.found.sort_values(tables.size_column)
    on_top = missed if len(missed) else found
    for _, row in on_top.head(N_ON_TOP if with_top else 0).iterrows():
        yield _PictureOrder("top", row, _lesion_words(row, tables))
    for _, row in missed.head(MAX_MISSED).iterrows():
        yield _PictureOrder("missed", row, _lesion_words(row, tables))
    for _, row in (
        tables.false_positives.sort_values("score", ascending=False).head(MAX_FALSE).iterrows()
    ):
        yield _PictureOrder("false_positive", row, false_positive_words(row))
    for _, row in found.iloc[:: max(1, ceil(len(found) / MAX_FOUND))].iterrows():
        yield _PictureOrder("found", row, _lesion_words(row, tables))


def _lesion_words(row: pd.Series, tables: EvaluationTables) -> str:
    """Return the caption of a lesion: why it was missed, or the score at which it is found.

    The text of a found lesion is empty if candidates have no scores.

    Args:
        row: The row of the lesion in lesions.csv.
        tables: The tables of the evaluation.
    """
    if not row["detected"]:
        return why_missed(row, tables)
    return "" if pd.isna(row["detected_at"]) else f"rated {format_score(row['detected_at'])}"


def _load_scene(
    folders: CaseFolders, tables: EvaluationTables, case: str, unread: dict[str, str]
) -> Scene | None:
    """Read the image, reference and prediction of a case, to draw its pictures.

    If the prediction is not the one that was scored, a warning says so, and the scene has no
    prediction.

    Args:
        folders: Read the files of a case.
        tables: The tables of the evaluation.
        case: The name of the case in the tables, which may be a pseudonym.
        unread: If the case cannot be read, the reason is added here by its real name.

    Returns:
        The scene, or None if the case cannot be read.
    """
    candidates = tables.candidates[tables.candidates["case"] == case]
    is_accepted = candidates["accepted"]
    accepted = frozenset(candidates[is_accepted]["candidate"].astype(int))
    below = frozenset(candidates[~is_accepted]["candidate"].astype(int))
    real_name = tables.names.get(case, case)
    try:
        scene = folders.load(real_name, accepted, below)
    except LesionsegError as error:
        unread[real_name] = str(error)
        return None
    if scene.prediction is not None and not _has_candidates(scene.prediction, candidates):
        log.warning(
            "The report shows %s without its prediction: the files are not those that were scored. "
            "Run evaluate again, or give the scored files as prediction=.",
            real_name,
        )
        return replace(scene, accepted=None, below=None, prediction=None)
    return scene


def _has_candidates(prediction: Prediction, rows: pd.DataFrame) -> bool:
    """Return True if each row of candidates.csv is a candidate of the prediction, with its box.

    Otherwise, the prediction is not the one that was scored. Boxes may differ by `BOX_ROUNDING`.
    """
    boxes = {c.id: (*c.start_vox, *c.stop_vox) for c in prediction.candidates}
    # the axes of the columns: z, y, x, in 2-D y and x
    axes = "zyx"[3 - prediction.geometry.dims :]
    columns = [f"{end}_{axis}_vox" for end in ("start", "stop") for axis in axes]
    ids = rows["candidate"].astype(int)
    return all(
        candidate in boxes and np.allclose(boxes[candidate], box, atol=BOX_ROUNDING)
        for candidate, box in zip(ids, rows[columns].to_numpy(float), strict=True)
    )


def _draw_card(scene: Scene, order: _PictureOrder, tables: EvaluationTables) -> Card:
    """Draw the card of one picture, with its caption.

    On the first screen the picture has one plane, otherwise three. If there are several labels, the
    label precedes the size, except on the first screen. The picture of a false positive is about
    this candidate, so other candidates are faded.

    Args:
        scene: The image and masks of the case.
        order: The picture to draw.
        tables: The tables of the evaluation.
    """
    row = order.row
    axes = "zyx" if scene.geometry.dims == 3 else "yx"
    start = [float(row[f"start_{axis}_vox"]) for axis in axes]
    stop = [float(row[f"stop_{axis}_vox"]) for axis in axes]
    focus = scene.mask_of(int(row["candidate"])) if order.kind == "false_positive" else None
    planes = 1 if order.kind == "top" else 3
    size = size_words(row, tables)
    if order.kind != "top" and label_keys(tables):
        size = f"{row['label']}, {size}"
    words = (str(row["case"]), size, order.words)
    # "": the picture shows no name, because it has one scene
    return Card.draw({"": scene}, start, stop, words=words, planes=planes, focus=focus)
