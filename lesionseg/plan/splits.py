"""Roles and folds of cases: validation drawn by patient, balanced by lesions; split file used.

The division is repeatable.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.core.records import read_record
from lesionseg.errors import ConfigError, DatasetError, count, join_names, suggest
from lesionseg.io.case_ids import path_id
from lesionseg.io.split_files import SplitFile
from lesionseg.plan.label_balance import deal_to_folds, stratify_by_label, stratify_validation
from lesionseg.plan.rules import Decision

logger = logging.getLogger(__name__)

_TEST: tuple[Role, ...] = ("test", "external")
_HELD_OUT: tuple[Role, ...] = ("validation", *_TEST)


@dataclass(frozen=True)
class Splits:
    """The roles of cases: of all labelled cases that are used, and all test and external cases.

    `group_safe` is False if a group has cases both in training and in another role. `note` states
    the origin of the roles.
    """

    roles: Mapping[str, Role]
    group_safe: bool
    seed: int
    note: str

    def to_json(self) -> str:
        """Return the splits as JSON text for splits.json."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "splits.json") -> "Splits":
        """Read splits from JSON text. `where` is the name of the file for messages.

        Raises:
            DatasetError: If a key is missing or wrong. The message names `where` and the key.
        """
        return read_record(cls, text, where, DatasetError)


@dataclass(frozen=True)
class LesionStatistics:
    """Statistics by which splits are balanced in addition to the numbers of lesions.

    Attributes:
        sizes: Median diameter of the lesions of each case.
        labels: Label values of the lesions of each case.
    """

    sizes: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Unit:
    """Cases that are drawn together, with the number, size and labels of their lesions."""

    cases: tuple[str, ...]
    n_lesions: int
    size: float
    labels: frozenset[int]


# the roles of cases, or the cases of each fold by its number, ascending; with a note on the origin
_Roles = Decision[Mapping[str, Role]]
_Folds = Decision[Mapping[int, set[str]]]


def make_splits(
    dataset: Dataset,
    counts: Mapping[str, int],
    *,
    validation_fraction: float = 0.2,
    seed: int = 0,
    given: Path | None = None,
    fold: int | None = None,
    n_folds: int = 5,
    lesions: LesionStatistics | None = None,
) -> Splits:
    """Assign roles to the labelled cases.

    The dataset's test and external roles are kept. The first rule that applies decides which
    cases are for validation:

    1. With `fold`, the cases of that fold. The folds are those of the split file or of the dataset.
       If there are none, `n_folds` folds are drawn, balanced by numbers and sizes of lesions, or by
       labels if there are several (`label_balance.stratify_by_label`).
    2. With a split file, its validation cases. If it is a list of folds, those of the first fold.
       The file is `given` or, unless `validation_fraction` is 0, the one in the dataset's folder.
    3. With a `validation_fraction` of 0, no cases. All development cases are then for training,
       also those that the dataset, or its own split file, has for validation.
    4. The cases with the dataset's role "validation".
    5. The cases of the dataset's lowest fold.
    6. A random draw of whole groups, at least one, balanced by numbers of lesions. If there are
       several labels, validation gets each label that at least two groups have
       (`label_balance.stratify_validation`).

    A split file is followed exactly, so cases that it leaves out get no role. If there is a single
    group, its cases are drawn one by one. A single case is not drawn. A warning is logged if a
    group has cases both in training or validation and in another role. If training is one of its
    roles, `group_safe` is False.

    Args:
        dataset: The cases.
        counts: Number of lesions of each labelled case.
        validation_fraction: Share of the groups to draw.
        seed: Seed of the random draw.
        given: A split file that replaces the dataset's own.
        fold: Number of the validation fold.
        n_folds: Number of folds if neither file nor dataset states folds.
        lesions: Sizes and labels of the lesions. None: all have the same size and label.

    Returns:
        The roles, with a note on their origin.

    Raises:
        ReadError: If a split file is missing or is not JSON.
        DatasetError: If a split file or the dataset's folds cannot be followed, or if the fold
            does not exist.
        ConfigError: If `given` or `fold` contradicts a fraction of 0.
    """
    known_roles, development = _read_roles(dataset, counts)
    lesions = lesions or LesionStatistics()
    rng = np.random.default_rng(seed)
    file = given or dataset.split_file
    if file is not None:
        assigned = _follow_file(file, dataset, known_roles, fold)
        if given is None and fold is None and validation_fraction <= 0:
            assigned = _use_all_for_training(assigned.value, file)
    elif fold is not None:
        folds = _make_folds(development, counts, lesions, n_folds, rng)
        _require_fold(fold, folds.value, dataset.root)
        assigned = _validate_on_fold(fold, folds, known_roles)
    elif validation_fraction <= 0:
        assigned = _use_all_for_training(known_roles)
    elif "validation" in known_roles.values():
        assigned = Decision(known_roles, "validation cases that the dataset states")
    elif any(case.fold is not None for case in development):
        folds = Decision(_read_folds(development), "the dataset")
        assigned = _validate_on_fold(min(folds.value), folds, known_roles)
    else:
        validation, note = _draw_validation(development, counts, lesions, validation_fraction, rng)
        assigned = Decision(_assign_validation(validation, known_roles), note)
    roles = assigned.value
    if validation_fraction <= 0 and "validation" in roles.values():
        raise ConfigError(
            "data.validation_fraction=0 contradicts data.splits or data.fold. Leave out one of "
            "them."
        )
    # groups of several roles: name of the group, and the other roles as text
    divided = _find_shared_groups(dataset, roles, "train", _HELD_OUT)
    _warn_of_divided_groups(divided, "training")
    # the threshold is chosen on validation cases, so a test case of the same patient is not unseen
    of_validation = _find_shared_groups(dataset, roles, "validation", _TEST)
    without_training = {name: other for name, other in of_validation.items() if name not in divided}
    _warn_of_divided_groups(without_training, "validation")
    return Splits(roles, group_safe=not divided, seed=seed, note=assigned.reason)


