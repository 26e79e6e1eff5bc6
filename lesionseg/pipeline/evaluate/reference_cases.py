"""Which cases `evaluate` judges, of which role, and the predictions that belong to them."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

from lesionseg.core import UNKNOWN_ROLE, CaseFiles, Dataset, Role
from lesionseg.errors import DatasetError, one_of
from lesionseg.io.layouts.conventions import read_dataset, recognised
from lesionseg.io.predictions import find_masks, find_predictions
from lesionseg.io.volumes import is_image_file
from lesionseg.pipeline.judging.case_pairs import CasePair, openers, prediction_reader

_log = logging.getLogger(__name__)

UNSTATED = ("train", "validation")  # what a case without a stated role may be


@dataclass(frozen=True, eq=False)
class JudgedCases:
    """The cases to judge, to be paired with predictions by id.

    `dataset`: theirs; None for a folder of masks. `labelled`: ids of all cases with a reference,
    those that are not judged included. `role`: of cases that state none. `resample`: predictions on
    another grid are brought onto the reference's, else an error.
    """

    cases: Sequence[CaseFiles]
    dataset: Dataset | None
    labelled: Collection[str]
    role: str
    resample: bool

    def pairs(self, folder: Path, images: str | Path | None = None) -> list[CasePair]:
        """Each case with its prediction in `folder`; warns of those without a counterpart.

        `images`: see `openers`. Raises `DatasetError` when no prediction is a case's.
        """
        opened, files_of = openers(self.cases, self.dataset, images), find_predictions(folder)
        self._say_what_is_alone(folder, files_of)
        regions = self.dataset.regions if self.dataset else ()
        read = partial(prediction_reader, resample=self.resample, united=bool(regions))
        return [
            CasePair(
                case=files.case,
                open=opened[files.case],
                prediction=read(files_of[files.case]) if files.case in files_of else None,
                group=files.group,
                role=files.role or self.role,
                regions=regions,
            )
            for files in self.cases
        ]

    def of_reader(self, folder: Path) -> list[CasePair]:
        """The pairs of those cases alone that a reader has masks of."""
        read = find_predictions(folder)
        cases = [c for c in self.cases if c.case in read]
        return replace(self, cases=cases or self.cases).pairs(folder)

    def _say_what_is_alone(self, folder: Path, files_of: Collection[str]) -> None:
        ids = {c.case for c in self.cases}
        missing, extra = sorted(ids - {*files_of}), sorted({*files_of} - {*self.labelled})
        if len(missing) == len(ids):
            raise DatasetError(
                "No prediction has the name of a reference.",
                where=folder,
                seen=", ".join(extra[:3]),
                expected=", ".join(missing[:3]),
                remedy="name the predictions <case>_mask.* or <case>.* after the references.",
            )
        if missing:
            _log.warning("No prediction; all lesions count as missed: %s", ", ".join(missing))
        if extra:
            _log.warning("No reference; these predictions are not judged: %s", ", ".join(extra))


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
    labelled = [c for c in dataset.cases if c.is_labelled]
    if not labelled:
        raise DatasetError("No case has a reference to judge by.", where=dataset.root)
    return labelled


def check_role(evaluated_on: str | None) -> None:
    """A mistyped role would pass development data off as untouched; None states none."""
    if evaluated_on is not None:
        one_of("role", evaluated_on, get_args(Role), where="evaluated_on")


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
