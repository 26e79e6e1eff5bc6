"""Which cases `evaluate` judges: what a reference folder holds, and of which role."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import get_args

from lesionseg.core import UNKNOWN_ROLE, CaseFiles, Dataset, Role
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.io.formats.volumes import is_image_file
from lesionseg.io.layouts.conventions import read_dataset, recognised
from lesionseg.io.predictions import find_masks

_log = logging.getLogger(__name__)

UNSTATED = ("train", "validation")  # what a case without a stated role may be


def open_reference(folder: Path) -> Dataset | None:
    """The dataset that a folder holds; None for a folder of masks.

    Masks named after BIDS that lie in the folder itself are a folder of masks.
    """
    name = recognised(folder)
    if name is None or (name == "bids" and any(is_image_file(f) for f in folder.iterdir())):
        return None
    return read_dataset(folder, may_lack=True)


def cases_of(folder: Path, dataset: Dataset | None) -> list[CaseFiles]:
    """All cases with a reference; raises `DatasetError` when there is none."""
    if dataset is None:
        masks = find_masks(folder)
        return [CaseFiles(case, (), reference=path) for case, path in masks.items()]
    labelled = [c for c in dataset.cases if c.reference is not None or c.annotations]
    if not labelled:
        raise DatasetError("No case has a reference to judge by.", where=dataset.root)
    return labelled


def check_role(evaluated_on: str | None) -> None:
    """A mistyped role would pass development data off as untouched; None states none."""
    if evaluated_on is not None and evaluated_on not in get_args(Role):
        raise ConfigError(
            "There is no such role.",
            where="evaluated_on",
            seen=evaluated_on,
            expected=" or ".join(get_args(Role)),
        )


def stated_role(cases: Sequence[CaseFiles]) -> str:
    """The role that the dataset states of every one of the cases, else `unknown`."""
    stated = {c.role for c in cases}
    return (stated.pop() if len(stated) == 1 else None) or UNKNOWN_ROLE


def of_role(
    cases: Sequence[CaseFiles], predicted: Collection[str], evaluated_on: str | None
) -> list[CaseFiles]:
    """The cases to judge: of the role that is asked for, else of the roles that were predicted.

    Nothing is left out where the cases state no role. A case that states none counts as one to
    train or validate on. `external` says where the scans come from: it chooses only among cases
    some of which state it. Raises `DatasetError` when no case has the role that is asked for.
    """
    stated = {c.role for c in cases}
    if stated == {None}:
        return list(cases)
    if evaluated_on is None or (evaluated_on == "external" and "external" not in stated):
        return _of_predicted_roles(cases, predicted)
    asked = {evaluated_on} | ({None} if evaluated_on in UNSTATED else set())
    of_the_role = [c for c in cases if c.role in asked]
    if not of_the_role:
        raise DatasetError(
            "No case of the reference has this role.",
            where="evaluated_on",
            seen=evaluated_on,
            expected=" or ".join(sorted(role or UNSTATED[0] for role in stated)),
            remedy="give the role that the dataset states, or leave evaluated_on= out.",
        )
    if len(of_the_role) < len(cases):
        _log.info(
            "Judged are cases of the role %s; left out: %d of other roles. Without evaluated_on= "
            "all roles that have predictions are judged.",
            evaluated_on,
            len(cases) - len(of_the_role),
        )
    return of_the_role


def _of_predicted_roles(cases: Sequence[CaseFiles], predicted: Collection[str]) -> list[CaseFiles]:
    """The cases without those of a role of which nothing at all was predicted."""
    roles = {c.role for c in cases if c.case in predicted}
    if not roles:
        return list(cases)
    for role in {c.role: None for c in cases if c.role not in roles}:
        _log.info(
            "Left out, as none of them has a prediction: %d cases %s; evaluated_on=%s judges them.",
            sum(c.role == role for c in cases),
            f"of the role {role}" if role else "to train or validate on",
            role or UNSTATED[0],
        )
    return [c for c in cases if c.role in roles]
