"""Cases a comparison of trainings learns from and is scored on, and what was found there."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lesionseg.config import DataConfig
from lesionseg.io.files import read_csv
from lesionseg.io.layouts import read_dataset
from lesionseg.pipeline.survey import Survey


@dataclass(frozen=True)
class HeldOut:
    """How a dataset is divided: `role` is scored, every other development case teaches."""

    data: DataConfig
    role: str

    def as_development(self, found: Survey) -> Survey:
        """The scored cases as validation cases, on which the strictness may be chosen."""
        roles = {
            case: "validation" if its == self.role else its
            for case, its in found.splits.roles.items()
            if its in (self.role, "train")
        }
        return replace(found, splits=replace(found.splits, roles=roles))


def held_out(
    root: Path, cache: Path, validation_fraction: float = 0.3, group: str | None = None
) -> HeldOut:
    """The test role is scored where a dataset has one, else a share of the patients.

    `group`: an expression that finds a case's patient or scan in its name, as `data.group`.
    """
    roles = {case.role for case in read_dataset(root).cases}
    role = "test" if "test" in roles else "validation"
    share = 0.0 if role == "test" else validation_fraction
    data = DataConfig.of(root=root, validation_fraction=share, cache_dir=cache, group=group)
    return HeldOut(data, role)


def cases_scored(folder: Path) -> list[dict[str, Any]]:
    """Every case of `folder/cases.csv`: its false positives, and its Dice where it has a lesion."""
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
    """Every lesion of `folder/lesions.csv`: its case, number, group and size; whether found.

    `detected_at`: the score by which it is, or None. `iou50`: whether by a mask of IoU ≥ ½.
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
        }
        for row in read_csv(folder / "lesions.csv")
    ]


def false_positives(folder: Path) -> list[float]:
    """Scores of all in `folder/candidates.csv` that find nothing, highest first."""
    rows = read_csv(folder / "candidates.csv")
    scores = [float(row["score"]) for row in rows if row["outcome"] == "false_positive"]
    return sorted(scores, reverse=True)
