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
from lesionseg.io.limits import convert_read_errors, largest_content

PLANS = "plans.json"
LABELS = "dataset.json"
CHECKPOINT = "checkpoint_final.pth"
_FOLD = re.compile(r"fold_(\d+|all)")
_MAX_BYTES = 2**33  # largest size of a checkpoint
_MAX_JSON_BYTES = 2**26
# of a damaged member; RuntimeError is that of an encrypted one or of an unknown compression
_READ_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True)
class NnunetModelFiles:
    """The files of a model in a folder or in a zip.

    Attributes:
        root: The model folder. Within a zip, the path of the zip continues with that of the folder.
        folds: The folders of the folds to use, such as `fold_0`, in order.
        archive: The zip. None for a model folder.
    """

    root: Path
    folds: tuple[str, ...]
    archive: Path | None = None

    @property
    def name(self) -> str:
        """The name of the model folder, such as `nnUNetTrainer__nnUNetPlans__3d_fullres`."""
        return self.root.stem if self.root == self.archive else self.root.name

    @property
    def configuration(self) -> str:
        """The configuration in the name of the folder, empty if the name has another form."""
        return self._part_of_name(2)

    @property
    def trainer(self) -> str:
        """The trainer in the name of the folder, empty if the name has another form."""
        return self._part_of_name(0)

    def _part_of_name(self, index: int) -> str:
        parts = self.name.split("__")
        return parts[index] if len(parts) == 3 else ""

    def where(self, name: str) -> str:
        """Return the path of one of the model's files, within the zip if there is one."""
        return str(self.root / name)

    def read_bytes(self, name: str, most: int = _MAX_BYTES) -> bytes:
        """Read one file. Raise `BundleError` if it is missing, damaged or larger than `most`."""
        path = self.root / name
        try:
            if self.archive is None:
                _check_bytes(path, path.stat().st_size, most)
                return path.read_bytes()
            with zipfile.ZipFile(self.archive) as archive:
                info = archive.getinfo(path.relative_to(self.archive).as_posix())
                _check_bytes(path, info.file_size, min(most, largest_content(info.compress_size)))
                return archive.read(info)
        except KeyError as error:
            raise BundleError(f"{path}: this file is missing. Export the model again.") from error
        except _READ_ERRORS as error:
            raise BundleError(f"{path}: cannot be read ({error}). Copy it again.") from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object. Raise `BundleError` if the file contains anything else."""
        try:
            content = json.loads(self.read_bytes(name, _MAX_JSON_BYTES).decode("utf-8-sig"))
            return dict[str, Any](content)
        except (ValueError, TypeError, RecursionError) as error:
            raise BundleError(
                f"{self.where(name)}: cannot be read as a JSON object: {error}. Export the model "
                "again."
            ) from error

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
    if not path.is_dir():
        archives = [p for p in (path, *path.parents) if p.suffix == ".zip" and p.is_file()]
        return _find_in_archive(archives[0], path) if archives else None
    fold = path.name if _FOLD.fullmatch(path.name) and not (path / PLANS).is_file() else None
    root = path if fold is None else path.parent
    if not (root / PLANS).is_file() or not (root / LABELS).is_file():
        return None
    names = [file.parent.name for file in root.glob(f"*/{CHECKPOINT}")]
    return NnunetModelFiles(root, _choose_folds(root, names, fold))


def _check_bytes(path: Path, n_bytes: int, most: int) -> None:
    """Raise `BundleError` if a file has more bytes than possible."""
    if n_bytes > most:
        raise BundleError(
            f"{path}: the file has {n_bytes} bytes, but at most {most} are possible. Export the "
            "model again."
        )


def _find_in_archive(archive: Path, path: Path) -> NnunetModelFiles | None:
    """Find a model in a zip. `path` is the zip, or a model or fold within it."""
    with convert_read_errors(archive), zipfile.ZipFile(archive) as file:
        names = file.namelist()
    unsafe = [name for name in names if _is_outside(name)]
    if unsafe:
        raise BundleError(
            f"{archive}: the archive names a file outside its own folder ({unsafe[0]!r}) and was "
            "not read. Export the model again with nnUNetv2_export_model_to_zip."
        )
    # folders of ensembles contain both files as well, but no weights
    models = [
        archive / PurePosixPath(name).parent
        for name in names
        if PurePosixPath(name).name == PLANS
        and "ensembles" not in PurePosixPath(name).parts
        and str(PurePosixPath(name).with_name(LABELS)) in names
    ]
    if not models:
        return None
    fold = path.name if _FOLD.fullmatch(path.name) else None
    wanted = (path if fold is None else path.parent).relative_to(archive)
    # the user may leave out the upper folders of the zip
    chosen = [
        m for m in models if wanted == Path() or m.as_posix().endswith(f"/{wanted.as_posix()}")
    ]
    if len(chosen) != 1:
        listed = ", ".join(map(str, (chosen or models)[:6]))
        raise BundleError(
            f"{archive}: the archive has {len(models)} models. Name one of them: {listed}."
        )
    (root,) = chosen
    checkpoints = [archive / name for name in names if name.endswith(f"/{CHECKPOINT}")]
    folds = [file.parent.name for file in checkpoints if file.parents[1] == root]
    return NnunetModelFiles(root, _choose_folds(root, folds, fold), archive)


def _is_outside(name: str) -> bool:
    """Return True if a member of an archive would be unpacked outside the target folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts:
        return False
    is_absolute = name.startswith(("/", "\\"))
    has_drive = ":" in parts[0]  # on Windows
    return is_absolute or has_drive or ".." in parts


def _choose_folds(root: Path, names: Sequence[str], wanted: str | None) -> tuple[str, ...]:
    """Choose the folds of a model to use, in ascending order.

    If no fold is wanted, these are all numbered folds, or `fold_all` if it is the only one. Raise
    `BundleError` if there are none. `names` are the folders with a checkpoint.
    """
    # fold_10 comes after fold_9
    known = sorted({n for n in names if _FOLD.fullmatch(n)}, key=lambda n: (len(n), n))
    numbered = [name for name in known if name != "fold_all"]
    chosen = (numbered or known) if wanted is None else [n for n in known if n == wanted]
    if not chosen:
        raise BundleError(
            f"{root}: no fold has a {CHECKPOINT}, so its training has not finished, or the export "
            "left it out. Train at least one fold to its end with nnUNetv2_train."
        )
    return tuple(chosen)
