"""The files of a bundle: where they are in a folder, without reading them."""

from pathlib import Path

from lesionseg.errors import BundleError

WEIGHTS, PLAN, CARD = "weights.safetensors", "plan.json", "model_card.md"
_SHOWN = 8  # names of a wrong folder in the message


def resolve_bundle(path: Path) -> Path:
    """Return the bundle's folder: `path` itself, or `bundle` inside the run directory `path`.

    Raises `BundleError` if neither contains weights and plan.
    """
    for folder in (path, path / "bundle"):
        if (folder / WEIGHTS).is_file() and (folder / PLAN).is_file():
            return folder
    names = sorted(p.name for p in path.iterdir())[:_SHOWN] if path.is_dir() else ["no folder"]
    if (path / "config.yaml").is_file():
        raise BundleError(
            f"{path}: its training has not finished. The same `train` command with run_dir={path} "
            "continues it."
        )
    raise BundleError(
        f"{path}: no bundle, there is {', '.join(names) or 'nothing'}. Name the folder of a "
        f"finished training, one that contains {WEIGHTS} and {PLAN}, or an nnU-Net model folder."
    )
