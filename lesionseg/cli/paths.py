"""Check the paths in a command's settings before heavy packages are imported.

The import of torch takes seconds. A mistyped path is an error before it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lesionseg.config import DataConfig, PathKind, Settings, is_url
from lesionseg.errors import DatasetError, OutputError, ReadError, suggest

_PATTERN = set("*?[")


def check_paths(cfg: Settings, prefix: str = "") -> None:
    """Raise a `LesionsegError` for the first path in the settings that cannot be used.

    No file is read, and URLs are not checked. The command still checks the files that it reads.
    """
    for name, field in type(cfg).model_fields.items():
        value = getattr(cfg, name)
        key = f"{prefix}{field.alias or name}"
        if isinstance(value, Settings):
            check_paths(value, f"{key}.")
        for kind in (mark for mark in field.metadata if isinstance(mark, PathKind)):
            if kind is PathKind.DATASET and isinstance(cfg, DataConfig) and cfg.phantoms:
                continue  # the scans are simulated if the folder is missing
            for place in _places(value):
                if not is_url(place):
                    _CHECKS[kind](f"{key}={place}", Path(place))


def _places(value: Any) -> tuple[str, ...]:
    """Return the paths in the value of a setting: none, one or several."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _check_is_folder(setting: str, path: Path) -> None:
    if not path.exists():
        raise DatasetError(f"{setting}: the folder does not exist.{_hint(path)}")
    if not path.is_dir():
        raise DatasetError(f"{setting} is a file. Name a folder.")


def _check_folder(setting: str, path: Path) -> None:
    _check_is_folder(setting, path)
    if next(path.iterdir(), None) is None:
        raise DatasetError(f"{setting}: the folder is empty.")


def _check_dataset(setting: str, path: Path) -> None:
    _check_is_folder(setting, path)
    from lesionseg.io.layouts import find_convention, read_dataset

    if find_convention(path) is None:
        read_dataset(path)  # it raises the error that lists the layouts


def _check_file(setting: str, path: Path) -> None:
    if not path.exists():
        raise ReadError(f"{setting}: the file does not exist.{_hint(path)}")
    if path.is_dir():
        raise ReadError(f"{setting} is a folder. Name a file.")


def _check_scans(setting: str, path: Path) -> None:
    if not path.exists():  # an empty folder passes: `predict` notes it in its log
        if not _PATTERN & set(str(path)):
            raise DatasetError(f"{setting}: the input does not exist.{_hint(path)}")
        pattern = str(path.relative_to(path.anchor))
        if next(Path(path.anchor or ".").glob(pattern), None) is None:
            raise DatasetError(f"{setting}: no file matches this pattern.")


def _check_bundle(setting: str, path: Path) -> None:
    from lesionseg.io.bundle_folder import resolve_bundle
    from lesionseg.io.nnunet_model import find_nnunet_model

    if find_nnunet_model(path) is not None:  # it may be inside an archive
        return
    if not path.exists():
        raise ReadError(f"{setting}: the folder does not exist.{_hint(path)}")
    resolve_bundle(path)


def _check_existing(setting: str, path: Path) -> None:
    if not path.exists():
        raise ReadError(f"{setting}: there is no such file or folder.{_hint(path)}")


def _check_scores(setting: str, path: Path) -> None:
    _check_folder(setting, path)
    if not (path / "scores.json").is_file():
        raise ReadError(
            f"{setting}: the folder has no scores.json. Run evaluate first and name its output."
        )


def _check_output(setting: str, path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise OutputError(f"{setting} is a file. Name a folder.")


def _hint(path: Path) -> str:
    """Return a sentence with the nearest name in the folder, or the first missing folder."""
    parent = path.absolute().parent
    if parent.is_dir():
        return suggest(path.name, (entry.name for entry in parent.iterdir()))
    existing = next(folder for folder in parent.parents if folder.is_dir())
    return f" {existing} exists, but {existing / parent.relative_to(existing).parts[0]} does not."


_CHECKS: Mapping[PathKind, Callable[[str, Path], None]] = {
    PathKind.DATASET: _check_dataset,
    PathKind.FOLDER: _check_folder,
    PathKind.FILE: _check_file,
    PathKind.SCANS: _check_scans,
    PathKind.BUNDLE: _check_bundle,
    PathKind.EXISTING: _check_existing,
    PathKind.SCORES: _check_scores,
    PathKind.OUTPUT: _check_output,
}