def _assign_validation(
    validation: Collection[str], known_roles: Mapping[str, Role]
) -> dict[str, Role]:
    """Return the roles with these cases for validation, and other development cases for training.

    Test and external cases keep their roles.

    Args:
        validation: The validation cases.
        known_roles: The roles of the dataset.
    """
    roles = {case: "train" if role == "validation" else role for case, role in known_roles.items()}
    return roles | dict.fromkeys(validation, "validation")  # these entries replace the earlier ones


def _validate_on_fold(fold: int, folds: _Folds, known_roles: Mapping[str, Role]) -> _Roles:
    """Return the roles with one fold for validation, and all other development cases for training.

    The note names the fold and the origin of the folds.
    """
    return Decision(
        _assign_validation(folds.value[fold], known_roles), f"fold {fold} of {folds.reason}"
    )


def _use_all_for_training(roles: Mapping[str, Role], file: Path | None = None) -> _Roles:
    """Return the roles with all development cases for training, for `data.validation_fraction=0`.

    A warning is logged if the dataset, or its split file, has validation cases.

    Args:
        roles: The roles before.
        file: The dataset's split file, if the roles come from it.
    """
    if "validation" in roles.values():
        whose = "the dataset's validation cases" if file is None else f"validation cases of {file}"
        logger.warning("data.validation_fraction=0: %s are used for training.", whose)
    origin = "no validation" if file is None else f"cases of {file.name}, all for training"
    return Decision(
        _assign_validation(validation=(), known_roles=roles),
        f"{origin}, because data.validation_fraction=0",
    )


def _warn_of_divided_groups(divided: Mapping[str, str], used_for: str) -> None:
    """Warn of patients with cases in several roles, because their scores will be too optimistic.

    There is one warning for all patients with the same other roles.

    Args:
        divided: The other roles of each patient, as text.
        used_for: The role that all these patients have in common, "training" or "validation".
    """
    names_by_roles: dict[str, list[str]] = {}
    for name, other_roles in divided.items():
        names_by_roles.setdefault(other_roles, []).append(name)
    for other_roles, names in names_by_roles.items():
        logger.warning(
            "%s in both %s and %s%s. Therefore %s scores will be too optimistic. Give all cases of "
            "a patient one role (column role, data.splits), or correct the patients (column "
            "group, data.group).",
            f"{len(names)} patients are" if len(names) > 1 else f"Patient {names[0]} is",
            used_for,
            other_roles,
            f": {join_names(names)}" if len(names) > 1 else "",
            other_roles,
        )


