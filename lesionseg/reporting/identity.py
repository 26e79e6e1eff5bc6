"""What was tested, when and on what: read from scores.json and from the run next to it."""

from dataclasses import dataclass
from pathlib import Path

from lesionseg.errors import LesionsegError, count
from lesionseg.evaluation.scores import SCORES_FILE, Provenance, read_provenance
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


def read_identity(scores_dir: Path, made: Provenance) -> Identity:
    """Read the identity of an evaluation.

    Args:
        scores_dir: the folder of scores.json.
        made: the provenance that scores.json states. If `train` wrote the scores, the run to which
            the folder belongs adds what the provenance lacks.
    """
    run = read_run(scores_dir) if made.of_training else Identity()
    patients = made.training_patients
    scans = made.training_scans
    return Identity(
        dataset=made.dataset or run.dataset,
        evaluated=made.date,
        model=made.model or run.model,
        digest=made.bundle or run.digest,
        training_patients=patients if made.states("training_patients") else run.training_patients,
        training_scans=scans if made.states("training_scans") else run.training_scans,
        version=made.version,
        commit=made.commit,
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
            made = read_provenance(run / SCORES_FILE)
            roles = read_json(run / "splits.json")["roles"].values()
        except (LesionsegError, KeyError, TypeError, AttributeError, OSError):
            continue
        return Identity(
            dataset=made.dataset,
            model=model,
            digest=digest,
            training_patients=made.training_patients,
            training_scans=made.training_scans
            if made.states("training_scans")
            else list(roles).count("train"),
        )
    return Identity()
