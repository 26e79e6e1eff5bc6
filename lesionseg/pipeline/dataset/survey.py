"""The first look at a dataset: simulate or read it, refuse bad cases, count lesions, divide."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lesionseg.core import Case, CaseFiles, Dataset
from lesionseg.errors import DatasetError, LesionsegError, OutputError, require
from lesionseg.io.atomic import read_json, write_json
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.remote.mirror import mirror
from lesionseg.io.remote.remote_folder import is_url
from lesionseg.ops.lesions import lesions_of
from lesionseg.pipeline.dataset.data_settings import ALL_FOLDS, DataSettings
from lesionseg.pipeline.run.outcome import Advance, bar
from lesionseg.plan.fingerprint import Fingerprint, take_fingerprint
from lesionseg.plan.splits import Splits, fold_numbers, make_splits

log = logging.getLogger(__name__)

SETTINGS = "simulation.json"


@dataclass(frozen=True)
class Survey:
    """What is known of a dataset before anything is decided.

    `burden` and `sizes`: number and median diameter of the lesions of each labelled case. `boxed`:
    number of lesions of each case whose reference has boxes and no mask.
    """

    dataset: Dataset
    fingerprint: Fingerprint
    splits: Splits
    burden: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    boxed: Mapping[str, int] = field(default_factory=dict)

    def of_role(self, role: str) -> tuple[CaseFiles, ...]:
        """The cases of one role, in the dataset's order."""
        return tuple(c for c in self.dataset.cases if self.splits.roles.get(c.case) == role)


def take_survey(data: DataSettings, seed: int) -> Survey:
    """Read every case and divide the dataset; nothing is written. All folds: as the first one.

    The fingerprint is taken from development cases only: those a dataset calls test are read and
    checked, not counted. Raises `DatasetError` naming every bad file, an unlabelled dataset, one
    without any lesion, and one whose only group leaves nothing to validate on.
    """
    dataset = open_dataset(data)
    burden: dict[str, int] = {}
    sizes: dict[str, float] = {}
    boxed: dict[str, int] = {}
    problems: list[LesionsegError] = []
    with bar("Reading the dataset") as advance:
        cases = _readable(dataset, burden, sizes, boxed, problems, advance)
        first = next(cases, None)
        fingerprint = None if first is None else take_fingerprint(dataset, chain([first], cases))
    _refuse(problems, data.root)
    if fingerprint is None:
        raise DatasetError(
            "No case has a reference to learn from.",
            where=data.root,
            seen=f"{len(dataset.cases)} cases, none of them labelled and free for training",
            remedy="add masks, or predict with an existing bundle.",
        )
    if sum(burden.values()) == 0:
        raise DatasetError(
            "There is no lesion in any reference.",
            where=data.root,
            seen=f"{len(burden)} cases, all of them lesion-free",
            remedy="check the label values in the masks, or add cases with lesions.",
        )
    undivided = Survey(dataset, fingerprint, Splits({}, True, seed, ""), burden, sizes, boxed)
    fold = folds_of(undivided, data)[0] if data.fold == ALL_FOLDS else data.fold
    survey = divided(undivided, data, seed, None if fold is None else int(fold))
    _require_validation(survey, data)
    return survey


def divided(survey: Survey, data: DataSettings, seed: int, fold: int | None) -> Survey:
    """The same dataset with the roles of one fold, or of the split that the settings ask for."""
    splits = make_splits(
        survey.dataset,
        survey.burden,
        validation_fraction=data.validation_fraction,
        seed=seed,
        given=_given(data),
        fold=fold,
        n_folds=data.n_folds,
        sizes=survey.sizes,
    )
    return replace(survey, splits=splits)


def folds_of(survey: Survey, data: DataSettings) -> tuple[int, ...]:
    """The numbers of the folds that cross-validation goes through."""
    return fold_numbers(survey.dataset, survey.burden, given=_given(data), n_folds=data.n_folds)


def _given(data: DataSettings) -> Path | None:
    return Path(data.splits) if data.splits else None