def _follow_file(
    file: Path, dataset: Dataset, known_roles: Mapping[str, Role], fold: int | None
) -> _Roles:
    """Assign roles by a split file, which replaces the roles of the dataset.

    The rules are those of `_resolve_roles`. The note names the file, its fold and the number of
    cases that it leaves out.

    Args:
        file: The split file.
        dataset: The cases.
        known_roles: The roles of the dataset.
        fold: Number of the validation fold, if the file is a list of folds. None is the first fold.
    """
    roles = _resolve_roles(SplitFile.read(file), dataset, known_roles, fold)
    note = f"roles of {file.name}"
    if fold is not None:
        note += f", fold {fold}"
    n_without_role = len(known_roles.keys() - roles.keys())
    if n_without_role:
        note += f", which leaves out {count(n_without_role, 'labelled case')}"
    return Decision(roles, note)


def fold_numbers(
    dataset: Dataset, counts: Mapping[str, int], *, given: Path | None = None, n_folds: int = 5
) -> tuple[int, ...]:
    """Return the numbers of the folds that `make_splits` accepts, ascending, for cross-validation.

    The folds are those of the split file or of the dataset. If neither has folds, they are the
    numbers of random folds.

    Args:
        dataset: As in `make_splits`.
        counts: As in `make_splits`.
        given: As in `make_splits`.
        n_folds: As in `make_splits`.

    Raises:
        ReadError: If the split file cannot be read.
        DatasetError: If the split file contains one split instead of a list of folds, or if there
            are fewer than two folds.
    """
    path = given or dataset.split_file
    if path is not None:
        file = SplitFile.read(path)
        if not file.is_list:
            raise DatasetError(
                f"{path}: the file contains a single split, not a list of folds. Leave out "
                "data.fold."
            )
        numbers = tuple(range(len(file.folds)))
    else:
        development = _read_roles(dataset, counts)[1]
        rng = np.random.default_rng()  # any draw will do: only the numbers of the folds are used
        numbers = tuple(_make_folds(development, counts, LesionStatistics(), n_folds, rng).value)
    if len(numbers) < 2:
        raise DatasetError(
            f"{path or dataset.root}: cross-validation needs at least two folds, but there "
            f"{'is 1' if numbers else 'are none'}. Leave out data.fold."
        )
    return numbers


def _find_shared_groups(
    dataset: Dataset, roles: Mapping[str, Role], role: Role, others: Collection[Role]
) -> dict[str, str]:
    """Find the groups that have cases both in `role` and in one of the roles `others`.

    Returns:
        For each such group its roles among `others` as text, such as "test and external".
    """
    roles_of_group: dict[str, set[Role]] = {}
    for case in dataset.cases:
        if case.case in roles:
            roles_of_group.setdefault(case.patient, set()).add(roles[case.case])
    shared: dict[str, str] = {}
    for name, roles_of_cases in roles_of_group.items():
        other_roles = sorted(roles_of_cases.intersection(others))
        if role in roles_of_cases and other_roles:
            shared[name] = " and ".join(other_roles)
    return shared


def _read_roles(
    dataset: Dataset, counts: Mapping[str, int]
) -> tuple[dict[str, Role], list[CaseFiles]]:
    """Return the roles of the dataset, and its development cases (for training and validation).

    A labelled case without a role is a training case. An unlabelled case has a role only if it is a
    test or external case.

    Args:
        dataset: The cases.
        counts: Number of lesions of each labelled case; only its keys are used.
    """
    known_roles: dict[str, Role] = {}
    for case in dataset.cases:
        if case.role in _TEST:
            known_roles[case.case] = case.role
        elif case.case in counts:
            known_roles[case.case] = case.role or "train"
    return known_roles, [
        c for c in dataset.cases if known_roles.get(c.case) in ("train", "validation")
    ]


