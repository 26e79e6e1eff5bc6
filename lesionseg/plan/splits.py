"""Who trains, who validates, who tests: decided by group, balanced by lesions, repeatable."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.errors import DatasetError
from lesionseg.io.atomic import read_json

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
            raw = json.loads(text)
            return cls(_checked_roles(raw["roles"]), raw["group_safe"], raw["seed"], raw["note"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError("The splits cannot be read.", where=where, seen=error) from error


def make_splits(
    dataset: Dataset,
    burden: Mapping[str, int],
    *,
    validation_fraction: float = 0.2,
    seed: int = 0,
    given: Path | None = None,
) -> Splits:
    """Give every labelled case a role; `burden` is the number of lesions of each labelled case.

    Roles the dataset states are kept; test and external cases are never drawn. Validation is, in
    this order: the file `given` (our splits.json, or nnU-Net's splits_final.json, first fold), the
    dataset's own validation role, its lowest fold, or drawn: whole groups, `validation_fraction`
    of them and at least one, spread evenly over the groups sorted by their number of lesions.
    With a single group it is drawn by case (`group_safe` False, with a warning); with a single
    case it is empty. Raises `DatasetError` when `given` does not fit the dataset.
    """
    roles = _stated(dataset, burden)
    if given is not None:
        roles, note = _given(roles, given), f"as given in {given.name}"
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
    folds = {c.case: c.fold for c in dataset.cases if roles.get(c.case) == "train"}
    first = min(fold for fold in folds.values() if fold is not None)
    held = {case for case, fold in folds.items() if fold == first}
    return _with_validation(roles, held), f"validation is fold {first} of the dataset"


def _with_validation(roles: Mapping[str, Role], held: set[str]) -> dict[str, Role]:
    return {case: "validation" if case in held else role for case, role in roles.items()}


def _given(roles: Mapping[str, Role], path: Path) -> dict[str, Role]:
    """Roles of a file; it must name every labelled case, and may not train on a test case."""
    wanted = _roles_in(read_json(path), path)
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


def _roles_in(raw: Any, path: Path) -> dict[str, Role]:
    """Roles from our own JSON, or from the first fold of nnU-Net's list."""
    try:
        if isinstance(raw, list):
            fold = raw[0]
            train: dict[str, Role] = dict.fromkeys(map(str, fold["train"]), "train")
            return {**train, **dict.fromkeys(map(str, fold["val"]), "validation")}
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


def _drawn(
    dataset: Dataset,
    roles: dict[str, Role],
    burden: Mapping[str, int],
    fraction: float,
    seed: int,
) -> tuple[dict[str, Role], str]:
    """Draw validation among the training cases, by group where there are two."""
    pool = [c for c in dataset.cases if roles.get(c.case) == "train"]
    if fraction <= 0:
        return roles, "no validation was asked for"
    if len(pool) < 2:
        logger.warning("A single labelled case: it trains, and nothing is left to validate on.")
        return roles, "a single labelled case: no validation"
    units = _units(pool)
    held = _pick(units, burden, fraction, np.random.default_rng(seed))
    kind = "groups" if len({c.group for c in pool}) > 1 else "cases of the only group"
    cases = {case for name in held for case in units[name]}
    note = f"{len(held)} of {len(units)} {kind} drawn for validation, balanced by lesions"
    return _with_validation(roles, cases), note


def _units(pool: Sequence[CaseFiles]) -> dict[str, list[str]]:
    """What is drawn as a whole: groups, or cases when there is but one group."""
    if len({c.group or c.case for c in pool}) < 2:
        return {c.case: [c.case] for c in pool}
    units: dict[str, list[str]] = {}
    for case in pool:
        units.setdefault(case.group or case.case, []).append(case.case)
    return units


def _pick(
    units: Mapping[str, Sequence[str]],
    burden: Mapping[str, int],
    fraction: float,
    rng: np.random.Generator,
) -> list[str]:
    """Units for validation: one at random from each of n equal blocks of the units by burden.

    Both sides get a lesion where two units have one: without, training or choosing an operating
    point is impossible.
    """
    weight = {name: sum(burden[case] for case in cases) for name, cases in units.items()}
    names = sorted(weight)
    shuffled = [names[i] for i in rng.permutation(len(names))]
    ordered = sorted(shuffled, key=lambda name: weight[name])
    n = min(max(round(fraction * len(ordered)), 1), len(ordered) - 1)
    blocks = np.array_split(np.arange(len(ordered)), n)
    held = [ordered[int(rng.choice(block))] for block in blocks]
    with_lesions = [name for name in ordered if weight[name] > 0]
    if len(with_lesions) > 1 and not set(held) & set(with_lesions):
        held[-1] = with_lesions[int(rng.integers(len(with_lesions)))]
    if with_lesions and set(with_lesions) <= set(held):
        return _without_a_lesion_unit(held, ordered, weight)
    return held


def _without_a_lesion_unit(
    held: list[str], ordered: Sequence[str], weight: Mapping[str, int]
) -> list[str]:
    """Training keeps the unit with the most lesions; a lesion-free one validates in its place."""
    most = max(held, key=lambda name: weight[name])
    free = [name for name in ordered if name not in held]
    return [name for name in held if name != most] + free[:1]


def _is_group_safe(dataset: Dataset, roles: Mapping[str, Role]) -> bool:
    """Whether no group both trains and is scored on."""
    sides: dict[str, set[bool]] = {}
    for case in dataset.cases:
        if case.case in roles:
            sides.setdefault(case.group or case.case, set()).add(roles[case.case] == "train")
    return all(len(side) == 1 for side in sides.values())