def open_dataset(data: DataSettings, *, lenient: bool = False) -> Dataset:
    """The dataset of `data.root`; simulated first when the settings say so and it is missing.

    `lenient`: see `read_dataset`. Raises `DatasetError`, or `ConfigError` where other settings
    simulated it.
    """
    root = mirror(data.root, data.disk) if is_url(data.root) else Path(data.root)
    if data.phantoms is not None:
        simulate_once(root, data.phantoms)
    dataset = read_dataset(
        root,
        group=data.group,
        convention=data.convention,
        merge_labels=data.merge_labels,
        resample_tilt=data.dicom.tilt == "resample",
        lenient=lenient,
    )
    log.info("%s: %d cases, read as %s", dataset.name, len(dataset.cases), dataset.convention)
    return dataset


def _readable(
    dataset: Dataset,
    burden: dict[str, int],
    sizes: dict[str, float],
    boxed: dict[str, int],
    problems: list[LesionsegError],
    advance: Advance,
) -> Iterator[Case]:
    """Yield each development case; fill lesion counts and median sizes, collect what is bad."""
    for done, files in enumerate(dataset.cases, start=1):
        try:
            case = read_case(files, dataset)
        except LesionsegError as error:
            problems.append(error)
            continue
        finally:
            advance(files.case, done, len(dataset.cases))
        if case.reference is None:
            continue
        diameters = lesions_of(case.reference).diameters_mm
        burden[files.case] = len(diameters)
        if case.reference.mask() is None and len(diameters):
            boxed[files.case] = len(diameters)
        sizes[files.case] = float(np.median(diameters)) if len(diameters) else 0.0
        if files.role not in ("test", "external"):
            yield case


def n_lesions(case: Case) -> int:
    """Number of reference lesions of a case; 0 without a reference."""
    return 0 if case.reference is None else len(lesions_of(case.reference))


def _refuse(problems: list[LesionsegError], root: str) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        shown = "\n  ".join(str(p) for p in problems[:20])
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise DatasetError(f"{len(problems)} cases cannot be used:\n  {shown}{more}", where=root)


def _require_validation(survey: Survey, data: DataSettings) -> None:
    if survey.of_role("validation") or data.validation_fraction == 0:
        return
    raise DatasetError(
        "No case is left to validate on.",
        where=data.root,
        seen=f"{len(survey.of_role('train'))} case(s) to train on",
        expected="at least two labelled cases",
        remedy="add a case, or train without any validation: data.validation_fraction=0.",
    )


def simulate_once(root: Path, write: Callable[..., None]) -> None:
    """Let `write(folder, progress=…)` simulate a dataset at `root`, unless it lies there already.

    `write` is a `functools.partial`; its arguments are kept beside the data. Raises `ConfigError`
    when `root` was simulated with others, `OutputError` when it cannot be written.
    """
    settings = dict(getattr(write, "keywords", {}))
    if root.exists():
        _refuse_other(root, settings)
        return
    log.info("Simulating a dataset in %s (these are no real scans)", root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as folder:
            made = Path(folder) / root.name
            with bar("Simulating scans") as advance:
                write(made, progress=advance)
            write_json(made / SETTINGS, settings)
            if not root.exists():  # another process may have been quicker
                made.replace(root)
    except OSError as error:
        raise OutputError("The simulated dataset cannot be written.", where=root) from error


def _refuse_other(root: Path, settings: Mapping[str, Any]) -> None:
    """What was simulated with other settings must not pass for what was asked for."""
    path = root / SETTINGS
    before = read_json(path) if path.is_file() else settings
    changed = [
        f"{key}: {before.get(key)} → {settings.get(key)}"
        for key in sorted({*before, *settings})
        if before.get(key) != settings.get(key)
    ]
    require(
        not changed,
        "This dataset was simulated with other settings.",
        where=root,
        seen="; ".join(changed),
        remedy="name another folder, data.root=, or remove this one.",
    )
