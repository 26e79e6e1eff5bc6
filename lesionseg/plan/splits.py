"""Who trains, who validates, who tests: decided by group, balanced by lesions, repeatable."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.io.files import read_json
from lesionseg.plan.plan import read_record

logger = logging.getLogger(__name__)

Units = Mapping[str, Sequence[str]]  # cases by what is drawn as a whole


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
        """The splits as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "splits.json") -> "Splits":
        """Read splits; raises `DatasetError` naming `where` when they are none."""
        return read_record(cls, text, where, DatasetError)


def make_splits(
    dataset: Dataset,
    burden: Mapping[str, int],
    *,
    validation_fraction: float = 0.2,
    seed: int = 0,
    given: Path | None = None,
    fold: int | None = None,
    n_folds: int = 5,
    sizes: Mapping[str, float] | None = None,
) -> Splits:
    """Give every labelled case a role; `burden`: the number of lesions of each.

    Roles the dataset states are kept; test and external cases are never drawn. Validation is, in
    this order: the file `given` (our splits.json, or nnU-Net's splits_final.json, first fold),
    nothing where `validation_fraction` is 0, the dataset's own validation role, its lowest fold,
    or drawn: whole groups, `validation_fraction` of them and at least one, spread evenly over the
    groups sorted by their number of lesions. With `fold` it is that fold: of the file, of the
    dataset, or of `n_folds` dealt out from all groups by lesion count and then by `sizes` (a
    typical lesion diameter a case). With a single group it is drawn by case (`group_safe` False,
    with a warning); with a single case it is empty. Raises `DatasetError` when `given` does not fit
    the dataset and for a fold that is not there, `ConfigError` when `given` or `fold` has
    validation cases and the fraction is 0.
    """
    stated = _stated_roles(dataset, burden)
    # the same with a stated validation taking part in training
    open_roles: dict[str, Role] = {
        c: "train" if r == "validation" else r for c, r in stated.items()
    }
    folds = _stated_folds(dataset, stated)
    rng = np.random.default_rng(seed)
    held: set[str] | None = None  # the validation cases; None: the roles say it
    roles = open_roles
    if given is not None:
        roles, note = _given(stated, given, fold or 0), f"as given in {given.name}"
        note += "" if fold is None else f", fold {fold}"
    elif fold is not None and folds:
        _require_fold(fold, max(folds.values()) + 1, dataset.root)
        held, note = {c for c, k in folds.items() if k == fold}, f"fold {fold} of the dataset"
    elif fold is not None:
        units = _units([c for c in dataset.cases if open_roles.get(c.case) == "train"])
        _require_fold(fold, min(n_folds, len(units)), dataset.root)
        dealt = _deal(units, burden, sizes or {}, n_folds, rng)
        held = {case for name in dealt[fold] for case in units[name]}
        note = f"fold {fold} of {n_folds}, dealt out by group, balanced by lesions and their size"
    elif validation_fraction <= 0:
        note, n = "no validation was asked for", list(stated.values()).count("validation")
        if n:
            logger.warning(
                "data.validation_fraction=0: %d cases train that the dataset keeps for validation.",
                n,
            )
    elif "validation" in stated.values():
        roles, note = stated, "validation as the dataset states it"
    elif folds:
        lowest = min(folds.values())
        held, note = {c for c, k in folds.items() if k == lowest}, f"fold {lowest} of the dataset"
    else:
        held, note = _draw(dataset, stated, burden, validation_fraction, rng)
    if held is not None:
        roles = {case: "validation" if case in held else role for case, role in roles.items()}
    if validation_fraction <= 0 and "validation" in roles.values():
        raise ConfigError(
            "data.validation_fraction=0 contradicts data.splits or data.fold: leave one out."
        )
    sides: dict[str, set[bool]] = {}
    for case in dataset.cases:
        if case.case in roles:
            sides.setdefault(case.group or case.case, set()).add(roles[case.case] == "train")
    safe = all(len(side) == 1 for side in sides.values())
    if not safe:
        logger.warning("A group has cases on both sides of the split: scores will be optimistic.")
    return Splits(roles, safe, seed, note)


def fold_numbers(
    dataset: Dataset, burden: Mapping[str, int], *, given: Path | None = None, n_folds: int = 5
) -> tuple[int, ...]:
    """The folds that `make_splits` can make, ascending: of the file, of the dataset, or dealt out.

    Raises `DatasetError` when `given` is one split rather than a list of folds, and when the
    dataset has a single fold or a single labelled case: nothing would be left to train on.
    """
    roles = _stated_roles(dataset, burden)
    if given is not None:
        raw = read_json(given)
        if not isinstance(raw, list):
            raise DatasetError(f"{given}: a single split, not a list of folds.")
        numbers = tuple(range(len(raw)))
    elif stated := _stated_folds(dataset, roles):
        numbers = tuple(sorted(set(stated.values())))
    else:
        development = [c for c in dataset.cases if roles.get(c.case) in ("train", "validation")]
        numbers = tuple(range(min(n_folds, len(_units(development)))))
    if len(numbers) < 2:
        raise DatasetError(f"{dataset.root}: cross-validation needs at least two folds.")
    return numbers


