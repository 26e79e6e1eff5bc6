"""Image, reference and prediction of a case for pictures: folders searched, colours, masks."""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import (
    Candidate,
    Case,
    CaseFiles,
    Dataset,
    Geometry,
    Prediction,
    Reference,
    Volume,
)
from lesionseg.core.arrays import Flags
from lesionseg.core.lesions import box_slices
from lesionseg.errors import DatasetError, GeometryError, ReadError, join_names
from lesionseg.evaluation.scores import Provenance
from lesionseg.inference.open_prediction import open_prediction
from lesionseg.io.case_ids import split_channel
from lesionseg.io.cases import read_case, read_finite
from lesionseg.io.channels import is_colour
from lesionseg.io.grids import GridPair
from lesionseg.io.layouts import ReadingRules, list_dataset
from lesionseg.io.references import References, open_reference
from lesionseg.io.results.case import PredictionFiles
from lesionseg.io.results.index import list_predictions
from lesionseg.io.results.names import without_bids_suffix
from lesionseg.io.scans import find_scans
from lesionseg.ops.components import lesion_mask

_log = logging.getLogger(__name__)

NO_PROVENANCE = Provenance()


@dataclass(frozen=True, eq=False)
class Scene:
    """The image, masks and candidates of a case. Masks are None if the case has none.

    Attributes:
        image: The first channel that the case has `[*spatial]`, or the brightness of a picture in
            colour.
        geometry: Grid of the image and the masks.
        reference: Mask of all reference lesions.
        accepted: Mask of all accepted candidates.
        below: Scored candidates below the operating point: their ids `[*spatial]`, 0 elsewhere.
        prediction: All candidates.
        colours: Red, green and blue `[3, *spatial]` of a picture in colour, otherwise None.
    """

    image: NDArray[Any]
    geometry: Geometry
    reference: Flags | None = None
    accepted: Flags | None = None
    below: NDArray[np.integer[Any]] | None = None
    prediction: Prediction | None = None
    colours: NDArray[Any] | None = None

    def mask_of(self, candidate: int) -> Flags | None:
        """Return the mask `[*spatial]` of a candidate; a candidate without voxels fills its box.

        Return None if no candidate of the prediction has this id. A report outlines this mask in
        the picture of a false positive.
        """
        if self.prediction is None or all(c.id != candidate for c in self.prediction.candidates):
            return None
        return candidate_ids(self.prediction, {candidate}) > 0


