"""The first look at a dataset: simulate or read it, refuse bad cases, count lesions, divide."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from lesionseg.core import CaseFiles, Dataset
from lesionseg.errors import DatasetError, LesionsegError, OutputError, require
from lesionseg.io.atomic import read_json, write_json
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.remote.mirror import mirror
from lesionseg.io.remote.remote_folder import is_url
from lesionseg.pipeline.dataset.case_facts import FactsFolder, look_at_all
from lesionseg.pipeline.dataset.data_settings import ALL_FOLDS, DataSettings
from lesionseg.pipeline.run.cluster import EngineName, spread
from lesionseg.pipeline.run.outcome import bar
from lesionseg.plan.fingerprint import CaseFacts, Fingerprint, fingerprint_of, voxels_per_case
from lesionseg.plan.splits import Splits, fold_numbers, make_splits

log = logging.getLogger(__name__)

SETTINGS = "simulation.json"


@dataclass(frozen=True)
class Survey:
    """What is known of a dataset before anything is decided.

    `burden` and `sizes`: number and median diameter of the lesions of each labelled case. `boxed`:
    number of lesions of each case whose reference has boxes and no mask. `facts`: where what is
    known of each case is kept, its files' hash among it.
    """

    dataset: Dataset
    fingerprint: Fingerprint
    splits: Splits
    burden: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    boxed: Mapping[str, int] = field(default_factory=dict)
    facts: FactsFolder | None = None

    def of_role(self, role: str) -> tuple[CaseFiles, ...]:
        """The cases of one role, in the dataset's order."""
        return tuple(c for c in self.dataset.cases if self.splits.roles.get(c.case) == role)


def take_survey(
    data: DataSettings, seed: int, facts: Path | None = None, engine: EngineName = "local"
) -> Survey:
    """Read every case and divide the dataset. All folds: as the first one.

    Facts of cases are kept in the folder `facts` (None: nowhere). A case that they tell of is not
    read again while its files are the same. The engine "ray" has a cluster read the others, whose
    machines see dataset and `facts` under the same paths. The fingerprint is taken from development
    cases only: those a dataset calls test are read and checked, not counted. Raises `DatasetError`
    naming every bad file, an unlabelled dataset, one without any lesion, and one whose only group
    leaves nothing to validate on.
    """
    dataset = open_dataset(data)
    folder = FactsFolder(facts, dataset)
    if engine == "ray":  # what the cluster learns is kept, and known here
        unread = [files for files in dataset.cases if folder.known(files) is None]
        spread("Reading the dataset", partial(_keep_facts, folder.alone()), unread)
    known, problems = _look(folder)
    _refuse(problems, data.root)
    taken = [
        known[files.case]
        for files in dataset.cases
        if files.case in known and files.role not in ("test", "external")
    ]
    burden = {case: len(kept.diameters_mm) for case, kept in known.items()}
    sizes = {case: median(k.diameters_mm or (0.0,)) for case, k in known.items()}
    boxed = {case: burden[case] for case, kept in known.items() if kept.boxed}
    if not taken:
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
    fingerprint = fingerprint_of(dataset, taken)
    undivided = Survey(
        dataset, fingerprint, Splits({}, True, seed, ""), burden, sizes, boxed, folder
    )
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
        may_lack=data.channel_dropout > 0,
        lenient=lenient,
    )
    log.info("%s: %d cases, read as %s", dataset.name, len(dataset.cases), dataset.convention)
    if dataset.may_lack:
        _say_what_lacks(dataset, data)
    return dataset


def _say_what_lacks(dataset: Dataset, data: DataSettings) -> None:
    lacking = [files for files in dataset.cases if files.missing]
    known = [one.missing for one in data.channel_sets(dataset.channel_names)] if lacking else []
    for what, cases in (
        ("are judged by themselves", [c.case for c in lacking if c.missing in known]),
        ("are not judged (data.most_missing)", [c.case for c in lacking if c.missing not in known]),
    ):
        if cases:
            log.warning("Cases that lack a channel teach, but %s: %s", what, ", ".join(cases[:10]))


def _look(folder: FactsFolder) -> tuple[dict[str, CaseFacts], list[LesionsegError]]:
    """Facts of the labelled cases by id, and what is wrong with others."""
    cases = folder.dataset.cases
    known: dict[str, CaseFacts] = {}
    problems: list[LesionsegError] = []
    looks = look_at_all(folder, cases, voxels_per_case(len(cases)))
    with bar("Reading the dataset") as advance:
        for done, (files, kept) in enumerate(zip(cases, looks, strict=True), start=1):
            if isinstance(kept, LesionsegError):
                problems.append(kept)
            elif kept.facts is not None:
                known[files.case] = kept.facts
            advance(files.case, done, len(cases))
    return known, problems


def _keep_facts(folder: FactsFolder, cases: Sequence[CaseFiles]) -> None:
    """Keep the facts of cases; what is wrong with some is said by who asks for them."""
    for _ in look_at_all(folder, cases, 1, workers=1):
        pass


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
