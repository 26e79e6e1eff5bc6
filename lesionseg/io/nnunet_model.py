"""nnU-Net model on disk or in a zip: names of plans and checkpoint, choice of folds, digest.

It is a folder of `nnUNet_results`, or a zip that nnU-Net exported.

A model folder contains `plans.json`, `dataset.json`, `fold_0/checkpoint_final.pth` and so on. A zip
contains one or more such folders. A path such as
`FILE.zip/Dataset001_X/nnUNetTrainer__nnUNetPlans__3d_fullres` names one of several.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lesionseg.core import Labels
from lesionseg.errors import BundleError, LesionsegError, count, join_names
from lesionseg.io.bundle_folder import WEIGHTS
from lesionseg.io.files import digest_of
from lesionseg.io.layouts.nnunet import DATASET_JSON, nnunet_channels_and_labels
from lesionseg.io.model_files import ModelFiles, find_archive, list_archive

PLANS = "plans.json"
CHECKPOINT = "checkpoint_final.pth"
_MAX_SHOWN = 6  # models of a zip in a message
_FOLD = re.compile(r"fold_(\d+|all)")


@dataclass(frozen=True)
class NnunetModelFiles(ModelFiles):
    """The files of an nnU-Net model in a folder or in a zip.

    Attributes:
        folds: The folders of the folds whose networks are used, such as `fold_0`, in order.
    """

    folds: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the model folder, such as `nnUNetTrainer__nnUNetPlans__3d_fullres`.

        If the model is at the top of a zip, it is the name of the zip without `.zip`.
        """
        return self.root.stem if self.root == self.archive else self.root.name

    @property
    def configuration(self) -> str:
        """The configuration in the folder name, such as `3d_fullres`, or "" without such a name.

        nnU-Net names the folder `<trainer>__<plans>__<configuration>`.
        """
        return self._part_of_name(2)

    @property
    def trainer(self) -> str:
        """The trainer in the folder name, such as `nnUNetTrainer`, or "" without such a name.

        nnU-Net names the folder `<trainer>__<plans>__<configuration>`.
        """
        return self._part_of_name(0)

    def _part_of_name(self, index: int) -> str:
        """Return one of the three parts of the folder name, which `__` separates.

        `index` is 0 for the trainer, 1 for the plans and 2 for the configuration. Return "" if the
        name does not have three parts.
        """
        parts = self.name.split("__")
        return parts[index] if len(parts) == 3 else ""

    def read_channels_and_labels(self) -> tuple[tuple[str, ...], Labels]:
        """Read the names of the channels, and the labels, from the model's `dataset.json`.

        Raise `BundleError` if the file cannot be read, or if channels or labels are not valid.
        """
        try:
            content = self.read_json(DATASET_JSON)
            return nnunet_channels_and_labels(content, Path(self.where(DATASET_JSON)))
        except LesionsegError as error:
            raise BundleError(str(error)) from error

    def checkpoint(self, fold: str) -> str:
        """Return the path of a fold's checkpoint (its weights), relative to the model folder."""
        return f"{fold}/{CHECKPOINT}"

    def digest(self) -> str:
        """Return 16 hexadecimal digits that identify the model in results.

        The digits change if `plans.json`, `dataset.json` or the checkpoint of a fold in `folds`
        changes.
        """
        names = (PLANS, DATASET_JSON, *map(self.checkpoint, self.folds))
        return digest_of(*(digest_of(self.read_bytes(name)) for name in names))[:16]


def find_nnunet_model(path: Path) -> NnunetModelFiles | None:
    """Find the files of an nnU-Net model, and choose the folds whose networks are used.

    If the path names a fold, only this fold is used. Otherwise all numbered folds with a checkpoint
    are used, or `fold_all` (trained on all cases) if no numbered fold has a checkpoint.

    Args:
        path: A model folder, a fold in a model folder, a zip, or a model folder or fold in a zip.

    Returns:
        The files, or None if the path is not an nnU-Net model.

    Raises:
        BundleError: If the training is unfinished, the zip is unsafe, or the path names none or
            several of the models in the zip.
        ReadError: If the zip cannot be read.
    """
    if not path.is_dir():
        archive = find_archive(path)
        return None if archive is None else _find_in_archive(archive, path)
    fold = path.name if _FOLD.fullmatch(path.name) and not (path / PLANS).is_file() else None
    root = path if fold is None else path.parent
    if not (root / PLANS).is_file() or not (root / DATASET_JSON).is_file():
        return None
    names = [file.parent.name for file in root.glob(f"*/{CHECKPOINT}")]
    return NnunetModelFiles(root, folds=_choose_folds(root, names, fold))


def _find_in_archive(archive: Path, path: Path) -> NnunetModelFiles | None:
    """Find an nnU-Net model in a zip, for `find_nnunet_model`.

    A model is a folder with a checkpoint in a folder such as `fold_0`. Return None if there is none
    at `path`, which may contain bundles of lesionseg.

    Args:
        archive: The zip.
        path: The zip, or a model, a fold or a folder above a model in the zip.

    Raises:
        BundleError: If `path` contains several models (bundles of lesionseg count, too), or the
            fold to use has no checkpoint.
    """
    files = [archive / name for name in list_archive(archive)]
    fold = path.name if _FOLD.fullmatch(path.name) else None
    wanted = path if fold is None else path.parent
    checkpoints = [
        file for file in files if file.name == CHECKPOINT and _FOLD.fullmatch(file.parent.name)
    ]
    roots = {file.parents[1] for file in checkpoints if file.parents[1].is_relative_to(wanted)}
    if not roots:
        return None
    bundles = {
        file.parent for file in files if file.name == WEIGHTS and file.is_relative_to(wanted)
    }
    models = sorted(roots | bundles)
    if len(models) > 1:
        raise BundleError(
            f"{archive}: the archive has {count(len(models), 'model')}. Name one of them: "
            f"{join_names(models, _MAX_SHOWN)}."
        )
    root = models[0]
    folds = [file.parent.name for file in checkpoints if file.parents[1] == root]
    return NnunetModelFiles(root, archive, _choose_folds(root, folds, fold))


def _choose_folds(root: Path, names: Sequence[str], wanted: str | None) -> tuple[str, ...]:
    """Return the names of the folds to use, such as `fold_0`, in ascending order.

    Args:
        root: The model folder, for messages.
        names: The names of the folders in it that contain a checkpoint.
        wanted: The only fold to use. None chooses all numbered folds, or `fold_all` if there is no
            numbered fold.

    Raises:
        BundleError: If no fold has a checkpoint, or the wanted fold has none.
    """
    # fold_10 comes after fold_9
    existing = sorted(set(filter(_FOLD.fullmatch, names)), key=lambda n: (len(n), n))
    numbered = [name for name in existing if name != "fold_all"]
    chosen = (numbered or existing) if wanted is None else [n for n in existing if n == wanted]
    if not chosen:
        lack = f"no fold has a {CHECKPOINT}" if wanted is None else f"{wanted} has no {CHECKPOINT}"
        raise BundleError(
            f"{root}: {lack}, so its training has not finished, or the export left it out. Train "
            "at least one fold to its end with nnUNetv2_train."
        )
    return tuple(chosen)