class CaseFolders:
    """The folders from which `load` reads the image, reference and prediction of a case.

    Args:
        images: A dataset, the root of one, or a folder of image files. A dataset also provides the
            reference.
        reference: The root of a dataset, or a folder of masks. None takes those of `images`.
        prediction: A folder of prediction files. None draws no candidates.
        made: The provenance of the scores. It states the file of annotations, and how readers and
            labels were merged.

    Raises:
        DatasetError: If the images or the references have no case that can be used.
    """

    def __init__(
        self,
        images: Path | Dataset,
        reference: Path | None = None,
        prediction: Path | None = None,
        made: Provenance = NO_PROVENANCE,
    ) -> None:
        # read references as for the scores (`made`), but tolerate wrong headers and NaN in masks
        rules = ReadingRules(
            grid_of_image=True,
            min_readers=made.min_readers,
            merge_labels=made.merge_labels,
            nan_background=True,
            annotations=made.annotations,
        )
        self._merges_labels = made.merge_labels
        self._folder = images.root if isinstance(images, Dataset) else images
        # None for a folder of plain images, each of which is a case with one channel
        self._images = images if isinstance(images, Dataset) else _find_dataset(images, rules)
        cases: Sequence[CaseFiles] = ()
        if self._images is not None:
            cases = self._images.cases
        elif isinstance(images, Path):
            cases = find_scans(images, channels=1).cases()
        self._image_files = _by_case(cases)
        # `evaluate` has listed the files that cannot be used; the report omits them
        self._predictions: dict[str, PredictionFiles] = {}
        if prediction is not None:
            self._predictions, _ = list_predictions(prediction)
        # references of the folder `reference`, which replace those of the images
        self._references = References()
        if reference is not None:
            self._references = References.find(reference, **rules)
        # the dataset of these references, with their labels and reading rules
        self._reference_dataset = self._references.with_labels_of(
            self._predictions, merge_labels=made.merge_labels
        )
        if self._reference_dataset is not None:
            self._reference_dataset = replace(
                self._reference_dataset, nan_background=True, grid_of_image=True
            )
        self._reference_files = _by_case(self._references.cases)

    def load(
        self, case: str, accepted: frozenset[int] = frozenset(), below: frozenset[int] = frozenset()
    ) -> Scene:
        """Read the image, reference and prediction of one case, for its pictures.

        A prediction on another grid than the image is left out with a warning. A case without a
        prediction has only image and reference.

        Args:
            case: Id of the case.
            accepted: Ids of the accepted candidates.
            below: Ids of the scored candidates below the operating point. Candidates that were not
                scored are not drawn.

        Raises:
            LesionsegError: If the image is missing, a file cannot be read, or the reference is on
                another grid.
        """
        files = self._find_files(case)
        if self._images is None:
            loaded = Case(case, read_finite(files.images[0]))
        else:
            loaded = read_case(files, self._images)
        geometry = loaded.image.geometry
        mask = _reference_mask(self._read_reference(loaded), geometry)
        scene = replace(scene_of(loaded.image, files), reference=mask)
        names = [name for name in self._names_of(case) if name in self._predictions]
        if not names:
            return scene
        # with regions (several mask values that count as one label) or merged labels, evaluate
        # reads the mask of a prediction as one label
        datasets = (self._images, self._reference_dataset)
        has_regions = any(data is not None and data.labels.regions for data in datasets)
        is_binary = has_regions or self._merges_labels
        try:
            prediction = open_prediction(
                self._predictions[names[0]], geometry=geometry, binary=is_binary, by_image=True
            )
        except GeometryError as error:  # happens after `evaluate resample=true`
            _log.warning("The report shows %s without its prediction: %s", case, error)
            return scene
        return replace(
            scene,
            accepted=candidate_ids(prediction, accepted) > 0,
            below=candidate_ids(prediction, below),
            prediction=prediction,
        )

    def _find_files(self, case: str) -> CaseFiles:
        """Return the image files of a case, under any of its names (`_names_of`).

        Raises:
            ReadError: If the folder has no image of the case.
        """
        names = [name for name in self._names_of(case) if name in self._image_files]
        if not names:
            some_ids = join_names(sorted(self._image_files), 3) or "none that can be used"
            raise ReadError(
                f"{self._folder} has no image of this case. Its images have the ids {some_ids}. An "
                "id is the path below the folder, such as p1_scan for p1/scan.nii.gz."
            )
        return self._image_files[names[0]]

    def _read_reference(self, loaded: Case) -> Reference | None:
        """Return the reference of a case, or None if the case has none.

        - Without the folder `reference`, it is the reference that belongs to the image.
        - If that folder is a dataset, its references replace the references of all images, also by
          None.
        - If it is a folder of masks, a mask replaces the reference of its case. Other cases keep
          the reference that belongs to the image.
        """
        files = self._reference_files.get(loaded.case)
        if files is None:
            # `are_masks` is also True without a folder `reference`, so that this reference is used
            return loaded.reference if self._references.are_masks else None
        return open_reference(files, self._reference_dataset, loaded.image.geometry)

    def _names_of(self, case: str) -> list[str]:
        """Return the names that the image and the prediction of a case may have, the id first.

        - A radiograph whose id ends in nnU-Net's channel number, such as `p1_0000`, may also have
          files named `p1`, unless the dataset has another case `p1`.
        - `predict names=bids` adds a suffix to a prediction, so that the one of `sub-1` may be
          `sub-1_FLAIR`.
        """
        short_name, number = split_channel(case)
        if number != 0:  # None, or the number of another channel than the first
            return [
                case,
                *(name for name in self._predictions if without_bids_suffix(name) == case),
            ]
        is_other_case = self._images is not None and short_name in self._image_files
        return [case] if is_other_case else [case, short_name]


