"""Who trains, who validates, who tests: decided by group, balanced by lesions, repeatable."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.io.files import read_json
from lesionseg.plan.plan import read_record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """The role of each labelled case, and of every test or external one.

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
    """Give every labelled case a role; `counts`: the number of lesions of each.

    Stated test and external roles stay. Validation is, in this order: the file `given` (our
    splits.json, or nnU-Net's splits_final.json, first fold), nothing where `validation_fraction` is
    0, the dataset's own validation role, its lowest fold, or drawn: whole groups, that fraction of
    them and at least one, evenly over the groups by their number of lesions. With `fold` it is that
    fold: of the file, of the dataset, or of `n_folds` dealt out by lesions and then by `sizes` (a
    typical diameter a case). A single group is drawn by case (`group_safe` False, with a warning),
    a single case not at all. Raises `DatasetError` when `given` does not fit and for a fold that is
    not there, `ConfigError` when `given` or `fold` contradicts a fraction of 0.
    """
    stated, development = _stated(dataset, counts)
    rng = np.random.default_rng(seed)
    # the same with a stated validation taking part in training
    roles: dict[str, Role] = {c: "train" if r == "validation" else r for c, r in stated.items()}
    held: set[str] = set()
    if given is not None:
        roles, note = _given(stated, given, fold or 0), f"as given in {given.name}"
        note += "" if fold is None else f", fold {fold}"
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
    of_group: dict[str, set[str]] = {}
    for case in dataset.cases:
        if case.case in roles:
            of_group.setdefault(case.group or case.case, set()).add(roles[case.case])
    cut = [name for name, own in of_group.items() if {"train"} < own]
    if cut:
        other = " and ".join(sorted(of_group[cut[0]] - {"train"}))
        logger.warning(
            "Patient %s is in both training and %s, so %s scores will be too good. Add other "
            "patients, or divide by patient (data.splits, data.group).",
            *(cut[0], other, other),
        )
    return Splits(roles, not cut, seed, note)


def fold_numbers(
    dataset: Dataset, counts: Mapping[str, int], *, given: Path | None = None, n_folds: int = 5
) -> tuple[int, ...]:
    """The folds that `make_splits` can make, ascending: of the file, of the dataset, or dealt out.

    Raises `DatasetError` when `given` is one split rather than a list of folds, and when the
    dataset has a single fold or a single labelled case: nothing would be left to train on.
    """
    if given is not None:
        raw = read_json(given)
        if not isinstance(raw, list):
            raise DatasetError(f"{given}: a single split, not a list of folds.")
        numbers = tuple(range(len(raw)))
    else:
        development = _stated(dataset, counts)[1]
        numbers = tuple(_folds(development, counts, {}, n_folds, np.random.default_rng())[0])
    if len(numbers) < 2:
        raise DatasetError(f"{dataset.root}: cross-validation needs at least two folds.")
    return numbers


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
    """The cases of each fold, ascending, and whose folds: the dataset's, else dealt out.

    Groups sorted by lesions in blocks, by size within, are dealt at random.
    """
    folds: dict[int, set[str]] = {}
    for case in development:
        if case.fold is not None:
            folds.setdefault(case.fold, set()).add(case.case)
    if folds:
        return dict(sorted(folds.items())), "the dataset"
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


def _require_fold(fold: int, folds: Collection[int], where: Path) -> None:
    if fold not in folds:
        known = ", ".join(map(str, folds))
        raise DatasetError(f"{where}: data.fold={fold} is not one of the folds {known}.")


def roles_in(path: Path, fold: int = 0) -> dict[str, Role]:
    """Roles of our own JSON, or of one fold of nnU-Net's list."""
    raw = read_json(path)
    if isinstance(raw, list):
        _require_fold(fold, range(max(len(raw), 1)), path)
    elif fold:
        raise DatasetError(f"{path}: data.fold={fold}, but this file holds a single split.")
    try:
        if isinstance(raw, list):
            train: dict[str, Role] = dict.fromkeys(map(str, raw[fold]["train"]), "train")
            return {**train, **dict.fromkeys(map(str, raw[fold]["val"]), "validation")}
        known: dict[str, Role] = {role: role for role in get_args(Role)}
        return {str(case): known[role] for case, role in raw["roles"].items()}
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{path}: no split ({error!r}). Write {{'roles': {{'case': 'train', …}}}} or "
            "[{'train': […], 'val': […]}, …]."
        ) from error


def _given(roles: Mapping[str, Role], path: Path, fold: int) -> dict[str, Role]:
    """Roles of a file; it must name every labelled case, and may not train on a test case."""
    wanted = roles_in(path, fold)
    reserved = {c: r for c, r in roles.items() if r in ("test", "external")}
    merged = {**reserved, **wanted}
    for names, what in (
        (set(wanted) - set(roles), "names cases that have no reference here"),
        (set(roles) - set(merged), "leaves out labelled cases"),
        ({c for c, r in reserved.items() if wanted.get(c, r) != r}, "trains on test cases"),
    ):
        if names:
            raise DatasetError(f"{path}: {what}: {', '.join(sorted(names)[:5])}.")
    return merged


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