def _make_folds(
    development: Sequence[CaseFiles],
    counts: Mapping[str, int],
    lesions: LesionStatistics,
    n_folds: int,
    rng: np.random.Generator,
) -> _Folds:
    """Return the folds of the dataset or, if it has none, draw folds of groups.

    Up to `n_folds` folds are drawn, fewer if there are fewer groups. They are balanced by numbers
    and sizes of lesions or, if there are several labels, by labels. The reason of the result is the
    origin of the folds.

    Args:
        development: The cases for training and validation.
        counts: Number of lesions of each labelled case.
        lesions: Sizes and labels of the lesions.
        n_folds: Number of folds to draw.
        rng: For the random draw.
    """
    known_folds = _read_folds(development)
    if known_folds:
        return Decision(known_folds, "the dataset")
    units = _make_units(development, counts, lesions, rng)
    ordered = _order_by_lesions(units, n_folds)
    strata = [ordered]
    balance = "numbers and sizes of lesions"
    if _has_several_labels(units):
        strata = stratify_by_label(ordered, {name: unit.labels for name, unit in units.items()})
        balance = "labels"
    # with fewer groups than folds, some folds are empty; they are left out
    non_empty_folds = filter(None, deal_to_folds(strata, n_folds, rng))
    cases_of_folds = [
        {case for name in names for case in units[name].cases} for names in non_empty_folds
    ]
    origin = f"{len(cases_of_folds)} random folds of groups, balanced by {balance}"
    return Decision(dict(enumerate(cases_of_folds)), origin)


def _order_by_lesions(units: Mapping[str, _Unit], n_folds: int) -> list[str]:
    """Order groups by their lesions, so that neighbours are similar and can go to different folds.

    1. Groups without lesions come first.
    2. The remaining groups are divided by their number of lesions into about three classes, and
       each class is sorted by lesion size.

    Each class with lesions, except the last one, has a multiple of `n_folds` groups, so that each
    fold gets the same number of them.

    Args:
        units: The groups, in ascending order of their numbers of lesions.
        n_folds: Number of folds.
    """
    with_lesions = [name for name, unit in units.items() if unit.n_lesions > 0]
    # about a third of the groups with lesions, in multiples of `n_folds`
    class_size = n_folds * max(1, round(len(with_lesions) / 3 / n_folds))
    classes = [[name for name, unit in units.items() if unit.n_lesions == 0]]
    for start in range(0, len(with_lesions), class_size):
        classes.append(with_lesions[start : start + class_size])
    ordered: list[str] = []
    for members in classes:
        ordered += sorted(members, key=lambda name: units[name].size)
    return ordered


def _read_folds(development: Sequence[CaseFiles]) -> dict[int, set[str]]:
    """Return the cases of each fold of the dataset, in ascending order of fold numbers.

    Cases without a fold belong to no fold: they are always for training. The result is {} if no
    case has a fold.

    Raises:
        DatasetError: If a patient has cases in two folds. This is allowed for a single patient.
    """
    folds: dict[int, set[str]] = {}
    fold_of: dict[str, int] = {}
    n_groups = len({case.patient for case in development})
    for case in development:
        if case.fold is None:
            continue
        folds.setdefault(case.fold, set()).add(case.case)
        first_fold = fold_of.setdefault(case.patient, case.fold)
        if first_fold != case.fold and n_groups > 1:
            raise DatasetError(
                f"The patient {case.patient!r} has cases in the folds {first_fold} and "
                f"{case.fold}, such as {case.case!r}. Give all cases of a patient one fold. If "
                "every case is a patient of its own, set data.group=.+"
            )
    return dict(sorted(folds.items()))


