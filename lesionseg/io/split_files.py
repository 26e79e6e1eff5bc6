"""Split files, which assign cases to training and validation.

Three forms are accepted: a list of folds (nnU-Net's `splits_final.json`), a single fold, and our
`splits.json` with a role per case:

    [{"train": ["P01", "P02"], "val": ["P03"]}, …]
    {"train": ["P01", "P02"], "val": ["P03"]}
    {"roles": {"P01": "train", "P03": "validation", "P04": "test"}}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lesionseg.core import Role
from lesionseg.errors import DatasetError, count, join_names, suggest
from lesionseg.io.text import read_json

SPLITS_FINAL = "splits_final.json"  # nnU-Net's name
PICKLED = "splits_final.pkl"  # version 1 of nnU-Net
_EXAMPLE = 'Write [{"train": ["P01", "P02"], "val": ["P03"]}] with the ids of your cases.'
_EXAMPLE_ROLES = 'Write {"roles": {"P01": "train", "P02": "validation"}} with your cases.'
_ROLE_OF: Mapping[str, Role] = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class SplitFile:
    """The content of a split file.

    Attributes:
        path: The file.
        folds: The role of every named case, for each fold.
        is_list: False if the file contains a single split, which has no fold number.
        divides_patients: True if the file states that it divides a patient.
    """

    path: Path
    folds: tuple[Mapping[str, Role], ...]
    is_list: bool
    divides_patients: bool = False

    def roles(self, fold: int | None = None) -> Mapping[str, Role]:
        """Return the roles of a fold, by default the first.

        Raises:
            DatasetError: The file does not contain this fold.
        """
        if fold and not self.is_list:
            raise DatasetError(
                f"{self.path}: data.fold={fold}, but this file contains a single split. Leave out "
                "data.fold."
            )
        if fold is not None and not 0 <= fold < len(self.folds):
            raise DatasetError(
                f"{self.path}: data.fold={fold} is not in the file, which contains "
                f"{count(len(self.folds), 'fold')} (0 to {len(self.folds) - 1})."
            )
        return self.folds[fold or 0]


def read_split_file(path: Path) -> SplitFile:
    """Read a split file of any accepted form.

    Raises:
        ReadError: The file is missing or not JSON.
        DatasetError: The form is unknown, a case is listed twice in a fold, or a case is in the
            validation lists of two folds.
    """
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise DatasetError(
            f"{path}: a pickle file can run programs and is not read. {_EXAMPLE} Save this as JSON "
            "and set data.splits=FILE."
        )
    content = read_json(path, unique_keys=True)
    if isinstance(content, dict) and "roles" in content:
        return SplitFile(
            path=path,
            folds=(_check_roles(path, content["roles"]),),
            is_list=False,
            divides_patients=content.get("group_safe") is False,
        )
    if isinstance(content, dict) and {"train", "val"} & content.keys():
        return SplitFile(path, (_parse_fold(path, "the split", content),), is_list=False)
    if not isinstance(content, list):
        raise DatasetError(f"{path}: this is not a split file. {_EXAMPLE}")
    if not content:
        raise DatasetError(f"{path}: the list of folds is empty. {_EXAMPLE}")
    folds = tuple(_parse_fold(path, f"fold {k}", fold) for k, fold in enumerate(content))
    _check_validation(path, folds)
    return SplitFile(path, folds, is_list=True)


def _check_roles(path: Path, roles: Any) -> dict[str, Role]:
    """Check the object `roles` of our own file and return it."""
    if not isinstance(roles, dict) or not roles:
        raise DatasetError(f'{path}: "roles" is not an object of cases and roles. {_EXAMPLE_ROLES}')
    known: dict[str, Role] = {role: role for role in get_args(Role)}
    for case, role in roles.items():
        if not isinstance(role, str) or role not in known:
            near = "validation" if role == "val" else str(role)
            raise DatasetError(
                f"{path}: the role of {case!r} is {json.dumps(role)[:40]}. A role is one of "
                f"{', '.join(known)}.{suggest(near, known)}"
            )
    return {case: known[role] for case, role in roles.items()}


def _parse_fold(path: Path, where: str, fold: Any) -> dict[str, Role]:
    """Return the role of each case in an object with the lists `train`, `val` and perhaps `test`.

    `where` names the object in messages, such as "fold 0".
    """
    if not isinstance(fold, dict):
        raise DatasetError(f"{path}: {where} is not an object with two lists of cases. {_EXAMPLE}")
    for key in ("train", "val"):
        if key not in fold:
            raise DatasetError(f'{path}: {where} has no list "{key}". {_EXAMPLE}')
    if unknown := sorted(set(fold) - set(_ROLE_OF)):
        raise DatasetError(
            f'{path}: {where} has the unknown key "{unknown[0]}". Known keys are '
            f"{', '.join(_ROLE_OF)}."
        )
    roles: dict[str, Role] = {}
    for key, cases in fold.items():
        if not isinstance(cases, list) or not all(isinstance(c, str | int) for c in cases):
            raise DatasetError(f'{path}: "{key}" of {where} is not a list of case ids. {_EXAMPLE}')
        for case in map(str, cases):
            if case in roles:
                before = next(k for k, role in _ROLE_OF.items() if role == roles[case])
                both = f'twice in "{key}"' if before == key else f'in "{before}" and in "{key}"'
                raise DatasetError(f"{path}: {where} has the case {case!r} {both}. Keep one.")
            roles[case] = _ROLE_OF[key]
    return roles


def _check_validation(path: Path, folds: tuple[Mapping[str, Role], ...]) -> None:
    """Raise `DatasetError` if a case is in the validation lists of two folds."""
    first_fold: dict[str, int] = {}
    repeated: dict[str, tuple[int, int]] = {}
    for k, roles in enumerate(folds):
        for case, role in roles.items():
            if role != "validation":
                continue
            first = first_fold.setdefault(case, k)
            if first != k:
                repeated.setdefault(case, (first, k))
    if repeated:
        one, other = next(iter(repeated.values()))
        raise DatasetError(
            f'{path}: the "val" lists of two folds share {count(len(repeated), "case")}: '
            f"{join_names(repeated)} (folds {one} and {other}). List each case in one of them, or "
            "save the fold that you want in a separate file and set data.splits=FILE."
        )
