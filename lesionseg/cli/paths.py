"""Early check of paths in settings: missing, empty, wrong kind, URL; hints for mistyped paths.

Importing torch takes seconds, and the error about a mistyped path should come before it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lesionseg.config import DataConfig, DataFolder, PathKind, Settings, is_url
from lesionseg.errors import ConfigError, DatasetError, OutputError, ReadError, suggest

S = TypeVar("S", bound=Settings)

_PATTERN = set("*?[")
_MODELS = (PathKind.BUNDLE, PathKind.WEIGHTS)
_ADDRESSES = ("hf://", "https://", "http://")  # of models
_OUTPUTS = (PathKind.OUTPUT, PathKind.OUTPUT_OR_URL)
_FILES = (".csv", ".html", ".json", ".pdf")  # suffixes of result files, besides those of images
_WITH_URL = (PathKind.DATASET, PathKind.SCANS, PathKind.OUTPUT_OR_URL)


def check_paths(cfg: Settings, prefix: str = "") -> None:
    """Check all paths in the settings, and raise a `LesionsegError` for the first that is unusable.

    The field types of the settings define the kind of each path (`PathKind`), such as a dataset or
    an output folder. Images and weights are not read, because the command checks their content. A
    bundle in a zip is unpacked into the cache. An empty path is always an error. These paths are
    not checked further:

    - a path at a URL,
    - the folder of a dataset that is simulated, or whose annotations are given separately.

    Args:
        cfg: The settings of a command or of a section.
        prefix: Is put before each key in messages, such as `data.` for the settings of a section.
    """
    # a simulated dataset may be missing, and one with separate annotations has no known layout
    is_simulated = isinstance(cfg, DataConfig) and cfg.phantoms
    has_layout = not (is_simulated or (isinstance(cfg, DataFolder) and cfg.annotations))
    for name, field in type(cfg).model_fields.items():
        value = getattr(cfg, name)
        key = f"{prefix}{field.alias or name}"
        if isinstance(value, Settings):
            check_paths(value, f"{key}.")
        for kind in field.metadata:
            if not isinstance(kind, PathKind):
                continue
            # one path, several paths, or None
            for path in [value] if isinstance(value, str) else value or ():
                _require_place(kind, key, path)
                if not is_url(path) and (kind is not PathKind.DATASET or has_layout):
                    _check_path(kind, f"{key}={path}", Path(path))


def _require_place(kind: PathKind, key: str, path: str) -> None:
    """Raise `ConfigError` if a path is empty, or a URL although the setting needs a local path."""
    if not path:  # it would otherwise mean the current folder
        raise ConfigError(
            f"{key}= is empty. Give a path. A shell variable that is not set is empty, too."
        )
    is_model = kind in _MODELS and path.startswith(_ADDRESSES)
    if is_url(path) and kind not in _WITH_URL and not is_model:
        # it would otherwise be a path, and the files go into a local folder `s3:`
        known = " Or a model at hf:// or https://." if kind in _MODELS else ""
        raise ConfigError(f"{key}={path}: this cannot be a URL. Name a local path.{known}")


def with_local_models(cfg: S) -> S:
    """Return the settings with local paths in place of models that are named by an address.

    Models are downloaded once here, so that all parts of a command use the same files.
    """
    changes: dict[str, Any] = {}
    for name, field in type(cfg).model_fields.items():
        value = getattr(cfg, name)
        if isinstance(value, Settings):
            changes[name] = with_local_models(value)
        elif value and any(kind in field.metadata for kind in _MODELS):
            is_one = isinstance(value, str)
            changes[name] = _local_path(value) if is_one else tuple(map(_local_path, value))
    return cfg.model_copy(update=changes)


def _local_path(place: str) -> str:
    """Return the local path of a model. A model at an address is downloaded first."""
    if not place.startswith(_ADDRESSES):
        return place
    from lesionseg.io.model_address import local_model

    return str(local_model(place))


def _check_path(kind: PathKind, setting: str, path: Path) -> None:
    """Raise an error that names the setting if a path is not of the required kind.

    An error of the operating system, such as a missing permission, becomes an `OutputError` or a
    `ReadError`. `setting` is the text `key=path` for the message.
    """
    try:
        if not path.exists() and not _may_be_missing(kind, path):
            raise ReadError(f"{setting}: there is no such file or folder.{_path_hint(path)}")
        if kind in _CHECKS:
            _CHECKS[kind](setting, path)
    except OSError as error:  # no permission, or a name that is too long
        place = f" at {error.filename}" if error.filename not in (None, str(path)) else ""
        kind_of_error = OutputError if kind in _OUTPUTS else ReadError
        raise kind_of_error(
            f"{setting}: {error.strerror or error}{place}. Change the permissions, or name another "
            "path."
        ) from error


def _may_be_missing(kind: PathKind, path: Path) -> bool:
    """Return True if a path of this kind need not exist as a file or folder.

    This applies to output folders, to a file name pattern or a series `folder/series=…` of scans,
    and to a bundle within a zip.
    """
    if kind is PathKind.SCANS:
        from lesionseg.io.dicom.series import split_series

        return bool(_PATTERN & set(str(path))) or split_series(path) is not None
    if kind is PathKind.BUNDLE:
        return any(parent.is_file() for parent in path.parents)
    return kind in _OUTPUTS


def _check_is_folder(setting: str, path: Path) -> None:
    """Raise `DatasetError` if a path is a file. `setting` is `key=path`, for the message."""
    if not path.is_dir():
        from lesionseg.io.results.names import OTHER_BOXES

        advice = f" {OTHER_BOXES}" if path.suffix in (".json", ".txt") else ""
        raise DatasetError(f"{setting} is a file. Name a folder.{advice}")


def _check_has_files(setting: str, path: Path) -> None:
    """Raise `DatasetError` if a path is not a folder, or if the folder is empty."""
    _check_is_folder(setting, path)
    if next(path.iterdir(), None) is None:
        raise DatasetError(f"{setting}: the folder is empty.")


def _check_dataset(setting: str, path: Path) -> None:
    """Raise `DatasetError` if a path is not a folder with a known layout of a dataset."""
    _check_is_folder(setting, path)
    from lesionseg.io.layouts import find_layout

    find_layout(path)  # it raises the error that lists the layouts


def _check_file(setting: str, path: Path) -> None:
    """Raise `ReadError` if a path that must be a file is a folder."""
    if path.is_dir():
        raise ReadError(f"{setting} is a folder. Name a file.")


def _check_scans(setting: str, path: Path) -> None:
    """Raise `DatasetError` if a path of scans is a pattern, such as `*.nii`, that no file matches.

    An empty folder passes, because `predict` reports it.
    """
    if not path.exists() and _PATTERN & set(str(path)):
        pattern = str(path.relative_to(path.anchor))  # `glob` accepts only relative patterns
        if next(Path(path.anchor or ".").glob(pattern), None) is None:
            raise DatasetError(f"{setting}: no file matches this pattern.")


def _check_bundle(setting: str, path: Path) -> None:
    """Raise an error if a path is not a bundle, a run directory with one, or an nnU-Net model."""
    from lesionseg.io.model_address import find_model

    find_model(path)  # it raises the error


def _check_scores(setting: str, path: Path) -> None:
    """Raise an error if a path is not a folder with scores, or a run directory with scores.

    The error is a `DatasetError` if the path is not a folder or the folder is empty, and a
    `ReadError` if the folder has no scores.
    """
    from lesionseg.pipeline.scores_folder import find_scores

    _check_has_files(setting, path)
    if not (find_scores(path) / "scores.json").is_file():
        raise ReadError(
            f"{setting}: the folder has no scores.json. Run evaluate first and name its output."
        )


def _check_output(setting: str, path: Path) -> None:
    """Raise `OutputError` if an output path is a file, or ends in the suffix of a result file.

    The folder need not exist.
    """
    from lesionseg.io.volumes import is_image_file

    if path.is_dir():
        return
    if is_image_file(path) or path.suffix.lower() in _FILES or path.exists():
        raise OutputError(
            f"{setting} is the name of a file. Name a folder, in which the results are written."
        )


def _path_hint(path: Path) -> str:
    """Return a sentence that helps to correct a missing path, for the error message, or "".

    If the parent folder exists, the sentence names its most similar entry, or is "" if none is
    similar. If the parent is missing or a file, it names the deepest existing folder on the path
    and the first missing folder.
    """
    parent = path.absolute().parent
    if parent.is_dir():
        return suggest(path.name, (entry.name for entry in parent.iterdir()))
    existing = next(folder for folder in parent.parents if folder.is_dir())
    first_missing = parent.relative_to(existing).parts[0]
    return f" {existing} exists, but it contains no folder {first_missing!r}."


_CHECKS: Mapping[PathKind, Callable[[str, Path], None]] = {
    PathKind.DATASET: _check_dataset,
    PathKind.FOLDER: _check_has_files,
    PathKind.FILE: _check_file,
    PathKind.SCANS: _check_scans,
    PathKind.BUNDLE: _check_bundle,
    PathKind.SCORES: _check_scores,
    PathKind.OUTPUT: _check_output,
    PathKind.OUTPUT_OR_URL: _check_output,
}
