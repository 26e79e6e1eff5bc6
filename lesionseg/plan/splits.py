"""Division of cases into training and validation: by group, balanced by lesions, repeatable."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.core.records import read_record
from lesionseg.errors import ConfigError, DatasetError, count, join_names, suggest
from lesionseg.io.layouts.checks import path_id
from lesionseg.io.split_files import SplitFile, read_split_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """The role of each labelled case that is used, and of each test or external case.

    `group_safe` is False if a group has cases both in training and in another role. `note`
    explains the origin of the roles in one sentence.
    """

    roles: Mapping[str, Role]
    group_safe: bool
    seed: int
    note: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "splits.json") -> "Splits":
        """Read splits. Raise `DatasetError` naming `where` and the wrong key."""
        return read_record(cls, text, where, DatasetError)


def make_splits(
    dataset: Dataset,
    counts: Mapping[str, int],
    *,
    validation_fraction: float = 0.2,
    seed: int = 0,
    given: Path | None = None,
    fold: int | None = None,
    n_folds: int = 5,
    sizes: Mapping[str, float] | None = None,
) -> Splits:
    """Assign roles to the labelled cases.

    The dataset's test and external roles are kept. The validation cases are the first of these
    that applies:

    1. those of the split file `given`, or of the split file in the dataset's folder; if it is a
       list of folds, those of the first fold
    2. none, if `validation_fraction` is 0
    3. those with the dataset's role "validation"
    4. those of the dataset's lowest fold
    5. a random draw of whole groups, at least one, that is balanced by numbers of lesions

    With `fold`, they are the cases of that fold: of the file, of the dataset, or of `n_folds`
    random folds that are balanced by numbers and sizes of lesions. A split file is followed
    exactly, so cases that it leaves out get no role. If there is a single group, its cases are
    drawn one by one (`group_safe` is False, and a warning is logged). A single case is not drawn.

    Args:
        dataset: the cases.
        counts: number of lesions of each labelled case.
        validation_fraction: share of the groups to draw.
        seed: seed of the random draw.
        given: a split file that replaces the dataset's own.
        fold: number of the validation fold.
        n_folds: number of folds if neither file nor dataset states folds.
        sizes: a typical lesion diameter of each case.

    Returns:
        The roles, with a note on their origin.

    Raises:
        DatasetError: if a split file or the dataset's folds cannot be followed, or if the fold
            does not exist.
        ConfigError: if `given` or `fold` contradicts a fraction of 0.
    """
    stated, development = _stated_roles(dataset, counts)
    rng = np.random.default_rng(seed)
    roles = _all_train(stated)
    held: set[str] = set()
    file = given or dataset.split_file
    if file is not None:
        roles, note = _follow_file(file, dataset, stated, fold)
        if given is None and fold is None and validation_fraction <= 0:
            roles = _all_train(roles)
            text = "data.validation_fraction=0: validation cases of %s are used for training."
            logger.warning(text, file)
            note = f"no validation was asked for; cases as given in {file.name}"
    elif fold is not None:
        folds, how = _folds(development, counts, sizes or {}, n_folds, rng)
        _require_fold(fold, folds, dataset.root)
        held = folds[fold]
        note = f"fold {fold} of {how}"
    elif validation_fraction <= 0:
        note = "no validation was asked for"
        if "validation" in stated.values():
            logger.warning(
                "data.validation_fraction=0: the dataset's validation cases are used for training."
            )
    elif "validation" in stated.values():
        roles = stated
        note = "validation as the dataset states it"
    elif any(case.fold is not None for case in development):
        folds, how = _folds(development, counts, {}, n_folds, rng)
        held = folds[min(folds)]
        note = f"fold {min(folds)} of {how}"
    else:
        held, note = _draw(development, counts, validation_fraction, rng)
    roles |= dict.fromkeys(held, "validation")
    if validation_fraction <= 0 and "validation" in roles.values():
        raise ConfigError(
            "data.validation_fraction=0 contradicts data.splits or data.fold. Leave out one of "
            "them."
        )
    cut = _divided_groups(dataset, roles)
    if cut:
        name, other = next(iter(cut.items()))
        logger.warning(
            "Patient %s is in both training and %s, so %s scores will be too optimistic. Add other "
            "patients, or divide by patient (data.splits, data.group).",
            name,
            other,
            other,
        )
    return Splits(roles, not cut, seed, note)


def _all_train(roles: Mapping[str, Role]) -> dict[str, Role]:
    """Return the roles with the validation cases as training cases."""
    return {case: "train" if role == "validation" else role for case, role in roles.items()}


def _follow_file(
    file: Path, dataset: Dataset, stated: Mapping[str, Role], fold: int | None
) -> tuple[dict[str, Role], str]:
    """Assign roles by a split file. Return the roles and a note on their origin."""
    roles = _follow(read_split_file(file), dataset, stated, fold)
    note = f"as given in {file.name}"
    if fold is not None:
        note += f", fold {fold}"
    n_out = len(stated.keys() - roles.keys())
    if n_out:
        note += f", which leaves out {count(n_out, 'labelled case')}"
    return roles, note


def fold_numbers(
    dataset: Dataset, counts: Mapping[str, int], *, given: Path | None = None, n_folds: int = 5
) -> tuple[int, ...]:
    """Return the numbers of the folds that `make_splits` accepts, ascending.

    They are the folds of the split file, of the dataset, or random ones. Raises `DatasetError` if
    the file contains one split instead of a list of folds, or if there are fewer than two folds.
    """
    path = given or dataset.split_file
    if path is not None:
        file = read_split_file(path)
        if not file.is_list:
            raise DatasetError(
                f"{path}: the file contains a single split, not a list of folds. Leave out "
                "data.fold."
            )
        numbers = tuple(range(len(file.folds)))
    else:
        development = _stated_roles(dataset, counts)[1]
        numbers = tuple(_folds(development, counts, {}, n_folds, np.random.default_rng())[0])
    if len(numbers) < 2:
        raise DatasetError(
            f"{path or dataset.root}: cross-validation needs at least two folds, but there is "
            f"{len(numbers)}. Leave out data.fold."
        )
    return numbers


def _divided_groups(dataset: Dataset, roles: Mapping[str, Role]) -> dict[str, str]:
    """Return the groups with cases both in training and in other roles, and these roles."""
    of_group: dict[str, set[str]] = {}
    for case in dataset.cases:
        if case.case in roles:
            of_group.setdefault(case.group or case.case, set()).add(roles[case.case])
    return {
        name: " and ".join(sorted(own - {"train"}))
        for name, own in of_group.items()
        if {"train"} < own
    }


def _stated_roles(
    dataset: Dataset, counts: Mapping[str, int]
) -> tuple[dict[str, Role], list[CaseFiles]]:
    """Return the roles that the dataset states, and the cases for training and validation.

    A labelled case without a role is a training case.
    """
    stated: dict[str, Role] = {}
    for case in dataset.cases:
        if case.role in ("test", "external"):
            stated[case.case] = case.role
        elif case.case in counts:
            stated[case.case] = case.role or "train"
    return stated, [c for c in dataset.cases if stated.get(c.case) in ("train", "validation")]


def _folds(
    development: Sequence[CaseFiles],
    counts: Mapping[str, int],
    sizes: Mapping[str, float],
    n_folds: int,
    rng: np.random.Generator,
) -> tuple[dict[int, set[str]], str]:
    """Return the cases of each fold, in ascending order, and a description of the folds.

    They are the dataset's folds, if it states any. Otherwise each fold gets groups with similar
    numbers and sizes of lesions:

    - Groups without lesions form one class. The other groups are divided by their number of lesions
      into about three classes. A group is only divided if it is the only one.
    - Groups are sorted by lesion size within a class.
    - Each block of `n_folds` consecutive groups is dealt to the folds at random, one to each.
    """
    if folds := _stated_folds(development):
        return folds, "the dataset"
    units, weight = _units(development, counts, rng)
    size = {n: float(np.median([sizes.get(c, 0.0) for c in cases])) for n, cases in units.items()}
    free = [name for name in weight if weight[name] == 0]
    others = list(weight)[len(free) :]  # `weight` begins with the groups without lesions
    # groups per class: about a third of `others`, as a multiple of n_folds
    width = n_folds * max(1, round(len(others) / (3 * n_folds)))
    classes = [free]
    for start in range(0, len(others), width):
        classes.append(others[start : start + width])
    ordered = [name for members in classes for name in sorted(members, key=size.__getitem__)]
    folds_of_groups: list[set[str]] = [set() for _ in range(n_folds)]
    for start in range(0, len(ordered), n_folds):
        block = ordered[start : start + n_folds]
        for name, fold in zip(block, rng.permutation(n_folds), strict=False):
            folds_of_groups[int(fold)].update(units[name])
    how = f"{n_folds}, drawn by group, balanced by numbers and sizes of lesions"
    return dict(enumerate(cases for cases in folds_of_groups if cases)), how


def _stated_folds(development: Sequence[CaseFiles]) -> dict[int, set[str]]:
    """Return the cases of each fold that the dataset states, in ascending order.

    Cases without a fold are training cases in each fold. Raises `DatasetError` if a patient has
    cases in two folds.
    """
    folds: dict[int, set[str]] = {}
    fold_of: dict[str, int] = {}
    n_groups = len({case.group or case.case for case in development})
    for case in development:
        if case.fold is None:
            continue
        folds.setdefault(case.fold, set()).add(case.case)
        first = fold_of.setdefault(case.group or case.case, case.fold)
        if first != case.fold and n_groups > 1:
            raise DatasetError(
                f"The patient {case.group!r} has cases in the folds {first} and {case.fold}, such "
                f"as {case.case!r}. Give all cases of a patient one fold. If every case is a "
                "patient of its own, set data.group=.+"
            )
    return dict(sorted(folds.items()))


def _require_fold(fold: int, folds: Collection[int], where: Path) -> None:
    """Raise `DatasetError` if the fold does not exist."""
    if fold not in folds:
        known = ", ".join(map(str, folds))
        raise DatasetError(
            f"{where}: data.fold={fold} does not exist. Choose one of the folds {known}."
        )


def _follow(
    file: SplitFile, dataset: Dataset, stated: Mapping[str, Role], fold: int | None
) -> dict[str, Role]:
    """Return the roles of one fold of a split file, and of test cases that it leaves out.

    Other labelled cases that it leaves out get no role. Raises `DatasetError` if it names cases
    without a reference, uses test cases for training or validation, has no training cases, or
    divides a patient.
    """
    where = f"{file.path}: fold {fold or 0}" if file.is_list else f"{file.path}: the split"
    wanted = file.roles(fold)
    _require_known(where, wanted, dataset, stated)
    reserved = {case: role for case, role in stated.items() if role in ("test", "external")}
    if moved := [case for case, role in reserved.items() if wanted.get(case, role) != role]:
        raise DatasetError(
            f"{where} uses {count(len(moved), 'test case')} of {dataset.root} for training or "
            f"validation: {join_names(moved)}. Remove them from the file."
        )
    if "train" not in wanted.values():
        raise DatasetError(f'{where} has no training cases. List cases in "train".')
    roles = {**reserved, **wanted}
    cut = _divided_groups(dataset, wanted)
    n_groups = len({case.group or case.case for case in dataset.cases if case.case in wanted})
    if cut and n_groups > 1 and not file.divides_patients:
        name, other = next(iter(cut.items()))
        own = [c.case for c in dataset.cases if (c.group or c.case) == name and c.case in wanted]
        raise DatasetError(
            f"{where} divides {count(len(cut), 'patient')}, such as {name!r}, between train and "
            f"{other}: {join_names(own)}. Give all cases of a patient one role. If every case is a "
            "patient of its own, set data.group=.+"
        )
    return roles


def _require_known(
    where: str, wanted: Mapping[str, Role], dataset: Dataset, stated: Mapping[str, Role]
) -> None:
    """Raise `DatasetError` if a split names cases that have no reference in the dataset."""
    unknown = [case for case in wanted if case not in stated]
    if not unknown:
        return
    there = {case.case for case in dataset.cases}
    if unlabelled := [case for case in unknown if case in there]:
        raise DatasetError(
            f"{where} names {count(len(unlabelled), 'case')} without a reference: "
            f"{join_names(unlabelled)}. Add the references, or remove the cases from the file."
        )
    plain = path_id(Path(Path(unknown[0]).name))  # the id of a file name
    near = f" Did you mean {plain!r}?" if plain in stated else suggest(unknown[0], sorted(stated))
    raise DatasetError(
        f"{where} names {count(len(unknown), 'case')} that {dataset.root} does not have: "
        f"{join_names(unknown)}. Correct the ids.{near}"
    )


def _units(
    pool: Sequence[CaseFiles], counts: Mapping[str, int], rng: np.random.Generator
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return the cases of each unit, and its number of lesions, fewest first, ties at random.

    A unit is a group. If there is a single group, each case is a unit.
    """
    one_group = len({c.group or c.case for c in pool}) < 2
    units: dict[str, list[str]] = {}
    for case in pool:
        units.setdefault(case.case if one_group else case.group or case.case, []).append(case.case)
    names = sorted(units)
    weight = {name: sum(counts[case] for case in units[name]) for name in names}
    shuffled = (names[i] for i in rng.permutation(len(names)))
    return units, {name: weight[name] for name in sorted(shuffled, key=weight.__getitem__)}


