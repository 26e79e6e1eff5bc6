"""The cases of a comparison: those for training, those that are scored, and their results."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.config import DataConfig
from lesionseg.core import Role
from lesionseg.io.layouts import read_dataset
from lesionseg.io.text import read_csv
from lesionseg.pipeline.dataset_inspection import DatasetInspection

MIN_PATIENTS = 5  # with fewer training patients, none can choose the threshold
CHOOSING: Role = "external"  # role of the cases on which a threshold is chosen


@dataclass(frozen=True)
class HeldOut:
    """A division of a dataset for a comparison of trainings.

    Attributes:
        data: Settings with which the dataset is read. All labels count as one.
        role: Role of the scored cases. All other development cases are for training.
    """

    data: DataConfig
    role: str

    def as_development(
        self, found: DatasetInspection, choosing_fraction: float = 0.0
    ) -> DatasetInspection:
        """Return the inspected dataset with the scored cases as validation cases.

        Args:
            found: The inspected dataset.
            choosing_fraction: Share of the training patients on whom no tool is trained, and on
                whom the threshold is chosen. With less than `MIN_PATIENTS`, it is 0.
        """
        roles = {
            case: "validation" if role == self.role else role
            for case, role in found.splits.roles.items()
            if role in (self.role, "train")
        }
        patients = sorted({files.patient for files in found.of_role("train")})
        if len(patients) >= MIN_PATIENTS:
            order = np.random.default_rng(0).permutation(len(patients))
            chosen = {patients[i] for i in order[: round(choosing_fraction * len(patients))]}
            for files in found.of_role("train"):
                if files.patient in chosen:
                    roles[files.case] = CHOOSING
        return replace(found, splits=replace(found.splits, roles=roles))


def held_out(
    root: Path, cache: Path, validation_fraction: float = 0.3, group: str | None = None
) -> HeldOut:
    """Divide a dataset: its test cases are scored, or a share of the patients if it has none.

    Args:
        root: Folder of the dataset.
        cache: Folder for prepared cases.
        validation_fraction: Share of the patients that is scored if the dataset has no test case.
        group: Expression that finds the patient or scan in a case's name, as `data.group`.
    """
    roles = {case.role for case in read_dataset(root).cases}
    role = "test" if "test" in roles else "validation"
    share = 0.0 if role == "test" else validation_fraction
    data = DataConfig.of(
        root=root,
        validation_fraction=share,
        cache_dir=cache,
        group=group,
        merge_labels=True,
    )
    return HeldOut(data, role)


def cases_scored(folder: Path) -> list[dict[str, Any]]:
    """Read false positives and Dice of each case of `folder/cases.csv`. No lesion: Dice is None."""
    return [
        {
            "case": row["case"],
            "group": row["group"],
            "n_false_positive": int(row["n_false_positive"]),
            "dice": float(row["dice"]) if int(row["n_lesions"]) else None,
        }
        for row in read_csv(folder / "cases.csv")
    ]


def lesions_found(folder: Path) -> list[dict[str, Any]]:
    """Read each lesion of `folder/lesions.csv`: its case, number, group, size and detection.

    `detected_at` is the score of the candidate that finds the lesion, or None. `iou50` is True if
    the mask of that candidate has an IoU of at least ½. `iou10` is True if the lesion has an
    accepted candidate of its own with an IoU of at least .1.
    """
    return [
        {
            "case": row["case"],
            "lesion": int(row["lesion"]),
            "group": row["group"],
            "diameter_mm": float(row["diameter_mm"]),
            "found": row["detected"].lower() in ("true", "1"),
            "detected_at": float(row["detected_at"]) if row["detected_at"] else None,
            "iou50": row["iou50"].lower() in ("true", "1"),
            "iou10": row["iou10"].lower() in ("true", "1"),
        }
        for row in read_csv(folder / "lesions.csv")
    ]


def false_positives(folder: Path) -> list[float]:
    """Read the scores of the false positives in `folder/candidates.csv`, highest first."""
    rows = read_csv(folder / "candidates.csv")
    scores = [float(row["score"]) for row in rows if row["outcome"] == "false_positive"]
    return sorted(scores, reverse=True)