def _require_fold(fold: int, folds: Collection[int], where: Path) -> None:
    """Raise `DatasetError` if `data.fold` is not one of the existing folds.

    Args:
        fold: The setting.
        folds: The numbers of the folds.
        where: The folder of the dataset, for the message.
    """
    if fold not in folds:
        advice = f"Choose one of the folds {', '.join(map(str, folds))}."
        if not folds:
            advice = "There are no cases for training or validation. Add some."
        raise DatasetError(f"{where}: data.fold={fold} does not exist. {advice}")


def _resolve_roles(
    file: SplitFile, dataset: Dataset, known_roles: Mapping[str, Role], fold: int | None
) -> dict[str, Role]:
    """Return the roles of one fold of a split file, after checks.

    Test cases that the file leaves out keep their role. Other labelled cases that it leaves out get
    no role.

    Args:
        file: The split file.
        dataset: The cases.
        known_roles: The roles of the dataset.
        fold: Number of the validation fold. None is the first fold, or the only split of the file.

    Raises:
        DatasetError: If one of these applies:
            - The file does not have the fold, or has no training cases.
            - The file lists cases without a reference.
            - The file gives another role to test or external cases.
            - The file divides one of several patients, and does not allow that
              (`divides_patients`).
    """
    where = f"{file.path}: fold {fold or 0}" if file.is_list else f"{file.path}: the split"
    roles_of_file = file.roles(fold)
    _require_known(where, roles_of_file, dataset, known_roles)
    test_roles = {case: role for case, role in known_roles.items() if role in _TEST}
    # the default `role`: a case that the file leaves out is not changed
    changed = [case for case, role in test_roles.items() if roles_of_file.get(case, role) != role]
    if changed:
        raise DatasetError(
            f"{where} gives another role to {count(len(changed), 'test or external case')} of "
            f"{dataset.root}: {join_names(changed)}. Remove them from the file."
        )
    if "train" not in roles_of_file.values():
        raise DatasetError(f'{where} has no training cases. List cases in "train".')
    roles = {**test_roles, **roles_of_file}
    divided = _find_shared_groups(dataset, roles_of_file, "train", _HELD_OUT)
    n_groups = len({case.patient for case in dataset.cases if case.case in roles_of_file})
    if divided and n_groups > 1 and not file.divides_patients:
        name, other = next(iter(divided.items()))  # the first one as an example
        cases_of_group = [
            c.case for c in dataset.cases if c.patient == name and c.case in roles_of_file
        ]
        raise DatasetError(
            f"{where} divides {count(len(divided), 'patient')}, such as {name!r}, between "
            f"train and {other}: {join_names(cases_of_group)}. Give all cases of a patient one "
            "role. If every case is a patient of its own, set data.group=.+"
        )
    return roles


def _require_known(
    where: str, roles_of_file: Mapping[str, Role], dataset: Dataset, known_roles: Mapping[str, Role]
) -> None:
    """Raise `DatasetError` if a split names cases that have no reference in the dataset.

    The message distinguishes cases without a reference from unknown cases.

    Args:
        where: The file and fold, for the message.
        roles_of_file: The roles of the split.
        dataset: The cases.
        known_roles: The roles of the dataset, which all labelled cases have.
    """
    unknown = [case for case in roles_of_file if case not in known_roles]
    if not unknown:
        return
    all_cases = {case.case for case in dataset.cases}
    unlabelled = [case for case in unknown if case in all_cases]
    if unlabelled:
        raise DatasetError(
            f"{where} names {count(len(unlabelled), 'case')} without a reference: "
            f"{join_names(unlabelled)}. Add the references, or remove the cases from the file."
        )
    plain = path_id(Path(Path(unknown[0]).name))  # the id of a file name
    raise DatasetError(
        f"{where} names {count(len(unknown), 'case')} that {dataset.root} does not have: "
        f"{join_names(unknown)}. Correct the ids.{suggest(plain, known_roles)}"
    )


