"""File names in a bundle; its folder found in a run, a zip or an address; text of its card."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lesionseg.config import has_config
from lesionseg.errors import BundleError, count, join_names
from lesionseg.io.files import atomic_path, digest_of, download_folder
from lesionseg.io.model_files import ModelFiles, find_archive, list_archive, read_model_text

WEIGHTS = "weights.safetensors"
_PLAN = "plan.json"
MODELS = "models"  # the folder of models in the cache
_SUFFIXES = (".safetensors", ".json", ".md")
# sections of the model card whose fields are those of the plan and the selection
_REPEATED = re.compile(r"^## (?:Input|Output|Decisions)\n(?:(?!#).*\n)*", re.MULTILINE)
# the lines before the card, which the Hugging Face Hub reads, with the line of the license
_METADATA = re.compile(r"\A---\n(?:(?!---|license:).*\n)*(license: .*\n)?(?:(?!---).*\n)*---\n")
_MAX_SHOWN = 8  # file names in the message about a wrong folder


@dataclass(frozen=True)
class BundleFiles:
    """The paths of the files of a bundle, a folder with a trained model. They may not exist yet.

    An ensemble has one file of weights per network: `weights.safetensors`, `weights_1.safetensors`
    and so on.

    Attributes:
        folder: The folder of the bundle.
    """

    folder: Path

    @property
    def weights(self) -> Path:
        """The file with the weights of the network, or of the first network of an ensemble."""
        return self.folder / WEIGHTS

    def weights_of(self, n_members: int) -> list[Path]:
        """Return the files with the weights of an ensemble of `n_members` networks, in order.

        The first file has no number in its name.
        """
        further = [self.folder / f"weights_{k}.safetensors" for k in range(1, n_members)]
        return [self.weights, *further]

    @property
    def plan(self) -> Path:
        """The file of the plan: the decisions made from the data before training."""
        return self.folder / _PLAN

    @property
    def selection(self) -> Path:
        """The file of the selection: operating points and calibrations, chosen after training."""
        return self.folder / "selection.json"

    @property
    def card(self) -> Path:
        """The file of the model card: `model_card.md` of bundles before 2.0, else `README.md`."""
        earlier = self.folder / "model_card.md"
        return earlier if earlier.is_file() else self.folder / "README.md"

    def card_text(self) -> str:
        """Return the text of the model card, or "" if the bundle has no card."""
        return read_model_text(self.card) if self.card.is_file() else ""

    def card_fields(self) -> Mapping[str, str]:
        """Return the fields of the model card as `{key: value}`, so that programs can show them.

        A field is a line like `- date: 2026-01-31` or `license: mit`. The sections Input, Output
        and Decisions are skipped, because they repeat the plan and the selection. Of the metadata
        before the card, only the license is returned. Without a card, the result is empty.
        """
        # `\1` is the line of the license in the metadata
        other_sections = _REPEATED.sub("", _METADATA.sub(r"\1", self.card_text()))
        return dict(re.findall(r"^(?:- )?([\w ]+): +(\S.*)$", other_sections, re.MULTILINE))


def resolve_bundle(path: Path) -> Path:
    """Return the folder of a bundle.

    Args:
        path: The bundle's folder, a run directory that contains it as `bundle`, or a zip of either.
            `FILE.zip/runs/a` is a folder in a zip. A bundle in a zip is unpacked into the cache.

    Raises:
        BundleError: If neither `path` nor `path/bundle` contains weights and plan, the training has
            not finished, or the zip contains no bundle or several bundles in folders of equal
            depth.
        ReadError: If the zip is damaged.
        OutputError: If the cache cannot be written.
    """
    for folder in (path, path / "bundle"):
        files = BundleFiles(folder)
        if files.weights.is_file() and files.plan.is_file():
            return folder
    if has_config(path):  # a run directory without a bundle
        raise BundleError(
            f"{path}: the training has not finished. Run the same `train` command with "
            f"run_dir={path} to continue it."
        )
    zip_file = None if path.is_dir() else find_archive(path)
    if zip_file is not None:
        return resolve_bundle(_unpack(zip_file, path))
    content = "it is a file" if path.exists() else "the folder does not exist"
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        content = f"the folder contains {join_names(names, _MAX_SHOWN) or 'no files'}"
    raise BundleError(
        f"{path} is not a bundle: {content}. Name the folder of a finished training, "
        f"one that contains {WEIGHTS} and {_PLAN}, or an nnU-Net model folder."
    )


def _unpack(zip_file: Path, path: Path) -> Path:
    """Unpack the files of a bundle in a zip into the cache, and return the folder in the cache.

    The folder is named by the digest of the zip, so that the same bundle is unpacked only once.

    Args:
        zip_file: The zip.
        path: The zip, or a folder in the zip that contains the bundle. If it contains several, the
            bundle in the highest folder is unpacked, because the bundle of a run may be above the
            bundles of single folds.

    Raises:
        BundleError: If `path` contains no bundle, or several in folders of equal depth, or if a
            file that was unpacked before has changed.
    """
    # find the only bundle in the highest folder
    names = [PurePosixPath(name) for name in list_archive(zip_file)]
    folder_in_zip = path.relative_to(zip_file)
    bundles = [name.parent for name in names if name.name == WEIGHTS]
    folders = [folder for folder in bundles if folder.is_relative_to(folder_in_zip)]
    depth = min((len(folder.parts) for folder in folders), default=0)
    highest = [folder for folder in folders if len(folder.parts) == depth]
    if len(highest) != 1:
        folders = highest or bundles or sorted({name.parent for name in names})
        shown = join_names([zip_file.name / folder for folder in folders], _MAX_SHOWN)
        raise BundleError(
            f"{path}: the zip has {count(len(highest), 'bundle')} there and no nnU-Net model. "
            f"{'Bundles' if bundles else 'Folders'} in the zip: {shown or 'none'}. Name the folder "
            "of one model in the zip."
        )
    files = ModelFiles(zip_file / highest[0], zip_file)
    # one target for each zip and each folder in it; 16 digits keep the path short
    target = download_folder() / MODELS / digest_of(zip_file) / digest_of(str(highest[0]))[:16]
    for name in names:
        file = target / name.name
        if name.parent != highest[0] or name.suffix not in _SUFFIXES:
            continue
        content = files.read_bytes(name.name)
        if not file.is_file():
            with atomic_path(file) as new:
                new.write_bytes(content)
        elif digest_of(file) != digest_of(content):
            raise BundleError(
                f"{file}: this copy of a file in {zip_file} was changed or damaged. Delete it."
            )
    return target
