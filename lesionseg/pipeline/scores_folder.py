"""The folders of scores and reports: their places, and which ones may not be replaced."""

from pathlib import Path

from lesionseg.config import has_config
from lesionseg.errors import OutputError

_FILE = "scores.json"
_OF_TRAINING = ("oof", "test")  # folders of a run directory with scores and a report


def find_scores(folder: Path) -> Path:
    """Return the folder with `scores.json` and the tables next to it.

    Args:
        folder: The output of `evaluate`, or a run directory.

    Returns:
        The folder itself or, for the run directory of a cross-validation, its folder `oof`. If
        neither has a `scores.json`, the folder itself.
    """
    out_of_fold = folder / "oof"
    has_only_oof = (out_of_fold / _FILE).is_file() and not (folder / _FILE).is_file()
    return out_of_fold if has_only_oof else folder


def require_no_run(output: Path, example: str) -> None:
    """Check that a folder does not receive the scores and the report of a training.

    Args:
        output: The output of a command that writes scores or a report.
        example: The name of a folder for the message, such as `test2`.

    Raises:
        OutputError: `output` is a run directory, or its folder `oof` or `test`.
    """
    run = output.absolute()
    if run.name in _OF_TRAINING and not has_config(run):
        run = run.parent
    if has_config(run):
        raise OutputError(
            f"output={output}: scores and report of the training in {run} would be replaced. Name "
            f"another folder, such as {run / example}."
        )
