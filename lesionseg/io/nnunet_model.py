"""Files of an nnU-Net v2 model: a folder of `nnUNet_results`, or a zip that nnU-Net exported.

A model folder contains `plans.json`, `dataset.json`, `fold_0/checkpoint_final.pth` and so on. A zip
contains one or more such folders. A path such as
`FILE.zip/Dataset001_X/nnUNetTrainer__nnUNetPlans__3d_fullres` names one of several. Archives are
read member by member and never unpacked to disk.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lesionseg.errors import BundleError
from lesionseg.io.limits import convert_read_errors

PLANS = "plans.json"
LABELS = "dataset.json"
CHECKPOINT = "checkpoint_final.pth"
_FOLD = re.compile(r"fold_(\d+|all)")
_MAX_BYTES = 2**33  # largest size of a checkpoint
_MAX_JSON_BYTES = 2**26
_MAX_COMPRESSION = 1100  # largest compression ratio of deflate, see `io.limits`
_ALWAYS_ALLOWED_BYTES = 2**20
# of a damaged member; RuntimeError is that of an encrypted one or of an unknown compression
_READ_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True)
class NnunetModelFiles:
    """The files of a model in a folder or in a zip.

    Attributes:
        root: The model folder, or the folder that contains the zip.
        folds: The folders of the folds to use, such as `fold_0`, in order.
        archive: The zip. None for a model folder.
        inner: The path of the model folder within the zip, empty for the zip itself.
    """

    root: Path
    folds: tuple[str, ...]
    archive: Path | None = None
    inner: str = ""

    @property
    def name(self) -> str:
        """The name of the model folder, such as `nnUNetTrainer__nnUNetPlans__3d_fullres`."""
        if self.archive is None:
            return self.root.name
        return PurePosixPath(self.inner).name or self.archive.stem

    @property
    def configuration(self) -> str:
        """The configuration in the name of the folder, empty if the name has another form."""
        parts = self.name.split("__")
        return parts[2] if len(parts) == 3 else ""

    @property
    def trainer(self) -> str:
        """The trainer in the name of the folder, empty if the name has another form."""
        parts = self.name.split("__")
        return parts[0] if len(parts) == 3 else ""

    def where(self, name: str) -> str:
        """Return the path of one of the model's files, within the zip if there is one."""
        return str((self.archive or self.root) / self.inner / name)

    def read_bytes(self, name: str, most: int = _MAX_BYTES) -> bytes:
        """Read one file. Raise `BundleError` if it is missing, damaged or larger than `most`."""
        where = self.where(name)
        try:
            if self.archive is None:
                path = self.root / name
                size = path.stat().st_size
                if size > most:
                    raise BundleError(
                        f"{where}: the file has {size} bytes, but the limit is {most}. Export the "
                        "model again."
                    )
                return path.read_bytes()
            with zipfile.ZipFile(self.archive) as archive:
                info = archive.getinfo(f"{self.inner}/{name}" if self.inner else name)
                allowed = info.compress_size * _MAX_COMPRESSION + _ALWAYS_ALLOWED_BYTES
                if info.file_size > min(most, allowed):
                    raise BundleError(
                        f"{where}: the archive states an impossible size, {info.file_size} bytes. "
                        "Export the model again."
                    )
                return archive.read(info)
        except KeyError as error:
            raise BundleError(f"{where}: this file is missing. Export the model again.") from error
        except _READ_ERRORS as error:
            raise BundleError(f"{where}: cannot be read ({error}). Copy it again.") from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object. Raise `BundleError` if the file contains anything else."""
        try:
            content = json.loads(self.read_bytes(name, _MAX_JSON_BYTES).decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{self.where(name)}: cannot be read as JSON: {error}.") from error
        if not isinstance(content, dict):
            raise BundleError(
                f"{self.where(name)}: contains a {type(content).__name__} instead of a JSON "
                "object. Export the model again."
            )
        return content

    def checkpoint(self, fold: str) -> str:
        """Return the name of a fold's checkpoint."""
        return f"{fold}/{CHECKPOINT}"