def _by_case(cases: Iterable[CaseFiles]) -> dict[str, CaseFiles]:
    """Return a dictionary of the cases by their id, to find the files of a case."""
    return {files.case: files for files in cases}


def _find_dataset(folder: Path, rules: ReadingRules) -> Dataset | None:
    """Read the dataset in a folder, with the colours of pictures, by the given reading rules.

    Cases may lack channels. Return None if the folder has no known layout of a dataset, or if the
    dataset is damaged. The folder is then read as plain image files.
    """
    try:
        # the report shows colours even if the model used the brightness only
        rules_of_report: ReadingRules = {**rules, "colour": True, "may_lack": True}
        return list_dataset(folder, **rules_of_report)
    except DatasetError:
        _log.debug("%s: no known dataset layout; read as plain image files.", folder)
        return None


def _read_colours(files: CaseFiles) -> NDArray[Any] | None:
    """Return red, green and blue `[3, y, x]` of a picture in colour, or None for another image.

    The arrays that `read_case` returns are float32. Here, they have the type of the file, so that
    bytes are shown unchanged.
    """
    if not is_colour(files, n_channels=3):
        return None
    array = read_finite(files.images[0]).array
    return array if len(array) == 3 else None


def scene_of(image: Volume, files: CaseFiles) -> Scene:
    """Return a scene that has only the image, without masks and candidates.

    The scene shows the first channel that is present. For a picture in colour it has the colours,
    and their brightness as the image.

    Args:
        image: The image of the case.
        files: The files of the case. They show if the image is a picture in colour.
    """
    channels = image.present_channels
    colours = _read_colours(files)
    # if the model uses the brightness only, the image already has one channel
    shown = image.brightness() if colours is not None and len(channels) == 3 else channels[0]
    return Scene(shown, image.geometry, colours=colours)


def _reference_mask(reference: Reference | None, geometry: Geometry) -> Flags | None:
    """Return the mask `[*spatial]` of all lesions that are not ignored; None without a reference.

    Args:
        reference: The reference of a case, or None.
        geometry: The grid of the image.

    Raises:
        GeometryError: If the reference has another shape or spacing than the image.
    """
    if reference is None:
        return None
    grids = GridPair("the reference", reference.geometry, "its image", geometry)
    if not grids.is_same(by_image=True):
        raise GeometryError(
            f"A reference of shape {reference.geometry.shape} is not on the grid of its image, "
            f"{geometry.shape}. Give the images that were evaluated."
        )
    return lesion_mask(reference)


def _without_mask(prediction: Prediction) -> list[Candidate]:
    """Return the candidates that have only a box, in descending order of score.

    If the prediction has no instance volume, these are all candidates. The candidates of a
    prediction are sorted by score.
    """
    if prediction.instances is None:
        return list(prediction.candidates)
    return [candidate for candidate in prediction.candidates if not candidate.has_mask]


def candidate_ids(
    prediction: Prediction, ids: Collection[int] | None = None
) -> NDArray[np.integer[Any]]:
    """Draw candidates into a volume `[*spatial]` of their ids, with 0 elsewhere.

    A candidate without a mask fills its box. If candidates overlap, a mask replaces a box, and a
    box with a higher score replaces one with a lower score.

    Args:
        prediction: The prediction with the candidates.
        ids: The ids of the candidates to draw. None draws all candidates.
    """
    if ids is None:
        ids = {candidate.id for candidate in prediction.candidates}
    drawn = np.zeros(prediction.geometry.shape, np.int32)
    # in reverse, so that the candidate with the highest score is drawn last
    for candidate in reversed(_without_mask(prediction)):
        if candidate.id in ids:
            box = (*candidate.start_vox, *candidate.stop_vox)
            drawn[box_slices(box, drawn.ndim)] = candidate.id
    if prediction.instances is None:
        return drawn
    # `isin` needs a sequence, because it treats a set as one element
    return np.where(np.isin(prediction.instances, sorted(ids)), prediction.instances, drawn)
