"""Split files (splits_final.json, splits.json): accepted forms, folds, roles, errors.

They assign cases to training and validation.

Three forms are accepted: a list of folds (nnU-Net's `splits_final.json`), a single fold, and our
`splits.json` with a role per case:

    [{"train": ["P01", "P02"], "val": ["P03"]}, …]
    {"train": ["P01", "P02"], "val": ["P03"]}
    {"roles": {"P01": "train", "P03": "validation", "P04": "test"}}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel, ValidationError

from lesionseg.core import Role
from lesionseg.errors import DatasetError, count, describe_misfits, join_names
from lesionseg.io.text import read_json

SPLITS_FINAL = "splits_final.json"  # nnU-Net's name
PICKLED = "splits_final.pkl"  # version 1 of nnU-Net
_EXAMPLE = 'Write [{"train": ["P01", "P02"], "val": ["P03"]}] with the ids of your cases.'
_EXAMPLE_ROLES = 'Write {"roles": {"P01": "train", "P02": "validation"}} with your cases.'


def _to_text(case: object) -> object:
    """Return an integer case id as text, as JSON may contain `12` for `"12"`.

    Other values are returned unchanged. pydantic then checks that they are texts.
    """
    return str(case) if isinstance(case, int) else case


Cases = list[Annotated[str, BeforeValidator(_to_text)]]


class _Fold(BaseModel):
    """The case ids of a fold as nnU-Net's file lists them. Other keys are errors."""

    model_config = ConfigDict(extra="forbid")

    train: Cases
    val: Cases
    test: Cases = []

    def roles(self, where: str) -> dict[str, Role]:
        """Return the role of each case: train, validation or test.

        Raise `DatasetError` if a case is listed twice. `where` names file and fold in the message.
        """
        roles: dict[str, Role] = {}
        lists: dict[Role, Cases] = {"train": self.train, "validation": self.val, "test": self.test}
        for role, cases in lists.items():
            for case in cases:
                if case in roles:
                    raise DatasetError(
                        f"{where} has the case {case!r} twice: as {roles[case]} and as {role}. "
                        "Keep one."
                    )
                roles[case] = role
        return roles


class _Roles(BaseModel):
    """The content of `splits.json`, the form of lesionseg.

    `group_safe` is False if the cases of one patient have different roles.
    """

    roles: dict[str, Role] = Field(min_length=1)
    group_safe: bool = True


_Folds = RootModel[Annotated[list[_Fold], Field(min_length=1)]]


@dataclass(frozen=True)
class SplitFile:
    """The content of a split file.

    Attributes:
        path: The file.
        folds: For each fold, the role of every case that the file names.
        is_list: False if the file contains a single split, which has no fold number.
        divides_patients: True if the file says that the cases of one patient have different roles.
    """

    path: Path
    folds: tuple[Mapping[str, Role], ...]
    is_list: bool
    divides_patients: bool = False

    @classmethod
    def read(cls, path: Path) -> "SplitFile":
        """Read a split file of any accepted form.

        Raises:
            ReadError: If the file is missing or not JSON, or an object has a key twice.
            DatasetError: If the file is a pickle, its form is unknown, a case occurs twice in a
                fold, or a case is in the validation lists of two folds.
        """
        if path.suffix.lower() in (".pkl", ".pickle"):
            raise DatasetError(
                f"{path}: a pickle file can run programs and is not read. {_EXAMPLE} Save this as "
                "JSON and set data.splits=FILE."
            )
        content = read_json(path)
        has_roles = isinstance(content, dict) and "roles" in content
        is_list = isinstance(content, list)
        try:
            if has_roles:
                split = _Roles.model_validate(content)
                return cls(
                    path, folds=(split.roles,), is_list=False, divides_patients=not split.group_safe
                )
            fold_lists = _Folds.model_validate(content if is_list else [content]).root
        except ValidationError as error:
            example = _EXAMPLE_ROLES if has_roles else _EXAMPLE
            misfits = describe_misfits(error, content)[:300]  # of a file of any length
            raise DatasetError(f"{path}: this is not a split file: {misfits}. {example}") from error
        folds = tuple(fold.roles(f"{path}: fold {k}") for k, fold in enumerate(fold_lists))
        _check_validation(path, folds)
        return cls(path, folds, is_list=is_list)

    def roles(self, fold: int | None = None) -> Mapping[str, Role]:
        """Return the role of each case in a fold. None means fold 0.

        Raises:
            DatasetError: If the file does not contain this fold. A file of a single split contains
                only fold 0.
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


def _check_validation(path: Path, folds: tuple[Mapping[str, Role], ...]) -> None:
    """Raise `DatasetError` if a case is in the validation lists of two folds.

    In a cross-validation, each case may be validated only once. `folds` are the roles of the cases
    in each fold, `path` is for the message.
    """
    first_fold: dict[str, int] = {}  # of each validation case
    repeated: dict[str, tuple[int, int]] = {}  # the two folds of a repeated case
    for k, roles in enumerate(folds):
        for case, role in roles.items():
            if role != "validation":
                continue
            first = first_fold.setdefault(case, k)
            if first != k:
                repeated.setdefault(case, (first, k))
    if repeated:
        case, (one, other) = next(iter(repeated.items()))
        raise DatasetError(
            f'{path}: the "val" lists of several folds share {count(len(repeated), "case")}: '
            f"{join_names(repeated)} ({case} in folds {one} and {other}). List each case in one of "
            "them, or save the fold that you want in a separate file and set data.splits=FILE."
        )
