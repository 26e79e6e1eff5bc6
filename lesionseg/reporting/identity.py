"""The tested program, its dataset and the date, read from scores.json and its run directory."""

from dataclasses import dataclass
from pathlib import Path

from lesionseg.errors import LesionsegError
from lesionseg.evaluation.scores import SCORES_FILE, Provenance, read_provenance
from lesionseg.io.text import read_json
from lesionseg.reporting.rendering import say, say_lines, split_lines


@dataclass(frozen=True)
class Identity:
    """The program, dataset and date of an evaluation. Unknown values are empty or None.

    Attributes:
        dataset: Name of the dataset.
        evaluated: Day of the evaluation, such as 2026-01-31.
        model: Architecture.
        digest: Digest of the bundle, as `predict` writes it into its results.
        training_patients: Number of training patients.
        training_scans: Number of training scans.
        version: Version of lesionseg that computed the scores.
        commit: Commit of lesionseg that computed the scores.
        why_model: The model that `model=auto` chose, and the reason. Empty if the user named it.
    """

    dataset: str = ""
    evaluated: str = ""
    model: str = ""
    digest: str = ""
    training_patients: int | None = None
    training_scans: int | None = None
    version: str = ""
    commit: str = ""
    why_model: str = ""

    def line(self) -> str:
        """Return the identity in one line, for the top of the page."""
        return say("identity_line", identity=self)

    def rows(self) -> list[tuple[str, str]]:
        """Return the names and values for the table about the test."""
        return split_lines(say_lines("identity_rows", identity=self))


def read_identity(scores_dir: Path, made: Provenance) -> Identity:
    """Read the identity of an evaluation.

    Args:
        scores_dir: The folder of scores.json.
        made: The provenance in scores.json. If `train` wrote the scores, missing values are read
            from the run directory.
    """
    run = read_run(scores_dir) if made.of_training else Identity()
    # scores.json may state that a number is unknown (None), which the run must not replace
    patients = run.training_patients
    if made.states("training_patients"):
        patients = made.training_patients
    scans = run.training_scans
    if made.states("training_scans"):
        scans = made.training_scans
    return Identity(
        dataset=made.dataset or run.dataset,
        evaluated=made.date,
        model=made.model or run.model,
        digest=made.bundle or run.digest,
        training_patients=patients,
        training_scans=scans,
        version=made.version,
        commit=made.commit,
        why_model=run.why_model,
    )


def read_run(folder: Path) -> Identity:
    """Read the model and its training from a run directory, or a folder one or two levels below.

    The identity is empty if the run is unfinished, or if the folder belongs to no run.
    """
    from lesionseg.inference.bundle import bundle_digest

    for run in (folder, *folder.absolute().parents[:2]):
        if not (run / "bundle" / "plan.json").is_file():
            continue
        try:
            plan = read_json(run / "bundle" / "plan.json")
            model = str(plan["architecture"]["name"])
            why_model = str(plan.get("reasons", {}).get("model", ""))
            digest = bundle_digest(run / "bundle")
            made = read_provenance(run / SCORES_FILE)
            roles = read_json(run / "splits.json")["roles"].values()
        except (LesionsegError, KeyError, TypeError, AttributeError, OSError):
            continue
        training_scans = made.training_scans
        if not made.states("training_scans"):
            training_scans = list(roles).count("train")
        return Identity(
            dataset=made.dataset,
            model=model,
            digest=digest,
            training_patients=made.training_patients,
            training_scans=training_scans,
            why_model=why_model,
        )
    return Identity()
