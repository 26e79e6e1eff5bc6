"""Roles of cases, training, validation or test: by group, balanced by lesions, repeatable."""

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
    """The role of each labelled case that takes part, and of every test or external one.

    `group_safe` is False when a group has cases on both sides of training. `note` says in one
    sentence how the roles came about.
    """

    roles: Mapping[str, Role]
    group_safe: bool
    seed: int
    note: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "splits.json") -> "Splits":
        """Read splits; raises `DatasetError` naming `where` when they are none."""
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
    """Give the labelled cases their roles.

    Stated test and external roles stay. Validation is, in this order: the split file `given`, or
    the one that lies in the dataset's folder (of a list the first fold); nothing if
    `validation_fraction` is 0; the dataset's own validation role; its lowest fold; or drawn: whole
    groups, that fraction of them and at least one, evenly over the groups by their number of
    lesions. With `fold` it is that fold: of the file, of the dataset, or of `n_folds` dealt out by
    lesions and then by size. A split file is followed exactly: cases that it leaves out get no
    role. A single group is drawn by case (`group_safe` False, with a warning), a single case is
    not drawn.

    Args:
        dataset: the cases.
        counts: the number of lesions of each labelled case.
        validation_fraction: the share of the groups to draw.
        seed: of the draw.
        given: a split file that goes before the dataset's own.
        fold: the number of the fold that validates.
        n_folds: how many folds are dealt out if neither file nor dataset states folds.
        sizes: a typical lesion diameter of each case.

    Raises:
        DatasetError: if a split file or the stated folds cannot be followed, or if the fold does
            not exist.
        ConfigError: if `given` or `fold` contradicts a fraction of 0.
    """
    stated, development = _stated(dataset, counts)
    rng = np.random.default_rng(seed)
    # the same with a stated validation taking part in training
    roles = _all_train(stated)
    held: set[str] = set()
    file = given or dataset.split_file
    if file is not None:
        roles, note = _follow_noted(file, dataset, stated, fold)
        if given is None and fold is None and validation_fraction <= 0:
            roles = _all_train(roles)
            text = "data.validation_fraction=0: the validation cases of %s train, too."
            logger.warning(text, file)
            note = f"no validation was asked for; cases as given in {file.name}"
    elif fold is not None:
        folds, how = _folds(development, counts, sizes or {}, n_folds, rng)
        _require_fold(fold, folds, dataset.root)
        held, note = folds[fold], f"fold {fold} of {how}"
    elif validation_fraction <= 0:
        note = "no validation was asked for"
        if "validation" in stated.values():
            logger.warning("data.validation_fraction=0: stated validation cases train, too.")
    elif "validation" in stated.values():
        roles, note = stated, "validation as the dataset states it"
    elif any(case.fold is not None for case in development):
        folds, how = _folds(development, counts, {}, n_folds, rng)
        held, note = folds[min(folds)], f"fold {min(folds)} of {how}"
    else:
        held, note = _draw(development, counts, validation_fraction, rng)
    roles |= dict.fromkeys(held, "validation")
    if validation_fraction <= 0 and "validation" in roles.values():
        raise ConfigError(
            "data.validation_fraction=0 contradicts data.splits or data.fold: leave one out."
        )
    cut = _divided_groups(dataset, roles)
    if cut:
        name, other = next(iter(cut.items()))
        logger.warning(
            "Patient %s is in both training and %s, so %s scores will be too good. Add other "
            "patients, or divide by patient (data.splits, data.group).",
            name,
            other,
            other,
        )
    return Splits(roles, not cut, seed, note)


def _all_train(roles: Mapping[str, Role]) -> dict[str, Role]:
    """Return the roles with the validation cases as training cases."""
    return {case: "train" if role == "validation" else role for case, role in roles.items()}


def _follow_noted(
    file: Path, dataset: Dataset, stated: Mapping[str, Role], fold: int | None
) -> tuple[dict[str, Role], str]:
    """Follow a split file. Return the roles, and a note on where they come from."""
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
    """Return the folds that `make_splits` can make, ascending.

    They are those of the split file, of the dataset, or dealt out. Raises `DatasetError` if the
    file holds one split instead of a list of folds, and if there is a single fold or a single
    labelled case: nothing would be left to train on.
    """
    path = given or dataset.split_file
    if path is not None:
        file = read_split_file(path)
        if not file.is_list:
            raise DatasetError(f"{path}: a single split, not a list of folds. Leave out data.fold.")
        numbers = tuple(range(len(file.folds)))
    else:
        development = _stated(dataset, counts)[1]
        numbers = tuple(_folds(development, counts, {}, n_folds, np.random.default_rng())[0])
    if len(numbers) < 2:
        raise DatasetError(f"{path or dataset.root}: cross-validation needs at least two folds.")
    return numbers


def _divided_groups(dataset: Dataset, roles: Mapping[str, Role]) -> dict[str, str]:
    """Return each group that has cases in training and in other roles, with those roles."""
    of_group: dict[str, set[str]] = {}
    for case in dataset.cases:
        if case.case in roles:
            of_group.setdefault(case.group or case.case, set()).add(roles[case.case])
    return {
        name: " and ".join(sorted(own - {"train"}))
        for name, own in of_group.items()
        if {"train"} < own
    }


