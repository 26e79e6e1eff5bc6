"""Who trains, who validates, who tests: decided by group, balanced by lesions, repeatable."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lesionseg.core import Dataset, Role
from lesionseg.core.schema import build
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.io.atomic import read_json
from lesionseg.plan.folds import deal, pick_for_validation, units_of

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
        """The splits as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "splits.json") -> "Splits":
        """Read splits; raises `DatasetError` naming `where` when they are none."""
        try:
            return build(cls, json.loads(text))
        except (ValueError, RecursionError) as error:
            raise DatasetError(
                "The splits cannot be read.",
                where=where,
                seen=error,
                remedy="delete the file; the cases are divided again by data.splits and the seed.",
            ) from error


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
    """Give every labelled case a role.

    Roles the dataset states are kept; test and external cases are never drawn. Validation is, in
    this order: the file `given` (our splits.json, or nnU-Net's splits_final.json, first fold),
    nothing where `validation_fraction` is 0, the dataset's own validation role, its lowest fold,
    or drawn: whole groups, `validation_fraction`
    of them and at least one, spread evenly over the groups sorted by their number of lesions.
    With `fold` it is that fold: of the file, of the dataset, or of `n_folds` dealt out from all
    groups by lesion count and then by `sizes` (a typical lesion diameter a case). With a single
    group it is drawn by case (`group_safe` False, with a warning); with a single case it is empty.
    Raises `DatasetError` when `given` does not fit the dataset and for a fold that is not there,
    `ConfigError` when `given` or `fold` has validation cases and the fraction is 0.

    Args:
        dataset: its cases, with the groups, roles and folds that it states.
        burden: the number of lesions of each labelled case.
        validation_fraction: of the groups, from 0 to less than 1.
        seed: of the draw.
        given: a file that says who validates.
        fold: which fold validates, from 0; None draws.
        n_folds: how many are dealt out where neither file nor dataset has folds.
        sizes: a typical lesion diameter per case, in millimetres.
    """
    roles = _stated(dataset, burden)
    if given is not None:
        roles, note = _given(roles, given, fold or 0), f"as given in {given.name}"
        note += "" if fold is None else f", fold {fold}"
        _refuse_nothing_asked(roles, validation_fraction, f"data.splits={given}")
    elif fold is not None:
        roles, note = _kth_fold(dataset, roles, burden, sizes or {}, fold, n_folds, seed)
        _refuse_nothing_asked(roles, validation_fraction, f"data.fold={fold}")
    elif validation_fraction <= 0:
        roles, note = _all_train(roles)
    elif "validation" in roles.values():
        note = "validation as the dataset states it"
    elif any(c.fold is not None for c in dataset.cases if roles.get(c.case) == "train"):
        roles, note = _by_fold(dataset, roles)
    else:
        roles, note = _drawn(dataset, roles, burden, validation_fraction, seed)
    safe = _is_group_safe(dataset, roles)
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
    roles = _stated(dataset, burden)
    if given is not None:
        raw = read_json(given)
        if not isinstance(raw, list):
            raise DatasetError(
                "The given split is a single one.",
                where=given,
                expected='a list of folds, [{"train": […], "val": […]}, …]',
                remedy="train without data.fold, or give folds.",
            )
        numbers = tuple(range(len(raw)))
    elif stated := _stated_folds(dataset, roles):
        numbers = tuple(sorted(set(stated.values())))
    else:
        open_cases = [c for c in dataset.cases if roles.get(c.case) in ("train", "validation")]
        numbers = tuple(range(min(n_folds, len(units_of(open_cases)))))
    if len(numbers) < 2:
        raise DatasetError(
            "Cross-validation needs at least two folds.", where=dataset.root, seen=len(numbers)
        )
    return numbers


def _stated(dataset: Dataset, burden: Mapping[str, int]) -> dict[str, Role]:
    """Roles the dataset states; labelled cases without one train."""
    stated: dict[str, Role] = {}
    for case in dataset.cases:
        if case.role in ("test", "external"):
            stated[case.case] = case.role
        elif case.case in burden:
            stated[case.case] = case.role or "train"
    return stated


def _by_fold(dataset: Dataset, roles: dict[str, Role]) -> tuple[dict[str, Role], str]:
    """The lowest of the dataset's folds validates."""
    folds = _stated_folds(dataset, roles)
    return _hold_fold(roles, folds, min(folds.values()))


def _stated_folds(dataset: Dataset, roles: Mapping[str, Role]) -> dict[str, int]:
    development = [c for c in dataset.cases if roles.get(c.case) in ("train", "validation")]
    return {c.case: c.fold for c in development if c.fold is not None}


def _hold_fold(
    roles: Mapping[str, Role], folds: Mapping[str, int], fold: int
) -> tuple[dict[str, Role], str]:
    held = {case for case, number in folds.items() if number == fold}
    return _with_validation(roles, held), f"validation is fold {fold} of the dataset"