def roles_in(raw: Any, path: Path, fold: int) -> dict[str, Role]:
    """Roles from our own JSON, or from one fold of nnU-Net's list."""
    if isinstance(raw, list):
        _require_fold(fold, max(len(raw), 1), path)
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


def _stated_roles(dataset: Dataset, burden: Mapping[str, int]) -> dict[str, Role]:
    """Roles the dataset states; labelled cases without one train."""
    stated: dict[str, Role] = {}
    for case in dataset.cases:
        if case.role in ("test", "external"):
            stated[case.case] = case.role
        elif case.case in burden:
            stated[case.case] = case.role or "train"
    return stated


def _stated_folds(dataset: Dataset, roles: Mapping[str, Role]) -> dict[str, int]:
    development = [c for c in dataset.cases if roles.get(c.case) in ("train", "validation")]
    return {c.case: c.fold for c in development if c.fold is not None}


def _require_fold(fold: int, n_folds: int, where: Path) -> None:
    if fold >= n_folds:
        raise DatasetError(f"{where}: data.fold={fold} is not among 0 to {n_folds - 1}.")


def _given(roles: Mapping[str, Role], path: Path, fold: int) -> dict[str, Role]:
    """Roles of a file; it must name every labelled case, and may not train on a test case."""
    wanted = roles_in(read_json(path), path, fold)
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


def _units(pool: Sequence[CaseFiles]) -> dict[str, list[str]]:
    """What is drawn as a whole: groups, or cases when there is but one group."""
    if len({c.group or c.case for c in pool}) < 2:
        return {c.case: [c.case] for c in pool}
    units: dict[str, list[str]] = {}
    for case in pool:
        units.setdefault(case.group or case.case, []).append(case.case)
    return units


def _sorted_by_burden(
    units: Units, burden: Mapping[str, int], rng: np.random.Generator
) -> tuple[dict[str, int], list[str]]:
    """The lesions of each unit, and the units by their number; equal ones in random order."""
    weight = {name: sum(burden[case] for case in cases) for name, cases in units.items()}
    names = sorted(weight)
    shuffled = [names[i] for i in rng.permutation(len(names))]
    return weight, sorted(shuffled, key=lambda name: weight[name])


def _deal(
    units: Units,
    burden: Mapping[str, int],
    sizes: Mapping[str, float],
    n_folds: int,
    rng: np.random.Generator,
) -> list[list[str]]:
    """Units in `n_folds` hands: sorted by burden in blocks, by size within, dealt at random."""
    weight, by_burden = _sorted_by_burden(units, burden, rng)
    size = {n: float(np.median([sizes.get(c, 0.0) for c in cases])) for n, cases in units.items()}
    free = [name for name in by_burden if weight[name] == 0]
    rest = by_burden[len(free) :]
    wide = n_folds * max(1, round(len(rest) / (3 * n_folds)))  # about three classes of burden
    classes = [free, *(rest[i : i + wide] for i in range(0, len(rest), wide))]
    ordered = [name for members in classes for name in sorted(members, key=lambda n: size[n])]
    hands: list[list[str]] = [[] for _ in range(n_folds)]
    for start in range(0, len(ordered), n_folds):
        block = ordered[start : start + n_folds]
        for name, hand in zip(block, rng.permutation(n_folds), strict=False):
            hands[int(hand)].append(name)
    for hand in hands:  # no hand is empty where there are units enough
        fullest = max(hands, key=len)
        if not hand and len(fullest) > 1:
            hand.append(fullest.pop())
    return sorted(hands, key=lambda hand: not hand)


def _draw(
    dataset: Dataset,
    roles: Mapping[str, Role],
    burden: Mapping[str, int],
    fraction: float,
    rng: np.random.Generator,
) -> tuple[set[str], str]:
    """The validation cases, and how they were drawn among the training cases.

    One group at random from each of n equal blocks of the groups by burden. Both sides get a lesion
    where two groups have one: without, training or choosing an operating point is impossible.
    """
    pool = [c for c in dataset.cases if roles.get(c.case) == "train"]
    if len(pool) < 2:
        logger.warning("A single labelled case: it trains, and nothing is left to validate on.")
        return set(), "a single labelled case: no validation"
    units = _units(pool)
    weight, ordered = _sorted_by_burden(units, burden, rng)
    n = min(max(round(fraction * len(ordered)), 1), len(ordered) - 1)
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