def _draw(
    pool: Sequence[CaseFiles], counts: Mapping[str, int], fraction: float, rng: np.random.Generator
) -> tuple[set[str], str]:
    """Draw the validation cases. Return them and a note on the draw.

    Groups are sorted by their number of lesions and divided into equal blocks. One group of each
    block is drawn at random. If two groups have lesions, training and validation both get one,
    because training and the choice of an operating point need lesions.
    """
    if len(pool) < 2:
        logger.warning("There is only one labelled case, so there is no validation.")
        return set(), "a single labelled case: no validation"
    units, weight = _units(pool, counts, rng)
    ordered = list(weight)
    n = min(max(round(fraction * len(weight)), 1), len(weight) - 1)
    held = [ordered[int(rng.choice(b))] for b in np.array_split(np.arange(len(ordered)), n)]
    with_lesions = [name for name in ordered if weight[name] > 0]
    if len(with_lesions) > 1 and not set(held) & set(with_lesions):
        held[-1] = with_lesions[int(rng.integers(len(with_lesions)))]
    if with_lesions and set(with_lesions) <= set(held):
        # the group with the most lesions is for training; a lesion-free one replaces it
        most = max(held, key=lambda name: weight[name])
        free = [name for name in ordered if name not in held]
        held = [name for name in held if name != most] + free[:1]
    kind = "groups" if len({c.group for c in pool}) > 1 else "cases of the only group"
    note = f"{len(held)} of {len(units)} {kind} drawn for validation, balanced by lesions"
    return {case for name in held for case in units[name]}, note