def _stated(dataset: Dataset, counts: Mapping[str, int]) -> tuple[dict[str, Role], list[CaseFiles]]:
    """Roles the dataset states, labelled cases without one training; what is not for testing."""
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
    """Return the cases of each fold, ascending, and whose folds they are.

    They are the dataset's. If it states none, groups are sorted by lesions in blocks, within a
    block by size, and dealt at random.
    """
    if folds := _stated_folds(development):
        return folds, "the dataset"
    units, weight = _units(development, counts, rng)
    size = {n: float(np.median([sizes.get(c, 0.0) for c in cases])) for n, cases in units.items()}
    free = [name for name in weight if weight[name] == 0]
    rest = list(weight)[len(free) :]
    wide = n_folds * max(1, round(len(rest) / (3 * n_folds)))  # three classes or so
    classes = [free, *(rest[i : i + wide] for i in range(0, len(rest), wide))]
    ordered = [name for members in classes for name in sorted(members, key=lambda n: size[n])]
    hands: list[set[str]] = [set() for _ in range(n_folds)]
    for start in range(0, len(ordered), n_folds):
        block = ordered[start : start + n_folds]
        for name, hand in zip(block, rng.permutation(n_folds), strict=False):
            hands[int(hand)].update(units[name])
    how = f"{n_folds}, dealt out by group, balanced by lesions and their size"
    return dict(enumerate(hand for hand in hands if hand)), how


def _stated_folds(development: Sequence[CaseFiles]) -> dict[int, set[str]]:
    """Return the cases of each fold that the dataset states, ascending; empty if it states none.

    Cases without a fold train in every fold. Raises `DatasetError` if a patient has cases in two
    folds.
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
    if fold not in folds:
        known = ", ".join(map(str, folds))
        raise DatasetError(f"{where}: data.fold={fold} is not one of the folds {known}.")


def _follow(
    file: SplitFile, dataset: Dataset, stated: Mapping[str, Role], fold: int | None
) -> dict[str, Role]:
    """Return the roles of one fold of a split file, and those of test cases that it leaves out.

    Labelled cases that it leaves out get no role. Raises `DatasetError` if it names cases without
    a reference, trains or selects on test cases, trains on no case, or divides a patient.
    """
    where = f"{file.path}: fold {fold or 0}" if file.is_list else f"{file.path}: the split"
    wanted = file.roles(fold)
    _require_known(where, wanted, dataset, stated)
    reserved = {case: role for case, role in stated.items() if role in ("test", "external")}
    if moved := [case for case, role in reserved.items() if wanted.get(case, role) != role]:
        raise DatasetError(
            f"{where} uses {count(len(moved), 'test case')} of {dataset.root} otherwise: "
            f"{join_names(moved)}. Take them out of the file."
        )
    if "train" not in wanted.values():
        raise DatasetError(f'{where} trains on no case. List cases in "train".')
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
            f"{join_names(unlabelled)}. Add the references, or take the cases out of the file."
        )
    plain = path_id(Path(Path(unknown[0]).name))  # without a suffix and a channel number
    near = f" Did you mean {plain!r}?" if plain in stated else suggest(unknown[0], sorted(stated))
    raise DatasetError(
        f"{where} names {count(len(unknown), 'case')} that {dataset.root} does not have: "
        f"{join_names(unknown)}. Correct the ids.{near}"
    )


def _units(
    pool: Sequence[CaseFiles], counts: Mapping[str, int], rng: np.random.Generator
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Cases that stay together, and the lesions of each such unit, fewest first, ties at random."""
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
    """The validation cases, and how they were drawn.

    One group at random from each of n equal blocks of the groups by count. Both sides get a lesion
    where two groups have one: without, training or choosing an operating point is impossible.
    """
    if len(pool) < 2:
        logger.warning("There is only one labelled case, so there is no validation.")
        return set(), "a single labelled case: no validation"
    units, weight = _units(pool, counts, rng)
    ordered, n = list(weight), min(max(round(fraction * len(weight)), 1), len(weight) - 1)
    held = [ordered[int(rng.choice(b))] for b in np.array_split(np.arange(len(ordered)), n)]
    with_lesions = [name for name in ordered if weight[name] > 0]
    if len(with_lesions) > 1 and not set(held) & set(with_lesions):
        held[-1] = with_lesions[int(rng.integers(len(with_lesions)))]
    if with_lesions and set(with_lesions) <= set(held):
        # training keeps the one with the most lesions; a lesion-free one validates in its place
        most = max(held, key=lambda name: weight[name])
        free = [name for name in ordered if name not in held]
        held = [name for name in held if name != most] + free[:1]
    kind = "groups" if len({c.group for c in pool}) > 1 else "cases of the only group"
    note = f"{len(held)} of {len(units)} {kind} drawn for validation, balanced by lesions"
    return {case for name in held for case in units[name]}, note
