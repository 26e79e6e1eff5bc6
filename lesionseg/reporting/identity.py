"""What was tested, when and on what: read from scores.json and from the run next to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.errors import LesionsegError, count
from lesionseg.io.files import read_json

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Identity:
    """The dataset, the date of the evaluation, the model and its training; "" or None if unknown.

    `digest`: of the bundle, as `predict` writes it into its results. `evaluated`: a day such as
    2026-01-31. `version`, `commit`: of lesionseg when the scores were made.
    """

    dataset: str = ""
    evaluated: str = ""
    model: str = ""
    digest: str = ""
    training_patients: int | None = None
    training_scans: int | None = None
    version: str = ""
    commit: str = ""

    def training(self) -> str:
        """Return the number of training patients in words."""
        scans = "" if self.training_scans is None else count(self.training_scans, "scan")
        if self.training_patients is not None:
            patients = count(self.training_patients, "patient")
            return f"trained on {patients}" + (f" ({scans})" if scans else "")
        if scans:
            return f"trained on {scans}, number of patients {UNKNOWN}"
        return f"number of training patients {UNKNOWN}"

    def line(self) -> str:
        """Return the identity in one line, with "unknown" for what is not known."""
        model = " ".join(filter(None, (self.model, self.digest))) or UNKNOWN
        parts = [f"dataset {self.dataset or UNKNOWN}", f"evaluated {self.evaluated or UNKNOWN}"]
        return " · ".join([*parts, f"model {model}", self.training()])

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values for a table."""
        made = f"lesionseg {self.version or UNKNOWN}"
        if self.commit:
            made += f", commit {self.commit}"
        return [
            ("Dataset", self.dataset or UNKNOWN),
            ("Evaluated", self.evaluated or UNKNOWN),
            ("Model", " ".join(filter(None, (self.model, self.digest))) or UNKNOWN),
            ("Training", self.training()),
            ("Made with", made),
        ]


def read_identity(scores_dir: Path, scores: Mapping[str, Any]) -> Identity:
    """Read the identity of an evaluation.

    Args:
        scores_dir: the folder of scores.json.
        scores: its content. The provenance states the identity. If `train` wrote the scores, the
            run to which the folder belongs adds what the provenance lacks.
    """
    made = scores.get("provenance") or {}
    run = read_run(scores_dir) if "training_steps" in made or "folds" in made else Identity()
    return Identity(
        dataset=str(made.get("dataset") or run.dataset),
        evaluated=str(made.get("date") or ""),
        model=str(made.get("model") or run.model),
        digest=str(made.get("bundle") or run.digest),
        training_patients=made.get("training_patients", run.training_patients),
        training_scans=made.get("training_scans", run.training_scans),
        version=str(made.get("lesionseg") or ""),
        commit=str(made.get("git_commit") or ""),
    )


def read_run(folder: Path) -> Identity:
    """Read the model and its training from the run that a folder is or belongs to.

    An unfinished run, or a folder that belongs to none, gives an empty identity.
    """
    from lesionseg.inference.bundle import bundle_digest

    for run in (folder, *folder.absolute().parents[:2]):
        if not (run / "bundle" / "plan.json").is_file():
            continue
        try:
            plan = read_json(run / "bundle" / "plan.json")
            model, digest = str(plan["architecture"]["name"]), bundle_digest(run / "bundle")
            path = run / "scores.json"
            made = read_json(path)["provenance"] if path.is_file() else {}
            roles = read_json(run / "splits.json")["roles"].values()
        except (LesionsegError, KeyError, TypeError, AttributeError, OSError):
            continue
        return Identity(
            dataset=str(made.get("dataset") or ""),
            model=model,
            digest=digest,
            training_patients=made.get("training_patients"),
            training_scans=made.get("training_scans", list(roles).count("train")),
        )
    return Identity()