def find_nnunet_model(path: Path) -> NnunetModelFiles | None:
    """Find the files of an nnU-Net model.

    All numbered folds are used unless the path names a fold. `fold_all` is used only if no numbered
    fold exists.

    Args:
        path: A model folder, a fold in it, a zip, or a model folder or fold inside a zip.

    Returns:
        The files, or None if the path is not an nnU-Net model.

    Raises:
        BundleError: The training is unfinished, the zip is unsafe, or the zip contains several
            models and the path does not name one of them.
    """
    if path.is_dir():
        fold = _FOLD.fullmatch(path.name)
        root = path.parent if fold and not (path / PLANS).is_file() else path
        if not (root / PLANS).is_file() or not (root / LABELS).is_file():
            return None
        names = [p.name for p in root.iterdir() if (p / CHECKPOINT).is_file()]
        folds = _choose_folds(names, path.name if root != path else None)
        if not folds:
            has_begun = any((p / "checkpoint_latest.pth").is_file() for p in root.glob("fold_*"))
            reason = ", so its training has not finished" if has_begun else ""
            raise BundleError(
                f"{path}: no fold has a {CHECKPOINT}{reason}. Train at least one fold to its end "
                "with nnUNetv2_train."
            )
        return NnunetModelFiles(root, folds)
    for archive in (path, *path.parents):
        if archive.suffix == ".zip" and archive.is_file():
            return _find_in_archive(archive, path.relative_to(archive).as_posix())
    return None


def _find_in_archive(archive: Path, inner: str) -> NnunetModelFiles | None:
    """Find a model in a zip. `inner` is the path within the zip, "." if the path is the zip."""
    wanted = "" if inner == "." else inner
    with convert_read_errors(archive):
        if not zipfile.is_zipfile(archive):
            raise BundleError(f"{archive}: this is not a zip archive. Copy it again.")
        with zipfile.ZipFile(archive) as file:
            names = [name for name in file.namelist() if not name.endswith("/")]
    unsafe = [name for name in names if _is_outside(name)]
    if unsafe:
        raise BundleError(
            f"{archive}: the archive names a file outside its own folder ({unsafe[0]!r}) and was "
            "not read. Export the model again with nnUNetv2_export_model_to_zip."
        )
    models = _find_model_folders(names)
    if not models:
        return None
    wanted_folder = wanted
    wanted_fold = None
    if _FOLD.fullmatch(PurePosixPath(wanted).name):
        wanted_folder = str(PurePosixPath(wanted).parent).removeprefix(".")
        wanted_fold = PurePosixPath(wanted).name
    chosen = models
    if wanted_folder:
        # the user may leave out the upper folders of the zip
        chosen = [model for model in models if f"/{model}".endswith(f"/{wanted_folder}")]
    if len(chosen) != 1:
        possible = chosen or models
        listed = ", ".join(f"{archive}/{model}" for model in possible[:6])
        raise BundleError(
            f"{archive}: the archive has {len(models)} models. Name one of them: {listed}."
        )
    (model,) = chosen
    prefix = f"{model}/" if model else ""
    in_model = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    with_checkpoint = [name.split("/")[0] for name in in_model if name.endswith(f"/{CHECKPOINT}")]
    folds = _choose_folds(with_checkpoint, wanted_fold)
    if not folds:
        raise BundleError(f"{archive / model}: no fold has a {CHECKPOINT}. Export it again.")
    return NnunetModelFiles(archive.parent, folds, archive, model)


def _find_model_folders(names: Sequence[str]) -> list[str]:
    """Return the folders of a zip that contain plans and labels, from the names of its members.

    The folder "" is the zip itself. Folders of ensembles contain both files as well, but no
    weights.
    """
    folders: list[str] = []
    for name in names:
        path = PurePosixPath(name)
        folder = str(path.parent).removeprefix(".")
        is_ensemble = "ensembles" in path.parts
        if path.name == PLANS and not is_ensemble and str(path.parent / LABELS) in names:
            folders.append(folder)
    return folders


def _is_outside(name: str) -> bool:
    """Return True if a member of an archive would be unpacked outside the target folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts:
        return False
    is_absolute = name.startswith(("/", "\\"))
    has_drive = ":" in parts[0]  # on Windows
    return is_absolute or has_drive or ".." in parts


def _choose_folds(names: Sequence[str], wanted: str | None) -> tuple[str, ...]:
    """Choose the folds to use, in ascending order.

    If no fold is wanted, these are all numbered folds, or `fold_all` if it is the only one.
    """
    # fold_10 comes after fold_9
    known = sorted({n for n in names if _FOLD.fullmatch(n)}, key=lambda n: (len(n), n))
    if wanted is not None:
        return (wanted,) if wanted in known else ()
    numbered = [name for name in known if name != "fold_all"]
    return tuple(numbered or known)