def _make_units(
    pool: Sequence[CaseFiles],
    counts: Mapping[str, int],
    lesions: LesionStatistics,
    rng: np.random.Generator,
) -> dict[str, _Unit]:
    """Divide cases into the units that are drawn together, and return the units by name.

    A unit is a group. If there is a single group, each case is a unit. Units are in ascending order
    of their numbers of lesions. Units of equal numbers are in random order.
    """
    # cases of a single group are drawn one by one, because otherwise nothing could be drawn
    has_one_group = len({c.patient for c in pool}) < 2
    members: dict[str, list[str]] = {}
    for case in pool:
        members.setdefault(case.case if has_one_group else case.patient, []).append(case.case)
    units = {
        name: _Unit(
            cases=tuple(cases),
            n_lesions=sum(counts[case] for case in cases),
            # 0 for a case without lesions
            size=median(lesions.sizes.get(case, 0.0) for case in cases),
            labels=frozenset().union(
                # of cases with lesions; `union` without arguments is the empty set
                *(lesions.labels.get(case, ()) for case in cases if counts[case] > 0)
            ),
        )
        for name, cases in sorted(members.items())
    }
    names = list(units)
    # sorting is stable, so units of equal numbers stay in random order
    shuffled = [names[i] for i in rng.permutation(len(names))]
    return {name: units[name] for name in sorted(shuffled, key=lambda name: units[name].n_lesions)}


def _has_several_labels(units: Mapping[str, _Unit]) -> bool:
    """Return True if the lesions of all units together have at least two labels.

    Splits are then balanced by labels.
    """
    return len(frozenset().union(*(unit.labels for unit in units.values()))) > 1


def _draw_validation(
    pool: Sequence[CaseFiles],
    counts: Mapping[str, int],
    lesions: LesionStatistics,
    fraction: float,
    rng: np.random.Generator,
) -> tuple[set[str], str]:
    """Draw the validation cases. Return them, and a note on the draw for splits.json.

    1. Groups are sorted by their number of lesions and divided into equal blocks. One group of each
       block is drawn at random.
    2. If at least two groups have lesions, training and validation both get one, because training
       and the choice of an operating point need lesions. A single group with lesions is for
       training.
    3. If there are several labels, `stratify_validation` exchanges or adds groups.

    The cases of a single group are drawn like groups. A single case is not drawn, and a warning is
    logged.

    Args:
        pool: The cases for training and validation.
        counts: Number of lesions of each labelled case.
        lesions: Sizes and labels of the lesions.
        fraction: Fraction of the groups to draw. At least one group is drawn, and at least one
            remains.
        rng: For the random draw.
    """
    if len(pool) < 2:
        logger.warning("There is only one labelled case, so there is no validation.")
        return set(), "no validation, because there is a single labelled case"
    units = _make_units(pool, counts, lesions, rng)
    ordered = list(units)  # ascending numbers of lesions
    # at least one group for validation and one for training
    n_drawn = min(max(round(fraction * len(ordered)), 1), len(ordered) - 1)
    blocks = np.array_split(np.arange(len(ordered)), n_drawn)
    drawn = [ordered[int(rng.choice(block))] for block in blocks]
    with_lesions = [name for name in ordered if units[name].n_lesions > 0]
    validation_has_none = not set(drawn) & set(with_lesions)
    if len(with_lesions) > 1 and validation_has_none:
        # any drawn group may be replaced, because none of them has lesions
        drawn[-1] = with_lesions[int(rng.integers(len(with_lesions)))]
    training_has_none = set(with_lesions) <= set(drawn)
    if with_lesions and training_has_none:
        # the group with the most lesions is for training; a lesion-free one replaces it
        largest = max(drawn, key=lambda name: units[name].n_lesions)
        not_drawn = [name for name in ordered if name not in drawn]
        drawn = [name for name in drawn if name != largest] + not_drawn[:1]
    unit_labels = {name: unit.labels for name, unit in units.items()}
    drawn = stratify_validation(drawn, units=ordered, labels=unit_labels, rng=rng)
    unit_kind = "groups" if len({c.patient for c in pool}) > 1 else "cases of the only group"
    note = (
        f"{len(drawn)} of {len(units)} {unit_kind} drawn for validation, balanced by numbers of "
        "lesions"
    )
    if _has_several_labels(units):
        note += " and by labels"
    return {case for name in drawn for case in units[name].cases}, note
