"""Tested program, dataset and date on the report, read from scores.json and the run directory."""

from pathlib import Path

from lesionseg.errors import LesionsegError
from lesionseg.evaluation.scores import SCORES_FILE, Provenance, read_provenance
from lesionseg.io.model_files import ModelFiles


def read_identity(scores_dir: Path, made: Provenance) -> Provenance:
    """Return the provenance of an evaluation for the page: program, dataset and date.

    If `train` wrote the scores, values that are missing in scores.json are read from the run
    directory.

    Args:
        scores_dir: The folder of scores.json.
        made: The provenance in scores.json.
    """
    of_run = read_run(scores_dir) if made.of_training else Provenance()
    # scores.json may state that a number is unknown (None), which the run must not replace; an
    # empty text means that scores.json does not know it
    from_scores = {key: value for key, value in made if made.states(key) and value != ""}
    return of_run.model_copy(update=from_scores)


def read_run(folder: Path) -> Provenance:
    """Read the provenance of a model and its training from a run directory.

    The run directory is `folder`, or one or two levels above it. The provenance is empty if no such
    folder is a run directory, or if the run is unfinished or damaged.
    """
    from lesionseg.inference.bundle import bundle_digest  # imports torch, which takes seconds

    # scores and predictions of a training may be in subfolders of its run directory
    for run in (folder, *folder.absolute().parents[:2]):
        if not (run / "bundle" / "plan.json").is_file():
            continue
        try:
            plan = ModelFiles(run / "bundle").read_json("plan.json")
            model = str(plan["architecture"]["name"])
            why_model = str(plan.get("reasons", {}).get("model", ""))
            digest = bundle_digest(run / "bundle")
            provenance_of_scores = read_provenance(run / SCORES_FILE)
        except (LesionsegError, KeyError, TypeError, AttributeError, OSError):
            continue
        return Provenance(
            dataset=provenance_of_scores.dataset,
            model=model,
            why_model=why_model,
            bundle=digest,
            training_patients=provenance_of_scores.training_patients,
            training_scans=provenance_of_scores.training_scans,
        )
    return Provenance()