def _kth_fold(
    dataset: Dataset,
    roles: Mapping[str, Role],
    burden: Mapping[str, int],
    sizes: Mapping[str, float],
    fold: int,
    n_folds: int,
    seed: int,
) -> tuple[dict[str, Role], str]:
    """One fold of the dataset's own, or of those dealt out; a stated validation takes part."""
    open_roles: dict[str, Role] = {c: "train" if r == "validation" else r for c, r in roles.items()}
    folds = _stated_folds(dataset, roles)
    if folds:
        _require_fold(fold, max(folds.values()) + 1, dataset.root)
        return _hold_fold(open_roles, folds, fold)
    units = units_of([c for c in dataset.cases if open_roles.get(c.case) == "train"])
    _require_fold(fold, min(n_folds, len(units)), dataset.root)
    dealt = deal(units, burden, sizes, n_folds, np.random.default_rng(seed))
    held = {case for name in dealt[fold] for case in units[name]}
    note = f"fold {fold} of {n_folds}, dealt out by group, balanced by lesions and their size"
    return _with_validation(open_roles, held), note


def _require_fold(fold: int, n_folds: int, where: Path) -> None:
    if fold >= n_folds:
        raise DatasetError(
            "There is no such fold.",
            where=where,
            seen=f"data.fold={fold}",
            expected=f"0 to {n_folds - 1}: there are not more folds, or groups to fill them",
        )


def _with_validation(roles: Mapping[str, Role], held: set[str]) -> dict[str, Role]:
    return {case: "validation" if case in held else role for case, role in roles.items()}


def _given(roles: Mapping[str, Role], path: Path, fold: int) -> dict[str, Role]:
    """Roles of a file; it must name every labelled case, and may not train on a test case."""
    wanted = roles_in(read_json(path), path, fold)
    reserved = {c: r for c, r in roles.items() if r in ("test", "external")}
    merged = {**reserved, **wanted}
    unknown, missing = sorted(set(wanted) - set(roles)), sorted(set(roles) - set(merged))
    held = sorted(c for c, r in reserved.items() if wanted.get(c, r) != r)
    for names, what in (
        (unknown, "names cases that have no reference here"),
        (missing, "leaves out labelled cases"),
        (held, "trains or validates on test cases"),
    ):
        if names:
            raise DatasetError(f"The given split {what}.", where=path, seen=names[:5])
    return merged


def roles_in(raw: Any, path: Path, fold: int) -> dict[str, Role]:
    """Roles from our own JSON, or from one fold of nnU-Net's list."""
    if isinstance(raw, list):
        _require_fold(fold, max(len(raw), 1), path)
    try:
        if isinstance(raw, list):
            split = raw[fold]
            train: dict[str, Role] = dict.fromkeys(map(str, split["train"]), "train")
            return {**train, **dict.fromkeys(map(str, split["val"]), "validation")}
        return _checked_roles(raw["roles"])
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise DatasetError(
            "The given split cannot be used.",
            where=path,
            seen=repr(error),
            expected='{"roles": {"case": "train", …}} or [{"train": […], "val": […]}, …]',
        ) from error


def _checked_roles(raw: Mapping[str, str]) -> dict[str, Role]:
    known: dict[str, Role] = {role: role for role in get_args(Role)}
    return {str(case): known[role] for case, role in raw.items()}


def _all_train(roles: Mapping[str, Role]) -> tuple[dict[str, Role], str]:
    """No validation, whatever roles or folds the dataset states."""
    stated = [case for case, role in roles.items() if role == "validation"]
    if stated:
        logger.warning(
            "data.validation_fraction=0: %d cases train that the dataset keeps for validation.",
            len(stated),
        )
    open_roles: dict[str, Role] = {c: "train" if r == "validation" else r for c, r in roles.items()}
    return open_roles, "no validation was asked for"


def _refuse_nothing_asked(roles: Mapping[str, Role], fraction: float, asked: str) -> None:
    """A split with a validation side contradicts a fraction of 0."""
    if fraction <= 0 and "validation" in roles.values():
        raise ConfigError(
            "One setting asks for validation cases, another for none.",
            where="data.validation_fraction",
            seen=f"0 with {asked}",
            remedy="leave data.validation_fraction out, or train on every case without the other.",
        )


def _drawn(
    dataset: Dataset, roles: dict[str, Role], burden: Mapping[str, int], fraction: float, seed: int
) -> tuple[dict[str, Role], str]:
    """Draw validation among the training cases, by group where there are two."""
    pool = [c for c in dataset.cases if roles.get(c.case) == "train"]
    if len(pool) < 2:
        logger.warning("A single labelled case: it trains, and nothing is left to validate on.")
        return roles, "a single labelled case: no validation"
    units = units_of(pool)
    held = pick_for_validation(units, burden, fraction, np.random.default_rng(seed))
    kind = "groups" if len({c.group for c in pool}) > 1 else "cases of the only group"
    cases = {case for name in held for case in units[name]}
    note = f"{len(held)} of {len(units)} {kind} drawn for validation, balanced by lesions"
    return _with_validation(roles, cases), note


def _is_group_safe(dataset: Dataset, roles: Mapping[str, Role]) -> bool:
    """Whether no group both trains and is scored on."""
    sides: dict[str, set[bool]] = {}
    for case in dataset.cases:
        if case.case in roles:
            sides.setdefault(case.group or case.case, set()).add(roles[case.case] == "train")
    return all(len(side) == 1 for side in sides.values())
