"""Where scores.json is found in an output folder or a run directory."""

from pathlib import Path

_FILE = "scores.json"


def find_scores(folder: Path) -> Path:
    """Return the folder that contains `scores.json` and its tables.

    Args:
        folder: The output of `evaluate`, or a run directory.

    Returns:
        The folder itself or, for the run directory of a cross-validation, its folder `oof`. If
        neither has a `scores.json`, the folder itself.
    """
    out_of_fold = folder / "oof"
    has_only_oof = (out_of_fold / _FILE).is_file() and not (folder / _FILE).is_file()
    return out_of_fold if has_only_oof else folder
